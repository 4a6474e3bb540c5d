package kernel

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
)

// The slot kernels of every instruction set against the recurrence in float64.

// slotCase is one chunk: inputs in padded matrices whose padding holds 7s that no kernel may touch.
type slotCase struct {
	d                    SlotShape
	state, x, s, q, p, u Matrix
	out, o, dq, dx, da   Matrix
}

func slotMatrix(rng *rand.Rand, rows, columns int, draw func() float64) Matrix {
	m := Matrix{Data: make([]float32, (rows+1)*(columns+16)), Stride: columns + 16}
	for i := range m.Data {
		m.Data[i] = 7
	}
	for i := range rows {
		for j := range columns {
			m.Data[i*m.Stride+j] = float32(draw())
		}
	}
	return m
}

func newSlotCase(seed uint64, d SlotShape) *slotCase {
	rng := rand.New(rand.NewPCG(seed, 3))
	normal := func() float64 { return rng.NormFloat64() }
	zero := func() float64 { return 0 }
	strength := func() float64 { // none, soft and hard gates
		switch rng.IntN(4) {
		case 0:
			return 0
		case 1:
			return 1 - 1e-4*rng.Float64()
		}
		return 0.2 * rng.Float64()
	}
	readers := d.Tokens * d.Group
	return &slotCase{
		d:     d,
		state: slotMatrix(rng, d.Slots, d.Columns, normal), u: slotMatrix(rng, d.Slots, d.Columns, normal),
		x: slotMatrix(rng, d.Tokens, d.Columns, normal), s: slotMatrix(rng, d.Tokens, d.Slots, strength),
		q: slotMatrix(rng, readers, d.Columns, normal), p: slotMatrix(rng, readers, d.Slots, normal),
		out: slotMatrix(rng, readers, d.Slots, normal), o: slotMatrix(rng, readers, d.Columns, normal),
		dq: slotMatrix(rng, readers, d.Columns, normal), dx: slotMatrix(rng, d.Tokens, d.Columns, zero), da: slotMatrix(rng, d.Tokens, d.Slots, normal),
	}
}

func widen(m Matrix) []float64 {
	x := make([]float64, len(m.Data))
	for i, v := range m.Data {
		x[i] = float64(v)
	}
	return x
}

// reference computes every result in float64: states after the chunk, out, o, u, dq, dx, da.
func (c *slotCase) reference() (state, out, o, u, dq, dx, da []float64) {
	d := c.d
	state, out, o = widen(c.state), widen(c.out), widen(c.o)
	u, dq, dx, da = widen(c.u), widen(c.dq), widen(c.dx), widen(c.da)
	x, s, q, p := widen(c.x), widen(c.s), widen(c.q), widen(c.p)
	for i := range d.Slots {
		history := [][]float64{append([]float64(nil), state[i*c.state.Stride:i*c.state.Stride+d.Columns]...)}
		for t := range d.Tokens {
			next := append([]float64(nil), history[t]...)
			for j := range next {
				next[j] += s[t*c.s.Stride+i] * (x[t*c.x.Stride+j] - next[j])
			}
			history = append(history, next)
			for r := t * d.Group; r < (t+1)*d.Group; r++ {
				sum := 0.0
				for j, v := range next {
					sum += v * q[r*c.q.Stride+j]
					o[r*c.o.Stride+j] += p[r*c.p.Stride+i] * v
				}
				out[r*c.out.Stride+i] = sum
			}
		}
		copy(state[i*c.state.Stride:], history[d.Tokens])
		ui := u[i*c.u.Stride : i*c.u.Stride+d.Columns]
		for t := d.Tokens - 1; t >= 0; t-- {
			for r := t * d.Group; r < (t+1)*d.Group; r++ {
				for j := range ui {
					ui[j] += p[r*c.p.Stride+i] * q[r*c.q.Stride+j]
					dq[r*c.dq.Stride+j] += p[r*c.p.Stride+i] * history[t+1][j]
				}
			}
			for j := range ui {
				da[t*c.da.Stride+i] += ui[j] * (history[t][j] - x[t*c.x.Stride+j])
				dx[t*c.dx.Stride+j] += s[t*c.s.Stride+i] * ui[j]
				ui[j] *= 1 - s[t*c.s.Stride+i]
			}
		}
	}
	return state, out, o, u, dq, dx, da
}

func clone(m Matrix) Matrix { return Matrix{append([]float32(nil), m.Data...), m.Stride} }

func checkMatrix(t *testing.T, name string, got Matrix, want []float64) {
	t.Helper()
	worst, scale := 0.0, 0.0
	for i, v := range want {
		scale = max(scale, math.Abs(v))
		if e := math.Abs(float64(got.Data[i]) - v); !(e <= worst) {
			worst = e
		}
	}
	if !(worst <= 2e-6*scale) {
		t.Errorf("%s: error %.3g of %.3g", name, worst, scale)
	}
}

func TestSlotKernels(t *testing.T) {
	active := Active()
	defer Use(active)
	for _, name := range Available() {
		if err := Use(name); err != nil {
			t.Fatal(err)
		}
		for seed, d := range []SlotShape{
			{1, 1, 4, 32}, {5, 1, 8, 64}, {64, 1, 64, 64}, {33, 2, 20, 96}, {16, 4, 16, 128}, {3, 3, 80, 32},
		} {
			t.Run(fmt.Sprintf("%s/%v", name, d), func(t *testing.T) {
				c := newSlotCase(uint64(seed), d)
				state, out, o, u, dq, dx, da := c.reference()

				s, x := clone(c.state), clone(c.out)
				SlotRead(d, s, c.x, c.s, c.q, x)
				checkMatrix(t, "read's state", s, state)
				checkMatrix(t, "read", x, out)

				s, x = clone(c.state), clone(c.o)
				SlotWrite(d, s, c.x, c.s, c.p, x)
				checkMatrix(t, "write's state", s, state)
				checkMatrix(t, "write", x, o)

				s = clone(c.state)
				update := d
				update.Group = 0
				SlotRead(update, s, c.x, c.s, Matrix{c.q.Data, c.q.Stride}, clone(c.out))
				checkMatrix(t, "update", s, state)

				for _, wanted := range []bool{true, false} {
					gu, gdq, gdx, gda, s := clone(c.u), clone(c.dq), clone(c.dx), clone(c.da), clone(c.state)
					to := gdq
					if !wanted {
						to = Matrix{}
					}
					SlotBackward(d, s, gu, c.x, c.s, c.p, c.q, to, gdx, gda, make([]float32, SlotKeep(d.Tokens)))
					checkMatrix(t, "U", gu, u)
					checkMatrix(t, "dx", gdx, dx)
					checkMatrix(t, "da", gda, da)
					if wanted {
						checkMatrix(t, "dq", gdq, dq)
					}
				}
			})
		}
	}
}

func TestSoftmaxBackward(t *testing.T) {
	active := Active()
	defer Use(active)
	rng := rand.New(rand.NewPCG(1, 2))
	for _, name := range Available() {
		if err := Use(name); err != nil {
			t.Fatal(err)
		}
		for n := range 40 {
			p, g, d := make([]float32, n), make([]float32, n), make([]float32, n+1)
			for i := range p {
				p[i], g[i] = rng.Float32(), float32(rng.NormFloat64())
			}
			SoftmaxBackward(d[:n], p, g, 0.5)
			for i := range p {
				if want := float64(p[i]) * (float64(g[i]) - 0.5); math.Abs(float64(d[i])-want) > 1e-6 {
					t.Errorf("%s, element %d of %d: %v, want %v", name, i, n, d[i], want)
				}
			}
			if d[n] != 0 {
				t.Errorf("%s: wrote behind %d elements", name, n)
			}
		}
	}
}

func BenchmarkSlots(b *testing.B) {
	Active()
	for _, tokens := range []int{16, 32, 64} {
		b.Run(fmt.Sprint(tokens), func(b *testing.B) { benchmarkSlots(b, tokens) })
	}
}

func benchmarkSlots(b *testing.B, tokens int) {
	d := SlotShape{tokens, 1, 64, 64}
	c := newSlotCase(1, d)
	keep := make([]float32, SlotKeep(d.Tokens))
	for i, v := range c.s.Data {
		c.s.Data[i] = max(v, 0.01) // adjoints stay bounded
	}
	perPair := func(b *testing.B) {
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(d.Tokens*d.Slots), "ns/token-slot")
	}
	update := d
	update.Group = 0
	for _, k := range []struct {
		name string
		run  func()
	}{
		{"update", func() { SlotRead(update, c.state, c.x, c.s, c.q, c.out) }},
		{"read", func() { SlotRead(d, c.state, c.x, c.s, c.q, c.out) }},
		{"write", func() { SlotWrite(d, c.state, c.x, c.s, c.p, c.o) }},
		{"backward keys", func() { SlotBackward(d, c.state, c.u, c.x, c.s, c.p, c.q, c.dq, c.dx, c.da, keep) }},
		{"backward values", func() { SlotBackward(d, c.state, c.u, c.x, c.s, c.p, c.q, Matrix{}, c.dx, c.da, keep) }},
	} {
		b.Run(k.name, func(b *testing.B) {
			for b.Loop() {
				k.run()
			}
			perPair(b)
		})
	}
}
