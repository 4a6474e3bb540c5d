package attention_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"nha/attention"
	"nha/tensor"
)

// Every gradient of Backward against central differences of the loss
//
//	L = <o, dO> + <final state, dFinal>
//
// on small random cases: inputs, and of the initial states slots, keys, values and log gates.
func TestGradientsAreFiniteDifferences(t *testing.T) {
	for i, tt := range []struct {
		w, m, hq, h, k, v int
		lengths           []int
		positions         []int
		rule              attention.EmptySlots
		rope              bool
	}{
		{2, 3, 2, 1, 4, 3, []int{6}, nil, attention.Count, true},
		{2, 3, 2, 1, 4, 3, []int{6}, nil, attention.Mask, false},
		{0, 2, 2, 2, 4, 4, []int{5}, nil, attention.Count, true},
		{0, 2, 2, 1, 4, 2, []int{3, 4}, []int{6, 0}, attention.Mask, true},
		{3, 2, 4, 2, 2, 3, []int{2, 5}, []int{7, 3}, attention.Count, true},
		{3, 2, 2, 1, 4, 3, []int{1, 4, 2}, []int{2, 0, 9}, attention.Mask, true},
		{4, 0, 2, 1, 4, 3, []int{3, 6}, []int{2, 9}, attention.Count, true},
		{attention.Full, 2, 2, 1, 4, 3, []int{3, 4}, []int{0, 3}, attention.Count, true},
		{attention.Full, 0, 2, 2, 4, 3, []int{4}, []int{3}, attention.Mask, true},
	} {
		t.Run(fmt.Sprintf("W%d M%d %v from %v", tt.w, tt.m, tt.lengths, tt.positions), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(1, uint64(i)))
			c := &attention.Config{
				QueryHeads: tt.hq, KVHeads: tt.h, KeyDim: tt.k, ValueDim: tt.v, Slots: tt.m, Window: tt.w,
				Scale: 0.7, GateNormalizer: 3, EmptySlots: tt.rule,
			}
			if tt.rope {
				c.Rope = attention.NewRope(tt.k, 100)
			}
			call, g := randomCall(rng, c, tt.lengths, tt.positions)
			attention.Forward(call)
			attention.Backward(call, g)
			checkDifferences(t, call, g)
		})
	}
}

func normal(rng *rand.Rand, dims ...int) tensor.Tensor {
	t := tensor.New(tensor.F64, tensor.Of(dims...))
	for i := range t.F64() {
		t.F64()[i] = rng.NormFloat64()
	}
	return t
}

func randomCall(rng *rand.Rand, c *attention.Config, lengths, positions []int) (*attention.Call, *attention.Gradients) {
	n := 0
	for _, l := range lengths {
		n += l
	}
	q, k, v, z := c.QueryHeads*c.KeyDim, c.KVHeads*c.KeyDim, c.KVHeads*c.ValueDim, c.KVHeads*c.Slots
	call := &attention.Call{
		Config: c, Lengths: lengths, Q: normal(rng, n, q), K: normal(rng, n, k), V: normal(rng, n, v),
		O: normal(rng, n, c.QueryHeads*c.ValueDim),
	}
	g := &attention.Gradients{
		DO: normal(rng, n, c.QueryHeads*c.ValueDim), DQ: normal(rng, n, q), DK: normal(rng, n, k), DV: normal(rng, n, v),
	}
	if c.Slots > 0 {
		call.Z, g.DZ = normal(rng, n, z), normal(rng, n, z)
	}
	for i, l := range lengths {
		call.Final = append(call.Final, attention.NewState(c, tensor.F64))
		var before, gradient *attention.State
		at := l
		if positions != nil && positions[i] > 0 {
			before, gradient = randomState(rng, c, positions[i]), attention.NewState(c, tensor.F64)
			for j := range elements(before.LogGates) {
				before.LogGates.F64()[j] = -math.Abs(before.LogGates.F64()[j])
			}
			at += positions[i]
		}
		call.Initial, g.DInitial = append(call.Initial, before), append(g.DInitial, gradient)
		g.DFinal = append(g.DFinal, randomState(rng, c, at))
	}
	return call, g
}

func randomState(rng *rand.Rand, c *attention.Config, position int) *attention.State {
	s := attention.NewState(c, tensor.F64)
	s.Position, s.Count = position, min(c.Window, position)
	if s.Capacity() > 0 {
		s.Start = rng.IntN(s.Capacity())
	}
	for _, t := range parts(s) {
		for i := range elements(t) {
			t.F64()[i] = rng.NormFloat64()
		}
	}
	return s
}

func parts(s *attention.State) []tensor.Tensor {
	return []tensor.Tensor{s.SlotKeys, s.SlotValues, s.Keys, s.Values, s.LogGates}
}

func elements(t tensor.Tensor) int {
	if !t.Present() {
		return 0
	}
	return t.Len()
}

func loss(c *attention.Call, g *attention.Gradients) float64 {
	attention.Forward(c)
	sum := 0.0
	inner := func(x, y tensor.Tensor) {
		for i := range elements(x) {
			sum += x.Value(i) * y.Value(i)
		}
	}
	inner(c.O, g.DO)
	for i, s := range c.Final {
		x, y := parts(s.Aligned(c.Config)), parts(g.DFinal[i].Aligned(c.Config))
		for j := range x {
			inner(x[j], y[j])
		}
	}
	return sum
}

func checkDifferences(t *testing.T, c *attention.Call, g *attention.Gradients) {
	t.Helper()
	const step = 1e-5
	check := func(name string, x, gradient tensor.Tensor) {
		t.Helper()
		if !x.Present() {
			return
		}
		want := tensor.New(tensor.F64, x.Shape)
		for i, keep := range x.Clone().F64() {
			x.F64()[i] = keep + step
			up := loss(c, g)
			x.F64()[i] = keep - step
			down := loss(c, g)
			x.F64()[i] = keep
			want.F64()[i] = (up - down) / (2 * step)
		}
		if e := tensor.MaxError(gradient, want); !(e <= 1e-6) {
			t.Errorf("%s: error %.2g", name, e)
		}
	}
	check("dq", c.Q, g.DQ)
	check("dk", c.K, g.DK)
	check("dv", c.V, g.DV)
	check("dz", c.Z, g.DZ)
	for i, s := range c.Initial {
		if s == nil {
			continue
		}
		aligned := s.Aligned(c.Config) // the gradient's ring begins in row 0, so must the ring that is varied
		c.Initial[i] = aligned
		x, d := parts(aligned), parts(g.DInitial[i])
		for j, name := range []string{"slot keys", "slot values", "keys", "values", "log gates"} {
			check(fmt.Sprintf("initial state %d: %s", i, name), x[j], d[j])
		}
		if !(g.DInitial[i].Position == s.Position && g.DInitial[i].Count == s.Count) {
			t.Errorf("gradient of initial state %d is at position %d with %d tokens", i, g.DInitial[i].Position, g.DInitial[i].Count)
		}
	}
}
