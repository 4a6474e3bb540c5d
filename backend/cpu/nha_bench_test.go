package cpu

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"nha/attention"
	"nha/backend/cpu/kernel"
	"nha/tensor"
)

// randomCall is a call of B sequences of T tokens with heads of 64 and room for every result.
func randomCall(b, t, hq, h, m, w int) (*attention.Call, *attention.Gradients) {
	const d = 64
	rng := rand.New(rand.NewPCG(1, 1))
	draw := func(columns int) tensor.Tensor {
		x := tensor.New(tensor.F32, tensor.Of(b*t, columns))
		for i := range x.F32() {
			x.F32()[i] = float32(rng.NormFloat64())
		}
		return x
	}
	room := func(columns int) tensor.Tensor { return tensor.New(tensor.F32, tensor.Of(b*t, columns)) }
	config := &attention.Config{
		QueryHeads: hq, KVHeads: h, KeyDim: d, ValueDim: d, Slots: m, Window: w, Scale: 0.125, GateNormalizer: 8,
		Rope: attention.NewRope(d, 10000),
	}
	c := &attention.Call{Config: config, Q: draw(hq * d), K: draw(h * d), V: draw(h * d), O: room(hq * d), LSE: room(hq), Share: room(hq)}
	g := &attention.Gradients{DO: draw(hq * d), DQ: room(hq * d), DK: room(h * d), DV: room(h * d)}
	if m > 0 {
		c.Z, g.DZ = draw(h*m), room(h*m)
	}
	for range b {
		c.Lengths = append(c.Lengths, t)
	}
	return c, g
}

func BenchmarkNHA(b *testing.B) {
	pool := kernel.NewPool(0)
	defer pool.Close()
	kernel.Active()
	for _, s := range []struct{ b, t, hq, h, m, w int }{
		{1, 512, 8, 8, 64, 64}, {1, 2048, 8, 8, 64, 64}, {1, 8192, 8, 8, 64, 64}, {1, 32768, 8, 8, 64, 64},
		{8, 256, 4, 4, 64, 32}, {8, 256, 4, 4, 0, attention.Full}, {1, 2048, 8, 8, 0, attention.Full}, {1, 2048, 8, 2, 64, 64},
	} {
		c, g := randomCall(s.b, s.t, s.hq, s.h, s.m, s.w)
		n := newNHA(pool)
		for _, pass := range []struct {
			name string
			run  func()
		}{{"forward", func() { n.Forward(c) }}, {"backward", func() { n.Backward(c, g) }}} {
			b.Run(fmt.Sprintf("B%d_T%d_Hq%d_H%d_M%d_W%d/%s", s.b, s.t, s.hq, s.h, s.m, s.w, pass.name), func(b *testing.B) {
				for b.Loop() {
					pass.run()
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(s.b*s.t), "ns/token")
			})
		}
	}
}

func BenchmarkNHAStep(b *testing.B) {
	pool := kernel.NewPool(0)
	defer pool.Close()
	kernel.Active()
	for _, batch := range []int{1, 16} {
		for _, w := range []int{32, 64} {
			c, _ := randomCall(batch, 1, 8, 8, 64, w)
			for range batch {
				s := attention.NewState(c.Config, tensor.F32)
				c.Initial, c.Final = append(c.Initial, s), append(c.Final, s)
			}
			n := newNHA(pool)
			for range w + 1 {
				n.Forward(c)
			}
			b.Run(fmt.Sprintf("B%d_W%d", batch, w), func(b *testing.B) {
				for b.Loop() {
					n.Forward(c)
				}
			})
		}
	}
}
