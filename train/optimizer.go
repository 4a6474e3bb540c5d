package train

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"nha/backend"
	"nha/model"
	"nha/tensor"
)

// optimizer is AdamW over the flat buffers of a model: neighbouring parameters with equal settings are one call. The padding
// between parameters is zero in all four buffers and stays so.
type optimizer struct {
	b                 backend.Backend
	parameters        []model.Parameter
	data, gradients   tensor.Tensor // what is trained: the model's master where it has one
	rounded           tensor.Tensor // then: what the model computes with
	means, squares    tensor.Tensor // AdamW's m and v
	runs              []run
	beta1, beta2, eps float64
}

// run is a stretch of the flat buffers with one learning-rate factor and weight decay.
type run struct {
	from, to           int
	factor, decay      float64
	p, g, mean, square tensor.Tensor
	rounded            tensor.Tensor // absent where p is what the model computes with
}

func newOptimizer(m *model.Model, s *Settings) (*optimizer, error) {
	data, gradients := m.Flat()
	if !gradients.Present() {
		return nil, fmt.Errorf("this model was loaded without gradients: load it to be trained")
	}
	o := &optimizer{b: m.Backend(), parameters: m.Parameters(), data: data, gradients: gradients, beta1: s.Beta1, beta2: s.Beta2, eps: s.Epsilon}
	if master := m.Master(); master.Present() {
		o.data, o.rounded = master, data
	}
	moments := o.data.DType
	if s.Moments == BFloat16 {
		if moments = tensor.BF16; !o.rounded.Present() {
			return nil, fmt.Errorf("moments %s: the backend %s keeps them as its parameters are, %v; use float32", s.Moments, o.b.Name(), data.DType)
		}
	}
	patterns := slices.Sorted(maps.Keys(s.LearningRateFactors))
	used := map[string]bool{}
	for i, p := range o.parameters {
		r := run{from: p.Offset, to: data.Len(), factor: 1}
		if i+1 < len(o.parameters) {
			r.to = o.parameters[i+1].Offset
		}
		if p.Value.Shape.Rank() >= 2 {
			r.decay = s.WeightDecay
		}
		for _, pattern := range patterns {
			if strings.Contains(p.Name, pattern) {
				r.factor *= s.LearningRateFactors[pattern]
				used[pattern] = true
			}
		}
		if last := len(o.runs) - 1; last >= 0 && o.runs[last].factor == r.factor && o.runs[last].decay == r.decay {
			o.runs[last].to = r.to
		} else {
			o.runs = append(o.runs, r)
		}
	}
	for _, pattern := range patterns {
		if !used[pattern] {
			return nil, fmt.Errorf("learning_rate_factors %q: no tensor of the model has that in its name", pattern)
		}
	}
	o.means, o.squares = o.b.Alloc(moments, data.Shape), o.b.Alloc(moments, data.Shape)
	for i := range o.runs {
		r := &o.runs[i]
		s := tensor.Of(r.to - r.from)
		r.p, r.g, r.mean, r.square = o.data.At(r.from, s), gradients.At(r.from, s), o.means.At(r.from, s), o.squares.At(r.from, s)
		if o.rounded.Present() {
			r.rounded = o.rounded.At(r.from, s)
		}
	}
	return o, nil
}

// begin forgets the gradients of the step before.
func (o *optimizer) begin() {
	for _, p := range o.parameters {
		p.Value.ClearGradient()
	}
}

// squaredNorm is |g|^2 over all parameters; one that backward never reached has gradient 0.
func (o *optimizer) squaredNorm() float64 {
	for _, p := range o.parameters {
		if !p.Value.Written() {
			o.b.Zero(p.Value.Gradient)
		}
	}
	return o.b.SumSquares(o.gradients)
}

// apply is the t-th update, with the gradient multiplied by scale. A factor of 0 leaves its tensors as they are.
func (o *optimizer) apply(t int, rate, scale float64) {
	for i := range o.runs {
		r := &o.runs[i]
		if r.factor == 0 {
			continue
		}
		backend.ApplyAdamW(o.b, r.p, r.g, r.mean, r.square, backend.AdamW{LearningRate: rate * r.factor, Beta1: o.beta1, Beta2: o.beta2,
			Epsilon: o.eps, WeightDecay: r.decay, GradientScale: scale, Rounded: r.rounded, Step: t})
	}
}

// bytes is the memory of parameters, gradients and moments.
func (o *optimizer) bytes() (n int) {
	for _, t := range []tensor.Tensor{o.data, o.rounded, o.gradients, o.means, o.squares} {
		if t.Present() {
			n += t.Len() * t.DType.Size()
		}
	}
	return n
}

func (o *optimizer) close() {
	o.b.Free(o.means)
	o.b.Free(o.squares)
}
