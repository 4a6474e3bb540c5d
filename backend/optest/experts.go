package optest

import (
	"fmt"

	"nha/backend"
	"nha/tensor"
)

// route: the choice jumps where two logits are equal, which random ones are not within a finite difference. In 16 bits some
// are, so that which of equals comes first counts too.
func route(rows, experts, k int, normalize bool) *Case {
	s := tensor.Of(rows, k)
	c := &Case{Op: "route", Name: fmt.Sprintf("%dx%d-of-%d", rows, k, experts), Inputs: []Input{{Name: "logits", Shape: tensor.Of(rows, experts), Std: 2}},
		Outputs: []Output{{Name: "weights", Shape: s}, {Name: "ids", Shape: s, Ids: true}}, Wants: []int{0}}
	if normalize {
		c.Name += "-normalized"
	}
	c.Forward = func(b backend.Backend, in, out []tensor.Tensor) { backend.Route(b, out[0], out[1], in[0], normalize) }
	c.Backward = func(b backend.Backend, in, out, dout []tensor.Tensor, din []backend.Gradient) {
		backend.RouteBackward(b, din[0], dout[0], out[0], out[1], in[0], normalize)
	}
	return c
}

func combine(rows, k, n int) *Case {
	return &Case{Op: "combine", Name: fmt.Sprintf("%dx%d-%d", rows, k, n),
		Inputs: []Input{{Name: "x", Shape: tensor.Of(rows*k, n)}, {Name: "weights", Shape: tensor.Of(rows, k)},
			{Name: "places", Shape: tensor.Of(rows, k), Ids: rows * k, Permutation: true}},
		Outputs: []Output{{Name: "y", Shape: tensor.Of(rows, n)}, {Name: "y added", Shape: tensor.Of(rows, n)}}, Wants: []int{0, 1},
		Forward: func(b backend.Backend, in, out []tensor.Tensor) {
			backend.Combine(b, backend.Gradient{Tensor: out[0]}, in[0], in[1], in[2])
			b.Copy(out[1], out[0])
			backend.Combine(b, backend.Gradient{Tensor: out[1], Add: true}, in[0], in[1], in[2])
		},
		Backward: func(b backend.Backend, in, _, dout []tensor.Tensor, din []backend.Gradient) {
			backend.CombineBackward(b, din[0], din[1], dout[0], in[0], in[1], in[2])
		}}
}
