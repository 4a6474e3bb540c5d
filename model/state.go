package model

import (
	"nha/attention"
)

// State is what a model remembers of one sequence: every layer's decode state (SPEC 1.1). It is a value: Clone forks it, a
// clone kept from earlier rewinds it. Its size does not grow with the sequence where no window is full.
type State struct {
	Position int // tokens read
	Layers   []*attention.State
}

// NewState is the state before any token.
func (m *Model) NewState() *State {
	s := &State{}
	for i := range m.blocks {
		s.Layers = append(s.Layers, attention.NewState(m.blocks[i].attention, m.b.DType()))
	}
	return s
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
