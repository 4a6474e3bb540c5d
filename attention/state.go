package attention

import (
	"fmt"
	"math"

	"nha/tensor"
)

// State is the decode state of one layer for one sequence (SPEC 1.1), a value: everything the operator needs to go on, and
// nothing that grows with the sequence unless the window does. Copying it (Clone) is a snapshot, going on from the copy a
// rewind or a fork.
//
// Slots and gates are float32 (float64 in a float64 state), the ring's keys and values of any floating-point type. The ring
// holds the last min(W, Position) tokens, unrotated: token Position-Count+i lies in row Row(i) of every head. A gradient of a
// state has the same form.
type State struct {
	Position   int           // tokens seen so far, t
	SlotKeys   tensor.Tensor // [H, M, K]; absent where M = 0
	SlotValues tensor.Tensor // [H, M, V]; absent where M = 0
	Keys       tensor.Tensor // [H, Capacity, K]; absent where W = 0
	Values     tensor.Tensor // [H, Capacity, V]; absent where W = 0
	LogGates   tensor.Tensor // [H, Capacity, M] log a of the ring's tokens, fixed when they arrived; absent where M = 0 or W = 0
	Start      int           // ring row of the oldest token
	Count      int           // tokens in the ring, min(W, Position)
}

// firstCapacity is how many tokens the ring of a full window starts with; it doubles when they are used up.
const firstCapacity = 64

// NewState is the state before the first token. Its ring has W rows, that of a full window grows with Reserve. d is the type
// of the ring's keys and values.
func NewState(c *Config, d tensor.DType) *State {
	s := &State{}
	if c.Slots > 0 {
		s.SlotKeys = tensor.New(gateType(d), tensor.Of(c.KVHeads, c.Slots, c.KeyDim))
		s.SlotValues = tensor.New(gateType(d), tensor.Of(c.KVHeads, c.Slots, c.ValueDim))
	}
	switch c.Window {
	case 0:
	case Full:
		s.makeRing(c, d, firstCapacity)
	default:
		s.makeRing(c, d, c.Window)
	}
	return s
}

// gateType is the type of slots and gates beside a ring of type d: never less than float32, or a write strength of 1e-4 would
// round to nothing.
func gateType(d tensor.DType) tensor.DType {
	if d == tensor.F64 {
		return d
	}
	return tensor.F32
}

func (s *State) makeRing(c *Config, d tensor.DType, capacity int) {
	s.Keys = tensor.New(d, tensor.Of(c.KVHeads, capacity, c.KeyDim))
	s.Values = tensor.New(d, tensor.Of(c.KVHeads, capacity, c.ValueDim))
	if c.Slots > 0 {
		s.LogGates = tensor.New(gateType(d), tensor.Of(c.KVHeads, capacity, c.Slots))
	}
}

// DType is the type of the ring's keys and values; without a ring, of the slots.
func (s *State) DType() tensor.DType {
	if s.Keys.Present() {
		return s.Keys.DType
	}
	return s.SlotKeys.DType
}

// Capacity is the number of rows of the ring.
func (s *State) Capacity() int {
	if !s.Keys.Present() {
		return 0
	}
	return s.Keys.Dim(1)
}

// Row is the ring row of its i-th oldest token.
func (s *State) Row(i int) int {
	if i += s.Start; i >= s.Capacity() {
		i -= s.Capacity()
	}
	return i
}

// Reserve makes room for a sequence of n tokens: the ring of a full window grows by doubling, which moves the oldest token to
// row 0 and replaces the ring's tensors. The ring of any other window has its W rows already.
func (s *State) Reserve(c *Config, n int) {
	if c.Window != Full || n <= s.Capacity() {
		return
	}
	old := *s
	s.makeRing(c, old.DType(), max(n, 2*old.Capacity()))
	s.Start = 0
	old.copyRing(s)
}

// copyRing copies the tokens of s to the rows from 0 on of another ring of the same type and at least Count rows.
func (s *State) copyRing(to *State) {
	from, into := s.ringTensors(), to.ringTensors()
	for i, t := range from {
		if !t.Present() {
			continue
		}
		width := t.Columns()
		for h := range t.Dim(0) {
			row := h * into[i].Dim(1)
			for _, part := range s.parts() {
				tensor.Convert(
					into[i].At(row*width, tensor.Of(part.rows, width)),
					t.At((h*s.Capacity()+part.first)*width, tensor.Of(part.rows, width)))
				row += part.rows
			}
		}
	}
}

func (s *State) ringTensors() [3]tensor.Tensor { return [3]tensor.Tensor{s.Keys, s.Values, s.LogGates} }

// part is a stretch of ring rows.
type part struct{ first, rows int }

// parts are the ring's rows in the order of time: a stretch up to the ring's end and one from its beginning.
func (s *State) parts() [2]part {
	n := min(s.Count, s.Capacity()-s.Start)
	return [2]part{{s.Start, n}, {0, s.Count - n}}
}

// Clone is a copy that shares nothing with s.
func (s *State) Clone() *State {
	c := *s
	for _, t := range []*tensor.Tensor{&c.SlotKeys, &c.SlotValues, &c.Keys, &c.Values, &c.LogGates} {
		if t.Present() {
			*t = t.Clone()
		}
	}
	return &c
}

// ConvertTo is a copy with a ring of type d.
func (s *State) ConvertTo(d tensor.DType) *State {
	c := *s
	convert := func(t *tensor.Tensor, d tensor.DType) {
		if t.Present() {
			converted := tensor.New(d, t.Shape)
			tensor.Convert(converted, *t)
			*t = converted
		}
	}
	convert(&c.SlotKeys, gateType(d))
	convert(&c.SlotValues, gateType(d))
	convert(&c.Keys, d)
	convert(&c.Values, d)
	convert(&c.LogGates, gateType(d))
	return &c
}

// Aligned is a copy whose ring begins in row 0, with zeros in the rows that no token uses: states that are equal then have
// equal tensors.
func (s *State) Aligned(c *Config) *State {
	t := NewState(c, s.DType())
	t.Reserve(c, s.Position)
	t.Position, t.Count = s.Position, s.Count
	if c.Slots > 0 {
		tensor.Convert(t.SlotKeys, s.SlotKeys)
		tensor.Convert(t.SlotValues, s.SlotValues)
	}
	s.copyRing(t)
	return t
}

// Bytes is the memory of the state's tensors: for a ring of n rows, in a state that is not float64, Config.StateBytes(n, size).
func (s *State) Bytes() int {
	n := 0
	for _, t := range []tensor.Tensor{s.SlotKeys, s.SlotValues, s.Keys, s.Values, s.LogGates} {
		if t.Present() {
			n += t.Len() * t.DType.Size()
		}
	}
	return n
}

// StateBytes is the size of a layer's state (SPEC 1.4) with keys and values of elementSize bytes. It is the same for any
// number of tokens unless the window is full.
func (c *Config) StateBytes(tokens, elementSize int) int {
	rows := c.Window
	if c.Window == Full {
		rows = tokens
	}
	return c.KVHeads * (4*c.Slots*(c.KeyDim+c.ValueDim) + rows*((c.KeyDim+c.ValueDim)*elementSize+4*c.Slots))
}

// Check says why s cannot be a state of c: other shapes, or a ring that does not hold min(W, Position) tokens.
func (s *State) Check(c *Config) error {
	d, rows := s.DType(), s.Capacity()
	switch {
	case !d.Float():
		return fmt.Errorf("state of type %v: use a floating-point type", d)
	case s.Position < 0 || s.Count != min(c.Window, s.Position):
		return fmt.Errorf("state at position %d holds %d tokens, a window of %s asks for %d", s.Position, s.Count, windowName(c.Window), min(c.Window, s.Position))
	case s.Count > rows || s.Start < 0 || s.Start > 0 && s.Start >= rows:
		return fmt.Errorf("state's ring of %d rows cannot hold %d tokens from row %d on", rows, s.Count, s.Start)
	case c.Window != Full && rows != c.Window:
		return fmt.Errorf("state's ring has %d rows, the window is %d", rows, c.Window)
	}
	type wanted struct {
		name  string
		t     tensor.Tensor
		on    bool
		dtype tensor.DType
		shape tensor.Shape
	}
	for _, w := range []wanted{
		{"slot keys", s.SlotKeys, c.Slots > 0, gateType(d), tensor.Of(c.KVHeads, c.Slots, c.KeyDim)},
		{"slot values", s.SlotValues, c.Slots > 0, gateType(d), tensor.Of(c.KVHeads, c.Slots, c.ValueDim)},
		{"keys", s.Keys, c.Window > 0, d, tensor.Of(c.KVHeads, rows, c.KeyDim)},
		{"values", s.Values, c.Window > 0, d, tensor.Of(c.KVHeads, rows, c.ValueDim)},
		{"log gates", s.LogGates, c.Window > 0 && c.Slots > 0, gateType(d), tensor.Of(c.KVHeads, rows, c.Slots)},
	} {
		switch {
		case w.t.Present() != w.on:
			return fmt.Errorf("state with %d slots and window %s: %s present: %t", c.Slots, windowName(c.Window), w.name, !w.on)
		case w.on && (w.t.DType != w.dtype || w.t.Shape != w.shape):
			return fmt.Errorf("state's %s are %v %v, want %v %v", w.name, w.t.DType, w.t.Shape, w.dtype, w.shape)
		}
	}
	return nil
}

func windowName(w int) string {
	if w == Full {
		return "full"
	}
	return fmt.Sprint(w)
}

// MaxError is the largest tensor.MaxError of s against want over slots, keys, values and gates, whatever rows they lie in;
// infinite where positions or shapes differ.
func (s *State) MaxError(c *Config, want *State) float64 {
	if s.Position != want.Position || s.Check(c) != nil || want.Check(c) != nil {
		return math.Inf(1)
	}
	x, y, worst := s.Aligned(c), want.Aligned(c), 0.0
	a := [...]tensor.Tensor{x.SlotKeys, x.SlotValues, x.Keys, x.Values, x.LogGates}
	b := [...]tensor.Tensor{y.SlotKeys, y.SlotValues, y.Keys, y.Values, y.LogGates}
	for i := range a {
		if a[i].Present() {
			e := tensor.MaxError(a[i], b[i])
			if math.IsNaN(e) {
				return e
			}
			worst = max(worst, e)
		}
	}
	return worst
}
