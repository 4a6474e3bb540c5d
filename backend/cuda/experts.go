package cuda

import (
	"nha/backend"
	"nha/tensor"
)

const (
	routeWarps     = 4   // rows of logits that a block has in hand
	combineThreads = 128 // of a block, one token or one choice
)

func (b *Backend) experts(entry string) *kernel { return b.d.kernel("experts.cu", entry, b.real) }

// Route chooses the experts of every row of logits.
func (b *Backend) Route(weights, ids, logits tensor.Tensor, normalize bool) {
	b.op("route", weights, ids, logits)
	rows := logits.Rows()
	b.d.launch(b.experts("route"), grid{blocks(rows, routeWarps), 1, 1}, 32*routeWarps, 0, pointer(weights), pointer(ids), pointer(logits), integer(rows),
		integer(logits.Columns()), integer(weights.Columns()), truth(normalize))
}

// RouteBackward is the gradient of Route.
func (b *Backend) RouteBackward(dlogits backend.Gradient, dweights, weights, ids, logits tensor.Tensor, normalize bool) {
	b.op("route backward", dlogits.Tensor, dweights, weights, ids, logits)
	rows := logits.Rows()
	b.d.launch(b.experts("route_backward"), grid{blocks(rows, routeWarps), 1, 1}, 32*routeWarps, 0, pointer(dlogits.Tensor), pointer(dweights), pointer(weights),
		pointer(ids), pointer(logits), integer(rows), integer(logits.Columns()), integer(weights.Columns()), truth(normalize), truth(dlogits.Add))
}

// Combine is y[t] (+)= sum_j weights[t,j] x[places[t,j]].
func (b *Backend) Combine(y backend.Gradient, x, weights, places tensor.Tensor) {
	b.op("combine", y.Tensor, x, weights, places)
	b.d.launch(b.experts("combine"), grid{y.Rows(), 1, 1}, combineThreads, 0, pointer(y.Tensor), pointer(x), pointer(weights), pointer(places),
		integer(x.Columns()), integer(weights.Columns()), truth(y.Add))
}

// CombineBackward is the gradient of Combine.
func (b *Backend) CombineBackward(dx, dweights backend.Gradient, dy, x, weights, places tensor.Tensor) {
	b.op("combine backward", dx.Tensor, dweights.Tensor, dy, x, weights, places)
	b.d.launch(b.experts("combine_backward"), grid{weights.Len(), 1, 1}, combineThreads, 0, pointer(dx.Tensor), pointer(dweights.Tensor), pointer(dy), pointer(x),
		pointer(weights), pointer(places), integer(x.Columns()), integer(weights.Columns()), truth(dx.Add), truth(dweights.Add))
}
