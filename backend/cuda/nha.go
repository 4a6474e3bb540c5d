package cuda

import (
	"nha/attention"
	"nha/tensor"
)

// NHA is the operator (SPEC 1), computed on the host by the reference: the tensors go there and back.
func (b *Backend) NHA(c *attention.Call) {
	h := b.onHost(c)
	attention.Forward(h)
	b.back(c.O, h.O)
	b.back(c.LSE, h.LSE)
	b.back(c.Share, h.Share)
}

// NHABackward is the gradient of NHA, computed on the host by the reference.
func (b *Backend) NHABackward(c *attention.Call, g *attention.Gradients) {
	h, hg := b.onHost(c), *g
	hg.DO = b.down(g.DO)
	hg.DQ, hg.DK, hg.DV, hg.DZ = like(g.DQ), like(g.DK), like(g.DV), like(g.DZ)
	attention.Backward(h, &hg)
	b.back(g.DQ, hg.DQ)
	b.back(g.DK, hg.DK)
	b.back(g.DV, hg.DV)
	b.back(g.DZ, hg.DZ)
}

// onHost is the call with its inputs on the host, and memory there for its outputs.
func (b *Backend) onHost(c *attention.Call) *attention.Call {
	h := *c
	h.Q, h.K, h.V, h.Z = b.down(c.Q), b.down(c.K), b.down(c.V), b.down(c.Z)
	h.O, h.LSE, h.Share = like(c.O), like(c.LSE), like(c.Share)
	return &h
}

func like(t tensor.Tensor) tensor.Tensor {
	if !t.Present() {
		return t
	}
	return tensor.New(t.DType, t.Shape)
}

func (b *Backend) down(t tensor.Tensor) tensor.Tensor {
	h := like(t)
	if t.Present() {
		b.Read(h, t)
	}
	return h
}

func (b *Backend) back(t, h tensor.Tensor) {
	if t.Present() {
		b.Write(t, h)
	}
}
