package autograd

import (
	"nha/backend"
	"nha/tensor"
)

// A mixture of experts (Shazeer and others 2017) is Route on the router's logits, Embed to gather the tokens of each expert, LinearEach and
// SwiGLU for the experts, Combine to add their outputs. Which token goes where is decided on the host, in between.

// Route is the op route: the weights [N, k] of the k experts that every row of logits [N, E] chooses, and which they are, [N, k] I32.
func (t *Tape) Route(logits *Value, k int, normalize bool) (weights, ids *Value) {
	s := tensor.Of(logits.Rows(), k)
	weights, ids = t.value(s), t.node()
	ids.Tensor, ids.block = t.arena.alloc(tensor.I32, s)
	r := t.record(routeBackward, weights, logits, ids)
	r.normalize = normalize
	backend.Route(t.b, weights.Tensor, ids.Tensor, logits.Tensor, normalize)
	return weights, ids
}

func routeBackward(t *Tape, r *record) {
	if g := t.gradient(r.in[0]); g.Present() {
		backend.RouteBackward(t.b, g, r.out.Gradient, r.out.Tensor, r.in[1].Tensor, r.in[0].Tensor, r.normalize)
	}
}

// LinearEach is x W_e^T for the counts[e] rows of x [N, in] that belong to expert e, one expert after the other; the weights are
// [out, in]: [N, out]. Weights without rows are not read. Counts and weights must stay as they are until Backward.
func (t *Tape) LinearEach(x *Value, weights []*Value, counts []int) *Value {
	y := t.value(tensor.Of(x.Rows(), weights[0].Rows()))
	r := t.record(linearEachBackward, y, x)
	r.again, r.group, r.counts = linearEach, weights, counts
	for e, w := range weights { // they are too many for the record's inputs
		if counts[e] > 0 && w.wants && t.recording && !y.wants {
			y.wants, y.maker, r.backward = true, len(t.records), linearEachBackward
		}
	}
	linearEach(t, r)
	return y
}

func linearEach(t *Tape, r *record) {
	from := 0
	for e, n := range r.counts {
		if n > 0 {
			y := backend.Gradient{Tensor: r.out.Narrow(from, from+n)}
			backend.MatMul(t.b, backend.NT, y, r.in[0].Narrow(from, from+n), r.group[e].Tensor, tensor.Tensor{})
		}
		from += n
	}
}

func linearEachBackward(t *Tape, r *record) {
	x, dy, from := r.in[0], r.out.Gradient, 0
	dx := t.gradient(x)
	for e, n := range r.counts {
		if n == 0 {
			continue
		}
		w, rows := r.group[e], dy.Narrow(from, from+n)
		if g := t.gradient(w); g.Present() {
			backend.MatMul(t.b, backend.TN, g, rows, x.Narrow(from, from+n), tensor.Tensor{})
		}
		if dx.Present() {
			backend.MatMul(t.b, backend.NN, backend.Gradient{Tensor: dx.Narrow(from, from+n), Add: dx.Add}, rows, w.Tensor, tensor.Tensor{})
		}
		from += n
	}
}

// Combine is residual + sum_j weights[:,j] x[places[:,j]]: the op combine on a residual [N, D].
func (t *Tape) Combine(residual, x, weights, places *Value) *Value {
	y := t.value(residual.Shape)
	r := t.record(combineBackward, y, residual, x, weights, places)
	r.again = combine
	combine(t, r)
	return y
}

func combine(t *Tape, r *record) {
	t.b.Copy(r.out.Tensor, r.in[0].Tensor)
	backend.Combine(t.b, backend.Gradient{Tensor: r.out.Tensor, Add: true}, r.in[1].Tensor, r.in[2].Tensor, r.in[3].Tensor)
}

// combineBackward computes both gradients; one that nobody wants goes to scratch.
func combineBackward(t *Tape, r *record) {
	var g [2]backend.Gradient
	for i := range g {
		if g[i] = t.gradient(r.in[1+i]); !g[i].Present() {
			g[i].Tensor = t.scratch(r, i, t.b.DType(), r.in[1+i].Shape)
		}
	}
	backend.CombineBackward(t.b, g[0], g[1], r.out.Gradient, r.in[1].Tensor, r.in[2].Tensor, r.in[3].Tensor)
	t.pass(r.in[0], r.out)
}
