package model

import (
	"fmt"
	"slices"

	"nha/attention"
	"nha/backend"
	"nha/tensor"
	"nha/weights"
)

// State is what a model remembers of one sequence: every layer's decode state (SPEC 1.1). It is a value: Clone forks it, a
// clone kept from earlier rewinds it. Its size does not grow with the sequence where no window is full.
type State struct {
	Position int // tokens read
	Layers   []*attention.State
}

// NewState is the state before any token.
func (m *Model) NewState() *State {
	s, d := &State{}, m.cache
	if d == tensor.Invalid {
		d = m.b.DType()
	}
	for i := range m.blocks {
		s.Layers = append(s.Layers, attention.NewState(m.blocks[i].attention, d))
	}
	return s
}

// narrow reports whether the cpu backend loses less by keys and values in half precision than by what it does anyway: it rounds the
// activations that meet quantised weights. A GGUF file in F16 is for whoever reads it with such a cache.
func (m *Model) narrow(f *files) bool {
	_, gguf := f.source.(*weights.GGUF)
	return slices.ContainsFunc(m.tensors, func(p Parameter) bool {
		return p.Value.DType.Quantized() || gguf && p.Value.DType == tensor.F16
	})
}

// checkCache says why states on a backend cannot keep keys and values in type d.
func checkCache(d tensor.DType, b backend.Backend) error {
	if d == tensor.Invalid || d == b.DType() || d == tensor.F16 && readsInPlace(b) {
		return nil
	}
	return fmt.Errorf("keys and values in %v: backend %s keeps them in %v", d, b.Name(), b.DType())
}

// Clone is a copy that shares nothing.
func (s *State) Clone() *State {
	c := &State{Position: s.Position}
	for _, l := range s.Layers {
		c.Layers = append(c.Layers, l.Clone())
	}
	return c
}

// Bytes is the memory of the state in all layers.
func (s *State) Bytes() int {
	n := 0
	for _, l := range s.Layers {
		n += l.Bytes()
	}
	return n
}
