package cpu

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"nha/attention"
	"nha/backend/cpu/kernel"
	"nha/tensor"
)

// stepCalls is a decode step of three sessions of different depths on states of ring type d, on the processor, and the same in float64 on
// the same numbers.
func stepCalls(c attention.Config, depths []int, d tensor.DType) (narrow, wide *attention.Call) {
	r := rand.New(rand.NewPCG(7, uint64(c.Window)))
	draw := func(columns int) (tensor.Tensor, tensor.Tensor) {
		a, b := tensor.New(tensor.F32, tensor.Of(len(depths), columns)), tensor.New(tensor.F64, tensor.Of(len(depths), columns))
		for i := range a.Len() {
			a.SetValue(i, r.NormFloat64())
		}
		tensor.Convert(b, a)
		return a, b
	}
	narrow, wide = &attention.Call{Config: &c}, &attention.Call{Config: &c}
	narrow.Q, wide.Q = draw(c.QueryHeads * c.KeyDim)
	narrow.K, wide.K = draw(c.KVHeads * c.KeyDim)
	narrow.V, wide.V = draw(c.KVHeads * c.ValueDim)
	if c.Slots > 0 {
		narrow.Z, wide.Z = draw(c.KVHeads * c.Slots)
	}
	narrow.O, wide.O = draw(c.QueryHeads * c.ValueDim)
	narrow.LSE, wide.LSE = draw(c.QueryHeads)
	narrow.Share, wide.Share = draw(c.QueryHeads)
	for _, depth := range depths {
		narrow.Lengths, wide.Lengths = append(narrow.Lengths, 1), append(wide.Lengths, 1)
		s := attention.NewState(&c, d)
		s.Reserve(&c, depth)
		s.Position, s.Count = depth, min(depth, c.Window)
		if s.Count > 0 && s.Count == s.Capacity() {
			s.Start = depth % s.Count
		}
		for _, t := range []tensor.Tensor{s.SlotKeys, s.SlotValues, s.Keys, s.Values} {
			for i := range t.Len() {
				t.SetValue(i, r.NormFloat64())
			}
		}
		for i := range s.LogGates.Len() {
			s.LogGates.SetValue(i, -r.ExpFloat64()/8)
		}
		narrow.Initial, wide.Initial = append(narrow.Initial, s), append(wide.Initial, s.ConvertTo(tensor.F64))
	}
	narrow.Final, wide.Final = narrow.Initial, wide.Initial
	return narrow, wide
}

// TestStepReaches: a decode step over windows of many reaches, rings that wrap, several sessions, slots or none, with positions or
// without, in float32 and in half precision, is the reference's on the same ring; and neither sharing reaches out nor where a ring begins
// changes a bit.
func TestStepReaches(t *testing.T) {
	pool, alone := kernel.NewPool(2), kernel.NewPool(1)
	defer pool.Close()
	defer alone.Close()
	depths := []int{900, 3, 700, 0}
	configs := []attention.Config{
		{QueryHeads: 3, KVHeads: 1, KeyDim: 64, ValueDim: 64, Window: attention.Full},
		{QueryHeads: 4, KVHeads: 2, KeyDim: 64, ValueDim: 64, Window: 600, Slots: 8},
		{QueryHeads: 4, KVHeads: 1, KeyDim: 24, ValueDim: 40, Window: 300},
		{QueryHeads: 2, KVHeads: 2, KeyDim: 128, ValueDim: 128, Window: attention.Full, Slots: 4, EmptySlots: attention.Mask},
		{QueryHeads: 2, KVHeads: 1, KeyDim: 32, ValueDim: 32, Window: 64, Slots: 16},
	}
	truth := map[string][]*attention.Call{} // of the reference, one call a step
	eachSet(t, func(t *testing.T) {
		for _, c := range configs {
			for _, rope := range []bool{true, false} {
				for _, d := range []tensor.DType{tensor.F32, tensor.F16} {
					c.Scale, c.GateNormalizer, c.Rope = 1/math.Sqrt(float64(c.KeyDim)), 8, nil
					if rope {
						c.Rope = attention.NewRope(c.KeyDim, 10000)
					}
					name := fmt.Sprintf("K%d M%d W%d rope %t %v", c.KeyDim, c.Slots, c.Window, rope, d)
					got, want := stepCalls(c, depths, d)
					serial, _ := stepCalls(c, depths, d)
					for i, s := range serial.Initial { // whose rings begin in row 0, as those that come from a file
						serial.Initial[i] = s.Aligned(&c)
					}
					serial.Final = serial.Initial
					for step := range 2 { // the ring moves on
						newNHA(pool).Forward(got)
						newNHA(alone).Forward(serial)
						if len(truth[name]) == step {
							attention.Forward(want)
							kept := *want
							kept.O, kept.LSE, kept.Share = want.O.Clone(), want.LSE.Clone(), want.Share.Clone()
							truth[name] = append(truth[name], &kept)
						}
						w := truth[name][step]
						for what, p := range map[string][2]tensor.Tensor{"o": {got.O, w.O}, "lse": {got.LSE, w.LSE}, "share": {got.Share, w.Share}} {
							limit := 2e-5
							if d == tensor.F16 { // the reference keeps the tokens of this test unrounded
								limit = 1e-3
							}
							if e := tensor.MaxError(p[0], p[1]); !(e <= limit) {
								t.Errorf("%s: %s is off by %.2g", name, what, e)
							}
						}
						if string(got.O.Bytes()) != string(serial.O.Bytes()) {
							t.Errorf("%s: one thread, or a ring that begins elsewhere, gives other bits", name)
						}
					}
				}
			}
		}
	})
}

// TestHalfRing: chunks and steps over a ring in half precision agree with those over the same ring in float32, but for the rounding of
// what they add to it.
func TestHalfRing(t *testing.T) {
	pool := kernel.NewPool(2)
	defer pool.Close()
	n := newNHA(pool)
	for _, window := range []int{20, attention.Full} {
		c, _ := randomCall(1, 150, 4, 2, 24, window)
		half, full := attention.NewState(c.Config, tensor.F16), attention.NewState(c.Config, tensor.F32)
		for step := range 3 {
			c.Initial, c.Final = []*attention.State{full}, []*attention.State{full}
			n.Forward(c)
			want := c.O.Clone()
			c.Initial, c.Final = []*attention.State{half}, []*attention.State{half}
			n.Forward(c)
			if e := tensor.MaxError(c.O, want); !(e <= 2e-3) || step > 0 && e == 0 {
				t.Errorf("window %d, chunk %d: off by %.2g", window, step, e)
			}
			if e := half.ConvertTo(tensor.F32).MaxError(c.Config, full); !(e <= 1e-3) {
				t.Errorf("window %d, chunk %d: state off by %.2g", window, step, e)
			}
		}
	}
}
