package optest

import (
	"fmt"

	"nha/backend"
	"nha/tensor"
)

// distill: as crossEntropy, the gradient stands in place of the logits. Gradient mode differentiates one loss, so that the
// other's scale is 0.
func distill(rows, n int) *Case {
	return &Case{Op: "distill", Name: fmt.Sprintf("%dx%d", rows, n),
		Inputs: []Input{{Name: "logits", Shape: tensor.Of(rows, n), Std: 4}, {Name: "teacher", Shape: tensor.Of(rows, n), Std: 4},
			{Name: "targets", Shape: tensor.Of(rows), Ids: n, Negative: true}},
		Outputs: []Output{{Name: "kl", Shape: tensor.Of(rows)}, {Name: "nll", Shape: tensor.Of(rows)}, {Name: "gradient", Shape: tensor.Of(rows, n)},
			{Name: "mixed", Shape: tensor.Of(rows, n)}}, Wants: []int{0}, Constant: 0.37, OnlyWrites: true,
		Forward: func(b backend.Backend, in, out []tensor.Tensor) {
			b.Copy(out[3], in[0])
			backend.Distill(b, out[1], out[0], out[3], in[1], in[2], 0.5, 0.25)
			b.Copy(out[2], in[0])
			backend.Distill(b, out[1], out[0], out[2], in[1], in[2], 0, 0.37)
		},
		Backward: func(b backend.Backend, in, out, _ []tensor.Tensor, din []backend.Gradient) {
			b.Copy(din[0].Tensor, out[2])
		}}
}

// distillTop: log-probabilities low enough that something is left for the words that the teacher does not list.
func distillTop(rows, n, k int) *Case {
	return &Case{Op: "distill_top", Name: fmt.Sprintf("%dx%d-%d", rows, n, k),
		Inputs: []Input{{Name: "logits", Shape: tensor.Of(rows, n), Std: 4}, {Name: "logq", Shape: tensor.Of(rows, k), Wide: true, Std: 0.5, Mean: -float64(k)/2 - 1},
			{Name: "ids", Shape: tensor.Of(rows, k), Ids: n, Distinct: true}, {Name: "targets", Shape: tensor.Of(rows), Ids: n, Negative: true}},
		Outputs: []Output{{Name: "kl", Shape: tensor.Of(rows)}, {Name: "nll", Shape: tensor.Of(rows)}, {Name: "gradient", Shape: tensor.Of(rows, n)},
			{Name: "mixed", Shape: tensor.Of(rows, n)}}, Wants: []int{0}, Constant: 0.37, OnlyWrites: true,
		Forward: func(b backend.Backend, in, out []tensor.Tensor) {
			b.Copy(out[3], in[0])
			backend.DistillTop(b, out[1], out[0], out[3], in[1], in[2], in[3], 0.5, 0.25)
			b.Copy(out[2], in[0])
			backend.DistillTop(b, out[1], out[0], out[2], in[1], in[2], in[3], 0, 0.37)
		},
		Backward: func(b backend.Backend, in, out, _ []tensor.Tensor, din []backend.Gradient) {
			b.Copy(din[0].Tensor, out[2])
		}}
}

// squaredError: forward leaves the gradient too, written and added to itself.
func squaredError(rows, n int) *Case {
	s := tensor.Of(rows, n)
	return &Case{Op: "squared_error", Name: fmt.Sprintf("%dx%d", rows, n), Inputs: []Input{{Name: "y", Shape: s}, {Name: "target", Shape: s}},
		Outputs: []Output{{Name: "loss", Shape: tensor.Of(rows)}, {Name: "gradient", Shape: s}, {Name: "twice", Shape: s}}, Wants: []int{0}, Constant: 0.37,
		Forward: func(b backend.Backend, in, out []tensor.Tensor) {
			backend.SquaredError(b, out[0], backend.Gradient{Tensor: out[1]}, in[0], in[1], 0.8, 0.37)
			b.Copy(out[2], out[1])
			backend.SquaredError(b, out[0], backend.Gradient{Tensor: out[2], Add: true}, in[0], in[1], 0.8, 0.37)
		},
		Backward: func(b backend.Backend, in, out, _ []tensor.Tensor, din []backend.Gradient) {
			backend.SquaredError(b, out[0], din[0], in[0], in[1], 0.8, 0.37)
		}}
}
