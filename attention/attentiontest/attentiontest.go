// Package attentiontest holds an implementation of the operator against package attention: a table of cases compared with the
// float64 reference, properties (any cut of a sequence is the same function, packed is separate, states are values), the named
// errors of SPEC 4, and long runs that lose or blow up what is kept carelessly. Every backend's tests call
//
//	attentiontest.Run(t, op, attentiontest.TolerancesFor(op.DType()))
//	attentiontest.LongRun(t, op)
package attentiontest

import (
	"fmt"
	"math"
	"testing"

	"nha/attention"
	"nha/attention/vectors"
	"nha/tensor"
)

// Operator is an implementation of the operator for tensors of one element type.
type Operator interface {
	Forward(*attention.Call)
	Backward(*attention.Call, *attention.Gradients)
	DType() tensor.DType
}

// Tolerances are errors as SPEC 1.5 measures them.
type Tolerances struct {
	Output   float64 // outputs against the reference
	State    float64 // states against the reference
	Gradient float64 // gradients against the reference
	Cut      float64 // outputs and states of one cut or packing against another's
}

// TolerancesFor is what SPEC 1.5 asks of element type d.
func TolerancesFor(d tensor.DType) Tolerances {
	t := Tolerances{Output: vectors.Limit(d, false), State: vectors.Limit(d, false), Gradient: vectors.Limit(d, true)}
	switch d {
	case tensor.F64:
		t.Cut = 1e-11
	case tensor.F32:
		t.Cut = 1e-5
	default:
		t.Cut = t.Output
	}
	return t
}

// Run runs everything but LongRun.
func Run(t *testing.T, op Operator, tolerances Tolerances) {
	s := suite{op, tolerances}
	t.Run("match", s.match)
	t.Run("properties", s.properties)
	t.Run("errors not to repeat", s.errors)
}

// suite is an operator under test.
type suite struct {
	op  Operator
	tol Tolerances
}

// failer is what *testing.T and *rapid.T share.
type failer interface {
	Helper()
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// run computes forward and backward and is the problem's call with its results.
func (s suite) run(p *problem) (*attention.Call, *attention.Gradients) {
	c, g := p.call(s.op.DType())
	s.op.Forward(c)
	s.op.Backward(c, g)
	return c, g
}

// reference is the truth for the same inputs, which are rounded to the operator's type already.
func reference(p *problem) (*attention.Call, *attention.Gradients) {
	c, g := p.call(tensor.F64)
	attention.Forward(c)
	attention.Backward(c, g)
	return c, g
}

// referenceForward is the truth where no gradients are asked for.
func referenceForward(p *problem) *attention.Call {
	c, _ := p.call(tensor.F64)
	attention.Forward(c)
	return c
}

// compare holds every result of a call against another's.
func (s suite) compare(t failer, c, want *attention.Call, g, wantG *attention.Gradients, tol Tolerances) {
	t.Helper()
	s.compareForward(t, c, want, tol)
	s.near(t, "dq", g.DQ, wantG.DQ, tol.Gradient)
	s.near(t, "dk", g.DK, wantG.DK, tol.Gradient)
	s.near(t, "dv", g.DV, wantG.DV, tol.Gradient)
	s.near(t, "dz", g.DZ, wantG.DZ, tol.Gradient)
	for i := range g.DInitial {
		s.nearState(t, fmt.Sprintf("gradient of initial state %d", i), c.Config, g.DInitial[i], wantG.DInitial[i], tol.Gradient)
	}
}

func (s suite) compareForward(t failer, c, want *attention.Call, tol Tolerances) {
	t.Helper()
	s.near(t, "o", c.O, want.O, tol.Output)
	s.near(t, "lse", c.LSE, want.LSE, tol.Output)
	s.near(t, "slot share", c.Share, want.Share, tol.Output)
	for i := range c.Final {
		s.nearState(t, fmt.Sprintf("final state %d", i), c.Config, c.Final[i], want.Final[i], tol.State)
	}
}

func (s suite) near(t failer, name string, got, want tensor.Tensor, limit float64) {
	t.Helper()
	if !want.Present() {
		return
	}
	if e := vectors.Error(s.op.DType(), got, want); !(e <= limit) {
		t.Errorf("%s: error %.3g, limit %.3g", name, e, limit)
	}
}

func (s suite) nearState(t failer, name string, c *attention.Config, got, want *attention.State, limit float64) {
	t.Helper()
	if err := got.Check(c); err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	if got.Position != want.Position {
		t.Errorf("%s: position %d, want %d", name, got.Position, want.Position)
		return
	}
	x, y := got.Aligned(c), want.Aligned(c)
	for _, part := range []struct {
		name string
		x, y tensor.Tensor
	}{
		{"slot keys", x.SlotKeys, y.SlotKeys}, {"slot values", x.SlotValues, y.SlotValues},
		{"keys", x.Keys, y.Keys}, {"values", x.Values, y.Values}, {"log gates", x.LogGates, y.LogGates},
	} {
		s.near(t, name+": "+part.name, part.x, part.y, limit)
	}
}

// sameBits holds one tensor against another that must not differ in a single bit.
func sameBits(t failer, name string, x, y tensor.Tensor) {
	t.Helper()
	if x.Present() && string(x.Bytes()) != string(y.Bytes()) {
		t.Errorf("%s: bits differ (error %.3g)", name, tensor.MaxError(x, y))
	}
}

func sameState(t failer, name string, c *attention.Config, x, y *attention.State) {
	t.Helper()
	x, y = x.Aligned(c), y.Aligned(c)
	if x.Position != y.Position {
		t.Errorf("%s: position %d, want %d", name, x.Position, y.Position)
		return
	}
	sameBits(t, name+": slot keys", x.SlotKeys, y.SlotKeys)
	sameBits(t, name+": slot values", x.SlotValues, y.SlotValues)
	sameBits(t, name+": keys", x.Keys, y.Keys)
	sameBits(t, name+": values", x.Values, y.Values)
	sameBits(t, name+": log gates", x.LogGates, y.LogGates)
}

func finite(t failer, name string, x tensor.Tensor) {
	t.Helper()
	if !x.Present() {
		return
	}
	for i := range x.Len() {
		if v := x.Value(i); math.IsNaN(v) || math.IsInf(v, 0) {
			t.Errorf("%s: element %d is %v", name, i, v)
			return
		}
	}
}
