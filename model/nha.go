package model

import (
	"fmt"
	"math"

	"nha/tensor"
	"nha/weights"
)

func scale(keyDim int) float64 { return 1 / math.Sqrt(float64(keyDim)) }

// layerSpecs are the checkpoint names and shapes of one layer's tensors in family nha, the reference's (SPEC 2). A spec
// without a name: the model has no such tensor.
type layerSpecs struct {
	attnNorm, q, k, v, f, fBias, o, gNorm, mlpNorm, gate, up, down weights.Spec
}

func (c *Config) layerSpecs(layer int) layerSpecs {
	name := func(s string, dims ...int) weights.Spec {
		return weights.Spec{Name: fmt.Sprintf("model.layers.%d.%s", layer, s), Shape: tensor.Of(dims...)}
	}
	d, q, kv, m, inner := c.HiddenSize, c.NumHeads*c.HeadDim, c.NumKVHeads*c.HeadDim, c.NumKVHeads*c.NumSlots, c.IntermediateSize
	s := layerSpecs{attnNorm: name("attn_norm.weight", d), q: name("attn.q_proj.weight", q, d), k: name("attn.k_proj.weight", kv, d),
		v: name("attn.v_proj.weight", kv, d), o: name("attn.o_proj.weight", d, q), mlpNorm: name("mlp_norm.weight", d),
		gate: name("mlp.gate_proj.weight", inner, d), up: name("mlp.up_proj.weight", inner, d), down: name("mlp.down_proj.weight", d, inner)}
	if m > 0 {
		s.f = name("attn.f_proj.weight", m, d)
	}
	if c.GateBias {
		s.fBias = name("attn.f_proj.bias", m)
	}
	if c.OutputNorm {
		s.gNorm = name("attn.g_norm.weight", q)
	}
	return s
}

// Specs lists every tensor of the model, in the order of a checkpoint.
func (c *Config) Specs() []weights.Spec {
	list := []weights.Spec{{Name: embeddingName, Shape: tensor.Of(c.VocabSize, c.HiddenSize)}}
	for i := range c.NumHiddenLayers {
		s := c.layerSpecs(i)
		for _, one := range []weights.Spec{s.attnNorm, s.q, s.k, s.v, s.f, s.fBias, s.gNorm, s.o, s.mlpNorm, s.gate, s.up, s.down} {
			if one.Name != "" {
				list = append(list, one)
			}
		}
	}
	list = append(list, weights.Spec{Name: normName, Shape: tensor.Of(c.HiddenSize)})
	if !c.TieWordEmbeddings {
		list = append(list, weights.Spec{Name: headName, Shape: tensor.Of(c.VocabSize, c.HiddenSize)})
	}
	return list
}

const (
	embeddingName = "model.embeddings.weight"
	normName      = "model.norm.weight"
	headName      = "lm_head.weight"
)
