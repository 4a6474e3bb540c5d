package model

import (
	"errors"

	"nha/autograd"
	"nha/backend"
	"nha/nn"
	"nha/tensor"
)

// Decoder is a program of whole decoding steps, where the backend makes such and has one for this model; the error says why not. It is
// for the model as it is: SetWindows asks for another.
func (m *Model) Decoder() (backend.Decoder, error) {
	compiler, ok := m.b.(backend.DecodeCompiler)
	if !ok {
		return nil, errors.New("backend " + m.b.Name() + " decodes by plain calls")
	}
	of := func(v *autograd.Value) tensor.Tensor {
		if v == nil {
			return tensor.Tensor{}
		}
		return v.Tensor
	}
	affine := func(l nn.Linear) backend.Affine { return backend.Affine{Weight: of(l.Weight), Bias: of(l.Bias)} }
	d := &backend.DecodeModel{Embedding: of(m.embedding), Norm: of(m.norm.Weight), Head: of(m.head), Epsilon: m.Config.NormEps}
	for i := range m.blocks {
		l := &m.blocks[i]
		if l.experts != nil {
			return nil, errors.New("a layer of experts is decoded by plain calls")
		}
		d.Blocks = append(d.Blocks, backend.DecodeBlock{Attention: l.attention, AttentionNorm: of(l.attnNorm.Weight), QueryNorm: of(l.qNorm.Weight),
			KeyNorm: of(l.kNorm.Weight), Q: affine(l.q), K: affine(l.k), V: affine(l.v), Z: affine(l.gate), O: affine(l.o),
			ActivateValues: l.activateValues, OutputNorm: of(l.outputNorm.Weight), MLPNorm: of(l.mlpNorm.Weight),
			Gate: affine(l.mlp.Gate), Up: affine(l.mlp.Up), Down: affine(l.mlp.Down)})
	}
	return compiler.CompileDecode(d)
}
