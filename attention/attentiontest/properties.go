package attentiontest

import (
	"testing"

	"pgregory.net/rapid"

	"nha/attention"
)

func (s suite) properties(t *testing.T) {
	t.Run("any cut is the same function", rapid.MakeCheck(s.anyCut))
	t.Run("packed is separate", rapid.MakeCheck(s.packedIsSeparate))
	t.Run("neighbours change nothing", rapid.MakeCheck(s.neighboursChangeNothing))
	t.Run("fork then continue", rapid.MakeCheck(s.forkThenContinue))
}

var drawGates = rapid.SampledFrom([]gates{softGates, strongGates, hardGates, wildGates, {3, 1}, {-3, 1}})

func drawConfig(t *rapid.T) *attention.Config {
	w := rapid.SampledFrom([]int{0, 1, 3, 16, 17, 64, full}).Draw(t, "W")
	m := rapid.SampledFrom([]int{0, 1, 7, 16}).Draw(t, "M")
	if w == 0 && m == 0 {
		m = 3
	}
	h := rapid.IntRange(1, 2).Draw(t, "H")
	group := rapid.SampledFrom([]int{1, 2, 4}).Draw(t, "Hq/H")
	k := rapid.SampledFrom([]int{4, 8, 10, 16}).Draw(t, "K")
	v := rapid.SampledFrom([]int{4, 7, 8, 16}).Draw(t, "V")
	c := newConfig(w, m, group*h, h, k, v)
	if rapid.Bool().Draw(t, "mask") {
		c.EmptySlots = attention.Mask
	}
	if rapid.Bool().Draw(t, "without rope") {
		c.Rope = nil
	}
	return c
}

// drawBatch is a problem of several sequences, some of them with a state from before.
func (s suite) drawBatch(t *rapid.T) *problem {
	c := drawConfig(t)
	lengths := rapid.SliceOfN(rapid.SampledFrom([]int{1, 2, 5, 16, 31, 64, 70}), 2, 4).Draw(t, "lengths")
	var positions []int
	if rapid.Bool().Draw(t, "carried in") {
		positions = rapid.SliceOfN(rapid.SampledFrom([]int{0, 1, 16, 50, 90}), len(lengths), len(lengths)).Draw(t, "positions")
	}
	return newProblem(rapid.Uint64().Draw(t, "seed"), s.op.DType(), c, lengths, positions, drawGates.Draw(t, "gates"))
}

// anyCut: prefill chunks and single steps, in place or not, give the outputs, states and gradients of one call. Values and keys
// are shifted off zero in some draws, where careless sums cancel.
func (s suite) anyCut(t *rapid.T) {
	c := drawConfig(t)
	n := rapid.IntRange(1, 150).Draw(t, "T")
	var positions []int
	if rapid.Bool().Draw(t, "carried in") {
		positions = []int{rapid.IntRange(0, 100).Draw(t, "position")}
	}
	p := newProblem(rapid.Uint64().Draw(t, "seed"), s.op.DType(), c, []int{n}, positions, drawGates.Draw(t, "gates"))
	if shift := rapid.SampledFrom([]float64{0, 0, 4}).Draw(t, "shift"); shift != 0 {
		addTo(p.v, shift)
		addTo(p.k, shift)
	}
	whole, wholeG := s.run(p)

	var cuts []int // ends of the parts
	for at := 0; at < n; {
		at = min(n, at+rapid.SampledFrom([]int{1, 1, 1, 2, 3, 7, 16, 32, 63, 64, 65}).Draw(t, "part"))
		cuts = append(cuts, at)
	}
	inPlace := rapid.Bool().Draw(t, "in place")
	c2, g2 := p.call(s.op.DType())
	s.forwardInParts(c2, g2, cuts, inPlace)
	s.compareForward(t, c2, whole, Tolerances{Output: s.tol.Cut, State: s.tol.Cut})
	if !inPlace {
		s.backwardInParts(c2, g2, cuts)
		s.compare(t, c2, whole, g2, wholeG, Tolerances{Output: s.tol.Cut, State: s.tol.Cut, Gradient: s.tol.Gradient})
	}
}

// forwardInParts runs a call of one sequence in parts that end at cuts.
func (s suite) forwardInParts(c *attention.Call, g *attention.Gradients, cuts []int, inPlace bool) {
	var before *attention.State
	if c.Initial != nil {
		before = c.Initial[0]
	}
	at := 0
	for _, end := range cuts {
		p, _ := part(c, g, at, end)
		after := attention.NewState(c.Config, s.op.DType())
		if inPlace && before != nil {
			after = before
		}
		p.Initial, p.Final = []*attention.State{before}, []*attention.State{after}
		s.op.Forward(p)
		before, at = after, end
	}
	c.Final = []*attention.State{before}
}

// backwardInParts computes forward again, keeping every state, and walks the parts backwards: the gradient of a part's initial
// state is that of the final state of the part before.
func (s suite) backwardInParts(c *attention.Call, g *attention.Gradients, cuts []int) {
	d := s.op.DType()
	states := []*attention.State{nil}
	if c.Initial != nil {
		states[0] = c.Initial[0]
	}
	calls := make([]*attention.Call, len(cuts))
	gradients := make([]*attention.Gradients, len(cuts))
	at := 0
	for i, end := range cuts {
		calls[i], gradients[i] = part(c, g, at, end)
		states = append(states, attention.NewState(c.Config, d))
		calls[i].Initial, calls[i].Final = states[i:i+1], states[i+1:i+2]
		s.op.Forward(calls[i])
		at = end
	}
	next := g.DFinal
	for i := len(cuts) - 1; i >= 0; i-- {
		gradients[i].DFinal = next
		if i > 0 {
			gradients[i].DInitial = []*attention.State{attention.NewState(c.Config, d)}
		} else {
			gradients[i].DInitial = g.DInitial
		}
		s.op.Backward(calls[i], gradients[i])
		next = gradients[i].DInitial
	}
}

func (s suite) packedIsSeparate(t *rapid.T) {
	p := s.drawBatch(t)
	c, g := s.run(p)
	at := 0
	for i, n := range p.lengths {
		alone, aloneG := s.run(p.sequence(i))
		ours, oursG := part(c, g, at, at+n)
		ours.Final = c.Final[i : i+1]
		if g.DInitial != nil {
			oursG.DInitial = g.DInitial[i : i+1]
		}
		s.compare(t, ours, alone, oursG, aloneG, Tolerances{Output: s.tol.Cut, State: s.tol.Cut, Gradient: s.tol.Gradient})
		at += n
	}
}

// neighboursChangeNothing: whatever stands in the other sequences, even NaN, this one's results are the same bits.
func (s suite) neighboursChangeNothing(t *rapid.T) {
	p := s.drawBatch(t)
	ours := rapid.IntRange(0, len(p.lengths)-1).Draw(t, "ours")
	c, g := s.run(p)
	s.spoil(p, ours, rapid.SampledFrom([]float64{1e4, nan}).Draw(t, "neighbour"))
	spoilt, spoiltG := s.run(p)
	sameSequence(t, ours, c, spoilt, g, spoiltG)
}

// spoil overwrites the inputs of every sequence but one.
func (s suite) spoil(p *problem, ours int, x float64) {
	for i := range p.lengths {
		if i == ours {
			continue
		}
		other := p.sequence(i)
		setTo(other.q, x)
		setTo(other.k, x)
		setTo(other.v, x)
		setTo(other.z, x)
		setTo(other.do, x)
		states := other.dFinal
		if p.initial != nil {
			states = append(states[:1:1], other.initial...)
		}
		for _, st := range states {
			setTo(st.SlotKeys, x)
			setTo(st.SlotValues, x)
			setTo(st.Keys, x)
			setTo(st.Values, x)
		}
	}
}

func sameSequence(t failer, i int, c, d *attention.Call, g, h *attention.Gradients) {
	t.Helper()
	from := 0
	for _, n := range c.Lengths[:i] {
		from += n
	}
	c1, g1 := part(c, g, from, from+c.Lengths[i])
	d1, h1 := part(d, h, from, from+c.Lengths[i])
	sameBits(t, "o", c1.O, d1.O)
	sameBits(t, "lse", c1.LSE, d1.LSE)
	sameBits(t, "slot share", c1.Share, d1.Share)
	sameBits(t, "dq", g1.DQ, h1.DQ)
	sameBits(t, "dk", g1.DK, h1.DK)
	sameBits(t, "dv", g1.DV, h1.DV)
	sameBits(t, "dz", g1.DZ, h1.DZ)
	sameState(t, "final state", c.Config, c.Final[i], d.Final[i])
	if g.DInitial != nil {
		sameState(t, "gradient of the initial state", c.Config, g.DInitial[i], h.DInitial[i])
	}
}

// forkThenContinue: a state is a value. Two continuations of one prefix, one in place on a copy, are what they would have been
// alone, and the prefix's state stays what it was.
func (s suite) forkThenContinue(t *rapid.T) {
	c := drawConfig(t)
	n := rapid.IntRange(1, 80).Draw(t, "prefix")
	more := rapid.IntRange(1, 70).Draw(t, "more")
	z := drawGates.Draw(t, "gates")
	seed := rapid.Uint64().Draw(t, "seed")
	s.fork(t, c, seed, n, more, z)
}

func (s suite) fork(t failer, c *attention.Config, seed uint64, n, more int, z gates) {
	t.Helper()
	prefix, _ := newProblem(seed, s.op.DType(), c, []int{n}, nil, z).call(s.op.DType())
	s.op.Forward(prefix)
	state := prefix.Final[0]
	kept := state.Clone()

	goOn := func(seed uint64, from, to *attention.State) *attention.Call {
		call, _ := newProblem(seed, s.op.DType(), c, []int{more}, nil, z).call(s.op.DType())
		call.Initial, call.Final = []*attention.State{from}, []*attention.State{to}
		s.op.Forward(call)
		return call
	}
	a := goOn(seed+1, state, attention.NewState(c, s.op.DType()))
	sameState(t, "state after a continuation from it", c, state, kept)
	copied := state.Clone()
	b := goOn(seed+2, copied, copied)
	sameState(t, "state after a continuation of its copy", c, state, kept)
	again := goOn(seed+1, state, state)
	sameBits(t, "outputs of the same continuation, in place", again.O, a.O)
	sameState(t, "state of the same continuation, in place", c, again.Final[0], a.Final[0])
	rewound := goOn(seed+2, kept, attention.NewState(c, s.op.DType()))
	sameBits(t, "outputs after rewinding", rewound.O, b.O)
	sameState(t, "state after rewinding", c, rewound.Final[0], b.Final[0])
}
