package attention

import (
	"fmt"
	"math"

	"nha/tensor"
)

// Full is the window of a layer that sees the whole context, however long that is.
const Full = math.MaxInt32

// EmptySlots is the rule for slots that no token has entered yet (SPEC 1).
type EmptySlots uint8

const (
	// Count: an empty slot has logit 0 and value 0, a sink that adds 1 to the softmax's denominator.
	Count EmptySlots = iota
	// Mask: no slot takes part until the first token has entered the slots.
	Mask
)

// String is the name in config.json.
func (e EmptySlots) String() string { return [...]string{"count", "mask"}[e] }

// ParseEmptySlots reads the name in config.json.
func ParseEmptySlots(s string) (EmptySlots, error) {
	switch s {
	case "count":
		return Count, nil
	case "mask":
		return Mask, nil
	}
	return 0, fmt.Errorf("empty_slots %q: use count or mask", s)
}

// Config is one layer's operator: everything that is not a tensor (SPEC 1).
type Config struct {
	QueryHeads     int        // Hq, a multiple of KVHeads
	KVHeads        int        // H
	KeyDim         int        // K
	ValueDim       int        // V
	Slots          int        // M; 0: no slots, no gate
	Window         int        // W; 0: slots alone; Full: the whole context
	Scale          float64    // c, usually K^-1/2
	GateNormalizer float64    // tau
	EmptySlots     EmptySlots // what an empty slot counts for
	Rope           *Rope      // rotary positions of the window branch; nil: none
}

// Group is the number of query heads that share one kv head.
func (c *Config) Group() int { return c.QueryHeads / c.KVHeads }

// Check says which number is impossible. The messages name the keys of config.json.
func (c *Config) Check() error {
	switch {
	case c.KVHeads < 1 || c.QueryHeads < 1:
		return fmt.Errorf("num_heads %d and num_kv_heads %d must be at least 1", c.QueryHeads, c.KVHeads)
	case c.QueryHeads%c.KVHeads != 0:
		return fmt.Errorf("num_heads %d is not a multiple of num_kv_heads %d", c.QueryHeads, c.KVHeads)
	case c.KeyDim < 1 || c.ValueDim < 1:
		return fmt.Errorf("head_dim %d: must be at least 1", min(c.KeyDim, c.ValueDim))
	case c.Slots < 0:
		return fmt.Errorf("num_slots %d: must be 0 or more", c.Slots)
	case c.Window < 0:
		return fmt.Errorf("window %d: must be 0 or more, or full", c.Window)
	case c.Slots == 0 && c.Window == 0:
		return fmt.Errorf("num_slots 0 with window 0 attends to nothing: give the layer slots or a window")
	case !(c.Scale > 0) || math.IsInf(c.Scale, 0):
		return fmt.Errorf("attention scale %v: must be positive", c.Scale)
	case c.Slots > 0 && (!(c.GateNormalizer > 0) || math.IsInf(c.GateNormalizer, 0)):
		return fmt.Errorf("gate_logit_normalizer %v: must be positive", c.GateNormalizer)
	case c.Rope != nil && c.Rope.Dim() != c.KeyDim:
		return fmt.Errorf("rotary tables for %d dimensions, keys have %d", c.Rope.Dim(), c.KeyDim)
	}
	return nil
}

// Call is one application of the operator to a packed batch: N tokens, the sequences one after the other. All tensors are
// of one floating-point type, states of the same ring type. Forward fills O and, where present, LSE and Share, and the states
// in Final. Sequences may share an initial state (a fork), but not a final one.
type Call struct {
	*Config
	Lengths []int         // tokens of every sequence; their sum is N
	Q       tensor.Tensor // [N, Hq*K], unrotated
	K       tensor.Tensor // [N, H*K], unrotated
	V       tensor.Tensor // [N, H*V]
	Z       tensor.Tensor // [N, H*M] gate logits; absent where M = 0
	O       tensor.Tensor // [N, Hq*V]
	LSE     tensor.Tensor // [N, Hq] log of the softmax's denominator, which backward needs; absent: no backward will follow
	Share   tensor.Tensor // [N, Hq] slot share; absent: not wanted
	Initial []*State      // the state before each sequence; nil, or a nil entry: empty
	Final   []*State      // where the state after each sequence goes, overwriting any other state of the layer; nil, or a nil entry: not wanted; an entry may be its Initial, then it is updated in place
}

// Gradients is what Backward takes and gives for a Call after Forward, whose O and LSE it may use and whose Initial states must
// be what they were (so a Final updated in place has no backward). Backward overwrites DQ, DK, DV and DZ and every DInitial it is
// given.
type Gradients struct {
	DO       tensor.Tensor // [N, Hq*V]
	DFinal   []*State      // gradient of the final states, at their positions; nil or nil entries: 0
	DQ       tensor.Tensor // [N, Hq*K]
	DK       tensor.Tensor // [N, H*K]
	DV       tensor.Tensor // [N, H*V]
	DZ       tensor.Tensor // [N, H*M]; absent where M = 0
	DInitial []*State      // gradient of the initial states, overwriting any state of the layer; their ring's oldest token comes to row 0; nil or nil entries: not wanted
}

// Check says which length, tensor or state of the call does not fit the configuration. Implementations rely on it.
func (c *Call) Check() error {
	if err := c.Config.Check(); err != nil {
		return err
	}
	n := 0
	for i, l := range c.Lengths {
		if l < 0 {
			return fmt.Errorf("sequence %d of %d tokens", i, l)
		}
		n += l
	}
	d := c.Q.DType
	if !d.Float() {
		return fmt.Errorf("q of type %v: use a floating-point type", d)
	}
	for _, t := range []operand{
		{"q", c.Q, c.QueryHeads * c.KeyDim, true}, {"k", c.K, c.KVHeads * c.KeyDim, true}, {"v", c.V, c.KVHeads * c.ValueDim, true},
		{"z", c.Z, c.KVHeads * c.Slots, c.Slots > 0}, {"o", c.O, c.QueryHeads * c.ValueDim, true},
		{"lse", c.LSE, c.QueryHeads, false}, {"share", c.Share, c.QueryHeads, false},
	} {
		if err := t.check(d, n); err != nil {
			return err
		}
	}
	if err := c.checkStates("initial", c.Initial, nil); err != nil {
		return err
	}
	return c.checkStates("final", c.Final, nil)
}

// Check says which gradient does not fit the call.
func (g *Gradients) Check(c *Call) error {
	n := c.Q.Dim(0)
	for _, t := range []operand{
		{"do", g.DO, c.QueryHeads * c.ValueDim, true}, {"dq", g.DQ, c.QueryHeads * c.KeyDim, true},
		{"dk", g.DK, c.KVHeads * c.KeyDim, true}, {"dv", g.DV, c.KVHeads * c.ValueDim, true}, {"dz", g.DZ, c.KVHeads * c.Slots, c.Slots > 0},
	} {
		if err := t.check(c.Q.DType, n); err != nil {
			return err
		}
	}
	if err := c.checkStates("gradient of initial", g.DInitial, nil); err != nil {
		return err
	}
	return c.checkStates("gradient of final", g.DFinal, c.Lengths)
}

// checkStates holds states against the configuration and, where lengths are given, against the positions they must be at.
func (c *Call) checkStates(what string, states []*State, lengths []int) error {
	if states != nil && len(states) != len(c.Lengths) {
		return fmt.Errorf("%d %s states for %d sequences", len(states), what, len(c.Lengths))
	}
	for i, s := range states {
		if s == nil {
			continue
		}
		if err := s.Check(c.Config); err != nil {
			return fmt.Errorf("%s state %d: %w", what, i, err)
		}
		if lengths == nil {
			continue
		}
		end := lengths[i]
		if c.Initial != nil && c.Initial[i] != nil {
			end += c.Initial[i].Position
		}
		if s.Position != end {
			return fmt.Errorf("%s state %d is at position %d, the sequence ends at %d", what, i, s.Position, end)
		}
	}
	return nil
}

// operand is a tensor of a call and the width of its rows.
type operand struct {
	name     string
	t        tensor.Tensor
	width    int
	required bool
}

func (o operand) check(d tensor.DType, n int) error {
	switch {
	case !o.t.Present() && !o.required:
		return nil
	case !o.t.Present():
		return fmt.Errorf("%s is missing", o.name)
	case o.t.DType != d || o.t.Shape != tensor.Of(n, o.width):
		return fmt.Errorf("%s is %v %v, want %v %v", o.name, o.t.DType, o.t.Shape, d, tensor.Of(n, o.width))
	}
	return nil
}
