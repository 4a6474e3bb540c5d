package model

import (
	"fmt"

	"nha/tensor"
	"nha/weights"
)

// Names and shapes of the tensors of every family, as its checkpoints have them. A spec without a name: the model has no
// such tensor.

type linearSpecs struct{ weight, bias weights.Spec }

type mlpSpecs struct{ gate, up, down linearSpecs }

func (s *mlpSpecs) each(yield func(weights.Spec)) {
	for _, l := range []linearSpecs{s.gate, s.up, s.down} {
		yield(l.weight)
		yield(l.bias)
	}
}

// layerSpecs is one layer: an MLP, or a router and experts.
type layerSpecs struct {
	attnNorm, mlpNorm   weights.Spec
	q, k, v, f, o       linearSpecs
	qNorm, kNorm, gNorm weights.Spec
	mlp                 mlpSpecs
	router              weights.Spec
	experts             []mlpSpecs
}

func (s *layerSpecs) each(yield func(weights.Spec)) {
	yield(s.attnNorm)
	for _, l := range []linearSpecs{s.q, s.k, s.v, s.f} {
		yield(l.weight)
		yield(l.bias)
	}
	yield(s.qNorm)
	yield(s.kNorm)
	yield(s.gNorm)
	yield(s.o.weight)
	yield(s.o.bias)
	yield(s.mlpNorm)
	s.mlp.each(yield)
	yield(s.router)
	for i := range s.experts {
		s.experts[i].each(yield)
	}
}

// names are the family's; a resolved configuration has one.
func (c *Config) names() *tensorNames { return &families[c.ModelType].tensors }

func (c *Config) layerSpecs(layer int) layerSpecs {
	n := c.names()
	vector := func(s string, dim int) weights.Spec {
		return weights.Spec{Name: fmt.Sprintf("model.layers.%d.%s", layer, s), Shape: tensor.Of(dim)}
	}
	linear := func(s string, out, in int, bias bool) (l linearSpecs) {
		l.weight = weights.Spec{Name: fmt.Sprintf("model.layers.%d.%s.weight", layer, s), Shape: tensor.Of(out, in)}
		if bias {
			l.bias = vector(s+".bias", out)
		}
		return l
	}
	swiglu := func(prefix string, inner int, bias bool) mlpSpecs {
		return mlpSpecs{gate: linear(prefix+".gate_proj", inner, c.HiddenSize, bias), up: linear(prefix+".up_proj", inner, c.HiddenSize, bias),
			down: linear(prefix+".down_proj", c.HiddenSize, inner, bias)}
	}
	d, q, kv, m := c.HiddenSize, c.NumHeads*c.HeadDim, c.NumKVHeads*c.HeadDim, c.NumKVHeads*c.NumSlots
	s := layerSpecs{attnNorm: vector(n.attnNorm+".weight", d), mlpNorm: vector(n.mlpNorm+".weight", d), q: linear(n.mixer+".q_proj", q, d, c.QKVBias),
		k: linear(n.mixer+".k_proj", kv, d, c.QKVBias), v: linear(n.mixer+".v_proj", kv, d, c.QKVBias), o: linear(n.mixer+".o_proj", d, q, c.OutputBias)}
	if m > 0 {
		s.f = linear(n.mixer+"."+n.gate, m, d, c.GateBias)
	}
	if c.QKNorm {
		s.qNorm, s.kNorm = vector(n.mixer+".q_norm.weight", c.HeadDim), vector(n.mixer+".k_norm.weight", c.HeadDim)
	}
	if c.OutputNorm {
		s.gNorm = vector(n.mixer+".g_norm.weight", q)
	}
	if !c.Experts.In(layer) {
		s.mlp = swiglu("mlp", c.IntermediateSize, c.MLPBias)
		return s
	}
	s.router = linear("mlp.gate", c.Experts.Count, d, false).weight
	for i := range c.Experts.Count {
		s.experts = append(s.experts, swiglu(fmt.Sprintf("mlp.experts.%d", i), c.Experts.Size, false))
	}
	return s
}

// Specs lists every tensor of the model, in the order of a checkpoint; the embedding comes first.
func (c *Config) Specs() []weights.Spec {
	list := []weights.Spec{{Name: c.names().embedding, Shape: tensor.Of(c.VocabSize, c.HiddenSize)}}
	add := func(s weights.Spec) {
		if s.Name != "" {
			list = append(list, s)
		}
	}
	for i := range c.NumHiddenLayers {
		s := c.layerSpecs(i)
		s.each(add)
	}
	add(weights.Spec{Name: normName, Shape: tensor.Of(c.HiddenSize)})
	if !c.TieWordEmbeddings {
		add(weights.Spec{Name: headName, Shape: tensor.Of(c.VocabSize, c.HiddenSize)})
	}
	return list
}

const (
	normName = "model.norm.weight"
	headName = "lm_head.weight"
)
