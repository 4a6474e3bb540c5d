package attentiontest

import (
	"math"
	"testing"

	"nha/attention"
	"nha/tensor"
)

// LongRun holds the operator to SPEC 1.2 over long stretches: 10^5 tokens of gate logit +8 keep the mass of the slots within
// 1e-5, in one call, in chunks and step by step; a chunk of gate logit -60 gives no NaN or Inf, forward or backward.
func LongRun(t *testing.T, op Operator) {
	s := suite{op, TolerancesFor(op.DType())}
	for _, cut := range []struct {
		name string
		part int
	}{{"one call", longTokens}, {"chunks of 1000", 1000}, {"single steps", 1}} {
		t.Run("mass at gate logit 8, "+cut.name, func(t *testing.T) { s.mass(t, cut.part) })
	}
	for _, w := range []int{0, 16, 64} {
		for _, logit := range []float64{-60, 60} {
			s.extremeChunk(t, w, logit)
		}
	}
}

const longTokens = 100_000

// mass: keys and values of 1 blended into empty slots n times leave 1 - a^n in them.
func (s suite) mass(t *testing.T, tokens int) {
	const w = 3
	d, c := s.op.DType(), newConfig(w, 2, 2, 1, 4, 4)
	ones := func(width int) tensor.Tensor {
		x := tensor.New(d, tensor.Of(tokens, width))
		for i := range x.Len() {
			x.SetValue(i, 1)
		}
		return x
	}
	z := tensor.New(d, tensor.Of(tokens, 2))
	for i := range z.Len() {
		z.SetValue(i, 8)
	}
	state := attention.NewState(c, d)
	call := &attention.Call{
		Config: c, Lengths: []int{tokens}, Q: ones(2 * 4), K: ones(4), V: ones(4), Z: z,
		O: tensor.New(d, tensor.Of(tokens, 2*4)), LSE: tensor.New(d, tensor.Of(tokens, 2)), Share: tensor.New(d, tensor.Of(tokens, 2)),
		Initial: []*attention.State{state}, Final: []*attention.State{state},
	}
	for range longTokens / tokens {
		s.op.Forward(call)
	}
	if state.Position != longTokens {
		t.Fatalf("position %d, want %d", state.Position, longTokens)
	}
	want := -math.Expm1(-float64(longTokens-w) * math.Log1p(math.Exp(-8)) / 8)
	for i := range state.SlotKeys.Len() {
		k, v := state.SlotKeys.Value(i), state.SlotValues.Value(i)
		if !(math.Abs(k-want) <= 1e-5 && math.Abs(v-want) <= 1e-5) {
			t.Fatalf("slots hold %.7f of keys and %.7f of values, want %.7f", k, v, want)
		}
	}
}

// extremeChunk is a sequence whose middle has gates of one extreme.
func (s suite) extremeChunk(t *testing.T, w int, logit float64) {
	c := newConfig(w, 16, 2, 1, 16, 16)
	t.Run((matchCase{t: []int{320}, w: w, m: 16, hq: 2, h: 1, k: 16, v: 16, gates: gates{mean: logit}}).String(), func(t *testing.T) {
		p := newProblem(7, s.op.DType(), c, []int{320}, []int{100}, softGates)
		setTo(p.z.Narrow(64, 256), logit)
		got, g := s.run(p)
		for _, x := range []tensor.Tensor{got.O, got.LSE, got.Share, g.DQ, g.DK, g.DV, g.DZ, got.Final[0].SlotKeys, g.DInitial[0].SlotKeys} {
			finite(t, "a result", x)
		}
		want, wantG := reference(p)
		s.compare(t, got, want, g, wantG, s.tol)
	})
}
