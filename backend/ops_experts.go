package backend

import "nha/tensor"

// Route is the op route: k is the number of columns of weights.
func Route(b Backend, weights, ids, logits tensor.Tensor, normalize bool) {
	require(weights.Len() == ids.Len() && ids.DType == tensor.I32 && weights.Rows() == logits.Rows() && weights.Columns() <= logits.Columns(), "route",
		weights, ids, logits)
	b.Route(weights, ids, logits, normalize)
}

// RouteBackward is the gradient of route; the choice itself has none.
func RouteBackward(b Backend, dlogits Gradient, dweights, weights, ids, logits tensor.Tensor, normalize bool) {
	require(dlogits.Len() == logits.Len() && dweights.Len() == weights.Len() && weights.Len() == ids.Len() && weights.Rows() == logits.Rows(), "route backward",
		dlogits.Tensor, dweights, weights, ids, logits)
	b.RouteBackward(dlogits, dweights, weights, ids, logits, normalize)
}

// Combine is the op combine.
func Combine(b Backend, y Gradient, x, weights, places tensor.Tensor) {
	requireCombine("combine", y.Tensor, x, weights, places)
	b.Combine(y, x, weights, places)
}

// CombineBackward is the gradient of combine; both gradients are computed.
func CombineBackward(b Backend, dx, dweights Gradient, dy, x, weights, places tensor.Tensor) {
	requireCombine("combine backward", dy, x, weights, places)
	require(dx.Len() == x.Len() && dweights.Len() == weights.Len(), "combine backward", dx.Tensor, dweights.Tensor, x, weights)
	b.CombineBackward(dx, dweights, dy, x, weights, places)
}

func requireCombine(op string, y, x, weights, places tensor.Tensor) {
	require(y.Columns() == x.Columns() && x.Rows() == weights.Len() && weights.Rows() == y.Rows() && places.Len() == weights.Len() && places.DType == tensor.I32,
		op, y, x, weights, places)
}
