package autograd

import (
	"math"
	"math/rand/v2"
	"testing"

	"nha/backend/ref"
	"nha/tensor"
)

// TestTeacherGradients holds the gradients of the losses against a teacher against central differences.
func TestTeacherGradients(t *testing.T) {
	const n, d, vocabulary, k = 5, 6, 11, 3
	b := ref.Backend{}
	r := rand.New(rand.NewPCG(3, 4))
	draw := func(dims ...int) tensor.Tensor {
		x := tensor.New(tensor.F64, tensor.Of(dims...))
		for i := range x.F64() {
			x.F64()[i] = r.NormFloat64()
		}
		return x
	}
	hidden, head := draw(n, d), draw(vocabulary, d)
	targets := tensor.FromI32([]int32{3, 0, -1, 7, 10}, n)
	full := Teacher{Hidden: draw(n, d), Head: draw(vocabulary, d)}
	top := Teacher{LogProbs: draw(n, k), IDs: tensor.New(tensor.I32, tensor.Of(n, k))}
	for i := range top.IDs.I32() {
		top.IDs.I32()[i] = int32(i%k*3 + i/k%3)
		top.LogProbs.F64()[i] = -2 - math.Abs(top.LogProbs.F64()[i])
	}
	target := draw(n, d)
	for name, loss := range map[string]func(t *Tape, h, w *Value) float64{
		"distill": func(t *Tape, h, w *Value) float64 {
			nll, kl := t.Distill(h, w, t.Input(targets), full, 0.5, 0.25)
			return 0.5*t.Sum(nll) + 0.25*t.Sum(kl)
		},
		"distill top": func(t *Tape, h, w *Value) float64 {
			nll, kl := t.Distill(h, w, t.Input(targets), top, 0.5, 0.25)
			return 0.5*t.Sum(nll) + 0.25*t.Sum(kl)
		},
		"squared error": func(t *Tape, h, w *Value) float64 {
			return 0.3 * t.Sum(t.SquaredError(t.Linear(h, w, nil, nil), tensor.FromF64(make([]float64, n*vocabulary), n, vocabulary), 0.7, 0.3))
		},
		"squared error of a leaf": func(t *Tape, h, w *Value) float64 { return 0.3 * t.Sum(t.SquaredError(h, target, 0.7, 0.3)) },
	} {
		tape := New(b)
		h, w := Parameter(hidden, tensor.New(tensor.F64, hidden.Shape)), Parameter(head, tensor.New(tensor.F64, head.Shape))
		value := loss(tape, h, w)
		tape.Backward()
		tape.Reset()
		frozen := New(b)
		frozen.Record(false)
		for _, v := range []*Value{h, w} {
			for i := range v.F64() {
				const step = 1e-5
				var side [2]float64
				for j, e := range []float64{step, -step} {
					v.F64()[i] += e
					frozen.Reset()
					side[j] = loss(frozen, Parameter(hidden, tensor.Tensor{}), Parameter(head, tensor.Tensor{}))
					v.F64()[i] -= e
				}
				want := (side[0] - side[1]) / (2 * step)
				if got := v.Gradient.F64()[i]; v.Written() && math.Abs(got-want) > 1e-6*math.Max(1, math.Abs(want)) {
					t.Errorf("%s: gradient %v, differences give %v", name, got, want)
				} else if !v.Written() && want != 0 {
					t.Errorf("%s: no gradient, differences give %v", name, want)
				}
			}
		}
		if value == 0 || math.IsNaN(value) {
			t.Errorf("%s: loss %v", name, value)
		}
	}
}
