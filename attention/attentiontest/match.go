package attentiontest

import (
	"fmt"
	"math"
	"testing"

	"nha/attention"
)

const full = attention.Full

// matchCase is one row of the table. Sequences and the positions they start at are lists; everything not given is 0.
type matchCase struct {
	t, positions []int
	w, m         int
	hq, h, k, v  int
	mask, noRope bool
	gates        gates
}

// matchCases cover every window and slot count, group sizes, odd head sizes, both empty-slot rules, carried-in states and
// lengths around the edges of chunks.
var matchCases = []matchCase{
	{t: []int{1}, w: 3, m: 7, hq: 1, h: 1, k: 4, v: 4, gates: softGates},
	{t: []int{1}, w: 0, m: 1, hq: 2, h: 1, k: 4, v: 6, gates: softGates},
	{t: []int{1}, w: 1, m: 7, hq: 2, h: 2, k: 8, v: 8, mask: true, gates: softGates},
	{t: []int{2}, w: 1, m: 1, hq: 1, h: 1, k: 4, v: 4, gates: softGates},
	{t: []int{63}, w: 0, m: 16, hq: 2, h: 2, k: 16, v: 16, gates: softGates},
	{t: []int{64}, w: 0, m: 64, hq: 4, h: 1, k: 32, v: 32, gates: softGates},
	{t: []int{65}, w: 0, m: 7, hq: 2, h: 1, k: 24, v: 40, noRope: true, gates: softGates},
	{t: []int{63}, w: 1, m: 16, hq: 4, h: 2, k: 16, v: 8, gates: softGates},
	{t: []int{64}, w: 3, m: 1, hq: 4, h: 4, k: 8, v: 16, mask: true, gates: softGates},
	{t: []int{65}, w: 16, m: 64, hq: 1, h: 1, k: 64, v: 64, gates: softGates},
	{t: []int{127}, w: 16, m: 16, hq: 4, h: 2, k: 32, v: 32, gates: softGates},
	{t: []int{128}, w: 64, m: 64, hq: 2, h: 1, k: 64, v: 64, mask: true, gates: softGates},
	{t: []int{129}, w: 64, m: 7, hq: 2, h: 2, k: 40, v: 24, gates: softGates},
	{t: []int{255}, w: 96, m: 16, hq: 2, h: 1, k: 16, v: 16, gates: softGates},
	{t: []int{256}, w: 96, m: 7, hq: 4, h: 1, k: 8, v: 12, mask: true, gates: softGates},
	{t: []int{257}, w: 3, m: 64, hq: 1, h: 1, k: 16, v: 16, gates: softGates},
	{t: []int{300}, w: 64, m: 16, hq: 2, h: 2, k: 32, v: 32, gates: softGates},
	{t: []int{300}, w: 0, m: 16, hq: 2, h: 1, k: 16, v: 24, gates: strongGates},
	{t: []int{130}, w: 16, m: 16, hq: 1, h: 1, k: 128, v: 128, gates: softGates},
	{t: []int{70}, w: 32, m: 80, hq: 2, h: 2, k: 128, v: 64, gates: softGates},
	{t: []int{65}, w: full, m: 7, hq: 2, h: 1, k: 16, v: 16, gates: softGates},
	{t: []int{129}, w: full, m: 16, hq: 4, h: 2, k: 24, v: 40, mask: true, gates: softGates},
	{t: []int{128}, w: full, m: 0, hq: 4, h: 2, k: 32, v: 32},
	{t: []int{257}, w: full, m: 0, hq: 2, h: 2, k: 16, v: 16, noRope: true},
	{t: []int{129}, w: 1, m: 0, hq: 1, h: 1, k: 8, v: 8},
	{t: []int{200}, w: 16, m: 0, hq: 4, h: 1, k: 16, v: 16, mask: true},
	{t: []int{256}, w: 96, m: 0, hq: 2, h: 1, k: 24, v: 40},
	{t: []int{200}, w: 20, m: 16, hq: 2, h: 1, k: 32, v: 32, gates: wildGates},
	{t: []int{150}, w: 0, m: 16, hq: 2, h: 2, k: 16, v: 16, gates: wildGates},
	{t: []int{200}, w: 16, m: 7, hq: 2, h: 1, k: 16, v: 16, gates: hardGates},
	{t: []int{300}, w: 33, m: 16, hq: 2, h: 1, k: 16, v: 16, mask: true, gates: strongGates},
	{t: []int{100}, w: 100, m: 7, hq: 1, h: 1, k: 8, v: 8, gates: softGates},
	{t: []int{100}, w: 99, m: 7, hq: 1, h: 1, k: 8, v: 8, mask: true, gates: softGates},

	{t: []int{1, 33, 64, 2, 100}, w: 16, m: 16, hq: 4, h: 2, k: 16, v: 16, gates: softGates},
	{t: []int{1, 1, 1, 1, 1, 1, 1}, w: 3, m: 7, hq: 2, h: 1, k: 8, v: 8, mask: true, gates: softGates},
	{t: []int{5, 129, 64, 1}, w: 0, m: 16, hq: 2, h: 1, k: 24, v: 40, gates: softGates},
	{t: []int{65, 3, 70}, w: full, m: 7, hq: 2, h: 1, k: 16, v: 16, gates: softGates},
	{t: []int{65, 3, 70}, w: full, m: 0, hq: 2, h: 2, k: 16, v: 16},
	{t: []int{3, 0, 5}, w: 2, m: 3, hq: 1, h: 1, k: 4, v: 4, gates: softGates},

	{t: []int{1}, positions: []int{1}, w: 3, m: 7, hq: 2, h: 1, k: 8, v: 8, gates: softGates},
	{t: []int{1}, positions: []int{100}, w: 16, m: 16, hq: 4, h: 2, k: 16, v: 16, gates: softGates},
	{t: []int{70}, positions: []int{15}, w: 16, m: 16, hq: 4, h: 2, k: 16, v: 16, mask: true, gates: softGates},
	{t: []int{70}, positions: []int{16}, w: 16, m: 7, hq: 1, h: 1, k: 24, v: 40, mask: true, gates: softGates},
	{t: []int{5}, positions: []int{9}, w: 64, m: 7, hq: 2, h: 2, k: 16, v: 16, mask: true, gates: softGates},
	{t: []int{129}, positions: []int{1000}, w: 64, m: 64, hq: 2, h: 1, k: 32, v: 32, gates: softGates},
	{t: []int{130}, positions: []int{77}, w: 0, m: 16, hq: 2, h: 1, k: 16, v: 16, gates: softGates},
	{t: []int{65}, positions: []int{77}, w: full, m: 7, hq: 2, h: 1, k: 16, v: 16, gates: softGates},
	{t: []int{65}, positions: []int{77}, w: full, m: 0, hq: 4, h: 2, k: 16, v: 16},
	{t: []int{100}, positions: []int{300}, w: 96, m: 16, hq: 2, h: 1, k: 16, v: 16, gates: wildGates},
	{t: []int{40}, positions: []int{300}, w: 96, m: 0, hq: 2, h: 1, k: 16, v: 16},
	{t: []int{1, 65, 2, 30}, positions: []int{5, 0, 64, 7}, w: 16, m: 16, hq: 4, h: 2, k: 16, v: 16, mask: true, gates: softGates},
	{t: []int{1, 1, 1, 1}, positions: []int{500, 0, 3, 2}, w: 3, m: 16, hq: 4, h: 1, k: 32, v: 32, gates: softGates},
}

func (m matchCase) String() string {
	w := fmt.Sprint(m.w)
	if m.w == full {
		w = "full"
	}
	name := fmt.Sprintf("T%v W%s M%d Hq%d H%d K%d V%d", m.t, w, m.m, m.hq, m.h, m.k, m.v)
	if m.positions != nil {
		name += fmt.Sprintf(" from %v", m.positions)
	}
	if m.mask {
		name += " mask"
	}
	if m.noRope {
		name += " without rope"
	}
	if m.m > 0 {
		name += fmt.Sprintf(" gates %v", m.gates.mean)
	}
	return name
}

func (m matchCase) config() *attention.Config {
	c := newConfig(m.w, m.m, m.hq, m.h, m.k, m.v)
	if m.mask {
		c.EmptySlots = attention.Mask
	}
	if m.noRope {
		c.Rope = nil
	}
	return c
}

func newConfig(w, m, hq, h, k, v int) *attention.Config {
	return &attention.Config{
		QueryHeads: hq, KVHeads: h, KeyDim: k, ValueDim: v, Slots: m, Window: w,
		Scale: 1 / math.Sqrt(float64(k)), GateNormalizer: 8, Rope: attention.NewRope(k, 10000),
	}
}

func (s suite) match(t *testing.T) {
	for i, m := range matchCases {
		t.Run(m.String(), func(t *testing.T) {
			p := newProblem(uint64(i), s.op.DType(), m.config(), m.t, m.positions, m.gates)
			c, g := s.run(p)
			want, wantG := reference(p)
			s.compare(t, c, want, g, wantG, s.tol)
		})
	}
	t.Run("without states", func(t *testing.T) {
		p := newProblem(99, s.op.DType(), newConfig(16, 16, 4, 2, 16, 16), []int{70, 40}, nil, softGates)
		p.wantStates = false
		c, g := s.run(p)
		want, wantG := reference(p)
		s.compare(t, c, want, g, wantG, s.tol)
	})
}
