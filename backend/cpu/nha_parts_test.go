package cpu

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"nha/attention"
	"nha/backend/cpu/kernel"
	"nha/tensor"
)

// A head that is cut into parts against the reference: initial and final states, groups, both rules for empty slots, windows
// shorter and longer than a part. It must be cut wherever there are threads for it.
func TestNHAParts(t *testing.T) {
	for i, s := range []struct {
		lengths []int
		held    int
		hq, m   int
		w       int
		mask    bool
		gate    float32 // mean of the gates' logits
	}{
		{lengths: []int{1100}, hq: 1, m: 20, w: 0},
		{lengths: []int{1100}, held: 70, hq: 1, m: 20, w: 0},
		{lengths: []int{1000}, hq: 2, m: 20, w: 40, mask: true},
		{lengths: []int{1000}, held: 33, hq: 2, m: 20, w: 40, mask: true},
		{lengths: []int{900}, held: 500, hq: 4, m: 16, w: 300},
		{lengths: []int{900}, hq: 1, m: 16, w: 700, mask: true},
		{lengths: []int{700}, held: 100, hq: 2, m: 7, w: attention.Full},
		{lengths: []int{700}, held: 100, hq: 2, m: 0, w: attention.Full},
		{lengths: []int{900}, held: 100, hq: 1, m: 0, w: 64},
		{lengths: []int{1, 900}, held: 50, hq: 3, m: 9, w: 21},
		{lengths: []int{1000}, held: 50, hq: 2, m: 9, w: 21, gate: 8},
		{lengths: []int{1000}, held: 50, hq: 2, m: 9, w: 21, gate: -60},
		{lengths: []int{500, 0, 400}, held: 50, hq: 2, m: 9, w: 21},
	} {
		c, g := statefulCall(uint64(i), s.lengths, s.held, s.hq, s.m, s.w, s.mask)
		if c.Z.Present() {
			for i := range c.Z.F32() {
				c.Z.F32()[i] += s.gate
			}
		}
		want, wantG := wide(c, g)
		attention.Forward(want)
		attention.Backward(want, wantG)
		eachSet(t, func(t *testing.T) {
			for _, threads := range []int{1, 2, 5} {
				t.Run(fmt.Sprintf("T%v from %d Hq%d M%d W%d mask %v gates %v threads %d", s.lengths, s.held, s.hq, s.m, s.w, s.mask, s.gate, threads), func(t *testing.T) {
					pool := kernel.NewPool(threads)
					defer pool.Close()
					n := newNHA(pool)
					n.Forward(c)
					n.Backward(c, g)
					if cut := len(n.parts) > len(s.lengths); cut != (threads > len(s.lengths)) {
						t.Errorf("%d parts", len(n.parts))
					}
					near := func(name string, got, want tensor.Tensor, limit float64) {
						t.Helper()
						if e := tensor.MaxError(got, want); got.Present() && !(e <= limit) {
							t.Errorf("%s: error %.3g, limit %.3g", name, e, limit)
						}
					}
					near("o", c.O, want.O, 2e-5)
					near("lse", c.LSE, want.LSE, 2e-5)
					near("share", c.Share, want.Share, 2e-5)
					near("dq", g.DQ, wantG.DQ, 1e-4)
					near("dk", g.DK, wantG.DK, 1e-4)
					near("dv", g.DV, wantG.DV, 1e-4)
					near("dz", g.DZ, wantG.DZ, 1e-4)
					states := func(name string, got, want []*attention.State, limit float64) {
						for i := range got {
							x, y := got[i], want[i]
							if x.Position != y.Position || x.Count != y.Count || x.Start != y.Start || x.Capacity() != y.Capacity() {
								t.Fatalf("%s %d: another ring", name, i)
							}
							near(name+" slot keys", x.SlotKeys, y.SlotKeys, limit)
							near(name+" slot values", x.SlotValues, y.SlotValues, limit)
							near(name+" keys", x.Keys, y.Keys, limit)
							near(name+" values", x.Values, y.Values, limit)
							near(name+" gates", x.LogGates, y.LogGates, limit)
						}
					}
					states("final state", c.Final, want.Final, 2e-5)
					states("gradient of initial state", g.DInitial, wantG.DInitial, 1e-4)
				})
			}
		})
	}
}

// statefulCall is a call of one kv head whose sequences start from what held tokens before them leave (0: from nothing).
func statefulCall(seed uint64, lengths []int, held, hq, m, w int, mask bool) (*attention.Call, *attention.Gradients) {
	total := 0
	for _, n := range lengths {
		total += n
	}
	c, g := randomCall(1, total, hq, 1, m, w)
	c.Lengths = lengths
	if mask {
		c.EmptySlots = attention.Mask
	}
	rng := rand.New(rand.NewPCG(seed, 5))
	for _, n := range lengths {
		final := attention.NewState(c.Config, tensor.F32)
		final.Reserve(c.Config, min(w, held+n))
		final.Position, final.Count = held+n, min(w, held+n)
		for _, x := range []tensor.Tensor{final.SlotKeys, final.SlotValues, final.Keys, final.Values, final.LogGates} {
			for i := range x.Len() {
				x.SetValue(i, rng.NormFloat64())
			}
		}
		g.DFinal = append(g.DFinal, final)
		c.Final = append(c.Final, attention.NewState(c.Config, tensor.F32))
		if held > 0 {
			before, _ := randomCall(1, held, hq, 1, m, w)
			before.Config = c.Config
			initial := attention.NewState(c.Config, tensor.F32)
			before.Final = []*attention.State{initial}
			attention.Forward(before)
			c.Initial = append(c.Initial, initial)
			g.DInitial = append(g.DInitial, attention.NewState(c.Config, tensor.F32))
		}
	}
	return c, g
}

// wide is the same call with results in float64.
func wide(c *attention.Call, g *attention.Gradients) (*attention.Call, *attention.Gradients) {
	x, y := *c, *g
	for _, r := range []*tensor.Tensor{&x.O, &x.LSE, &x.Share, &y.DQ, &y.DK, &y.DV, &y.DZ} {
		if r.Present() {
			*r = tensor.New(tensor.F64, r.Shape)
		}
	}
	x.Final, y.DInitial = nil, nil
	for range c.Final {
		x.Final = append(x.Final, attention.NewState(c.Config, tensor.F64))
	}
	for range g.DInitial {
		y.DInitial = append(y.DInitial, attention.NewState(c.Config, tensor.F64))
	}
	return &x, &y
}

// Three heads on two threads are cut where that costs nothing, forward without slots, and compute the same.
func TestNHAPartsUneven(t *testing.T) {
	pool, alone := kernel.NewPool(2), kernel.NewPool(1)
	defer pool.Close()
	defer alone.Close()
	for _, s := range []struct{ slots, window, parts int }{{0, attention.Full, 6}, {0, 64, 6}, {8, 64, 0}} {
		c, g := randomCall(1, 700, 6, 3, s.slots, s.window)
		n, serial := newNHA(pool), newNHA(alone)
		serial.Forward(c)
		want := c.O.Clone()
		n.Forward(c)
		if len(n.parts) != s.parts {
			t.Errorf("%d slots, window %d: %d parts, want %d", s.slots, s.window, len(n.parts), s.parts)
		}
		if e := tensor.MaxError(c.O, want); !(e <= 1e-5) {
			t.Errorf("%d slots, window %d: off by %.2g", s.slots, s.window, e)
		}
		if n.Backward(c, g); len(n.parts) != 0 {
			t.Errorf("%d slots, window %d: backward in %d parts", s.slots, s.window, len(n.parts))
		}
	}
}
