package attentiontest

import (
	"math"
	"testing"

	"nha/attention"
	"nha/tensor"
)

// errors are the mistakes of the public reference that concern the operator (SPEC 4, 1 to 10), each a test by name.
func (s suite) errors(t *testing.T) {
	t.Run("decode is the trained function", s.decodeIsTheTrainedFunction)
	t.Run("window 0 is not unlimited", s.windowZero)
	t.Run("full is the whole context", s.fullIsTheWholeContext)
	t.Run("continuing by several tokens keeps the window", s.continuing)
	t.Run("same sinks in prefill and decode", s.sameSinks)
	t.Run("pads never enter the slots", s.pads)
	t.Run("write strength in float32", s.writeStrength)
	t.Run("state per kv head", s.statePerKVHead)
	t.Run("packed documents do not leak", s.packedDocuments)
	t.Run("states fork", s.statesFork)
}

// steps are cuts of n tokens into parts of equal size.
func steps(n, size int) (cuts []int) {
	for at := size; at < n; at += size {
		cuts = append(cuts, at)
	}
	return append(cuts, n)
}

func (s suite) cutLikeReference(t *testing.T, p *problem, cuts []int) {
	t.Helper()
	want := referenceForward(p)
	c, g := p.call(s.op.DType())
	s.forwardInParts(c, g, cuts, true)
	s.compareForward(t, c, want, s.tol)
}

// Error 1: a decode step mixed window and slots half and half, and had no window.
func (s suite) decodeIsTheTrainedFunction(t *testing.T) {
	for _, w := range []int{0, 1, 5, 32, full} {
		p := newProblem(1, s.op.DType(), newConfig(w, 16, 4, 2, 16, 16), []int{70}, nil, softGates)
		s.cutLikeReference(t, p, steps(70, 1))
	}
}

// Error 2: W = 0 was read as no limit. All attention must be on the slots, and a query must not see its position.
func (s suite) windowZero(t *testing.T) {
	c := newConfig(0, 8, 2, 1, 16, 16)
	p := newProblem(2, s.op.DType(), c, []int{100}, nil, softGates)
	got, _ := p.call(s.op.DType())
	s.op.Forward(got)
	for i := range got.Share.Len() {
		if share := got.Share.Value(i); !(math.Abs(share-1) <= s.tol.Output) {
			t.Fatalf("slot share %v at element %d, want 1", share, i)
		}
	}
	p.config = newConfig(full, 8, 2, 1, 16, 16)
	p.wantStates = false
	unlimited, _ := p.call(s.op.DType())
	s.op.Forward(unlimited)
	if e := tensor.MaxError(got.O, unlimited.O); e < 0.1 {
		t.Errorf("window 0 and full differ by %.2g only", e)
	}
}

// Error 3: full meant 2048, and slots were not written for W > 64.
func (s suite) fullIsTheWholeContext(t *testing.T) {
	const n, k = 2100, 4
	c := newConfig(full, 0, 1, 1, k, k)
	c.Rope = nil
	p := newProblem(3, s.op.DType(), c, []int{n}, nil, softGates)
	// The last query asks for the first token alone.
	setTo(p.k.Narrow(1, n), 0)
	setTo(p.k.Narrow(0, 1), 8)
	setTo(p.q.Narrow(n-1, n), 8)
	got, _ := p.call(s.op.DType())
	s.op.Forward(got)
	s.near(t, "what the last token reads of the first", got.O.Narrow(n-1, n), got.V.Narrow(0, 1), s.tol.Output)

	for _, w := range []int{65, 96, 2049} {
		p := newProblem(4, s.op.DType(), newConfig(w, 4, 1, 1, k, k), []int{w + 40}, nil, softGates)
		want := referenceForward(p)
		got, _ := p.call(s.op.DType())
		s.op.Forward(got)
		s.compareForward(t, got, want, s.tol)
		if share := got.Share.Value(w + 39); share <= 0 {
			t.Errorf("W %d: slot share %v after the window has filled", w, share)
		}
		if got.Final[0].SlotKeys.Value(0) == 0 {
			t.Errorf("W %d: the slots are empty after %d tokens", w, w+40)
		}
	}
}

// Error 4: a cached sequence that went on by several tokens lost its window.
func (s suite) continuing(t *testing.T) {
	for _, w := range []int{3, 32, 64, full} {
		p := newProblem(5, s.op.DType(), newConfig(w, 16, 2, 1, 16, 16), []int{120}, nil, softGates)
		s.cutLikeReference(t, p, []int{50, 57, 58, 98, 120})
	}
}

// Error 5: empty slots counted in prefill and not in decode. Queries of 0 make all logits 0: under Count each of the M slots
// weighs as much as a token, under Mask none does until the first has entered.
func (s suite) sameSinks(t *testing.T) {
	const n, w, m = 12, 5, 7
	for _, rule := range []attention.EmptySlots{attention.Count, attention.Mask} {
		c := newConfig(w, m, 2, 1, 8, 8)
		c.EmptySlots = rule
		p := newProblem(6, s.op.DType(), c, []int{n}, nil, softGates)
		setTo(p.q, 0)
		for _, size := range []int{n, 4, 1} {
			call, g := p.call(s.op.DType())
			s.forwardInParts(call, g, steps(n, size), true)
			want := tensor.New(tensor.F64, tensor.Of(n, 2))
			for i := range want.Len() {
				t := i / 2
				if rule == attention.Count || t >= w {
					want.SetValue(i, m/float64(m+min(w, t+1)))
				}
			}
			s.near(t, rule.String()+": slot share", call.Share, want, s.tol.Output)
		}
	}
}

// Error 6: pads entered the slots or kept softmax mass. Sequences of unequal length are packed: every final state is that of
// its own tokens, counted to its own length.
func (s suite) pads(t *testing.T) {
	lengths := []int{3, 64, 17, 65, 1}
	p := newProblem(7, s.op.DType(), newConfig(16, 16, 2, 1, 16, 16), lengths, nil, softGates)
	c, _ := p.call(s.op.DType())
	s.op.Forward(c)
	for i, n := range lengths {
		want := referenceForward(p.sequence(i))
		if c.Final[i].Position != n {
			t.Errorf("sequence %d: position %d, want %d", i, c.Final[i].Position, n)
		}
		s.nearState(t, "final state", c.Config, c.Final[i], want.Final[0], s.tol.State)
	}
}

// Error 7: the write strength was rounded to bfloat16 as 1 - a, 0 for gate logits above 6, while decay went on.
func (s suite) writeStrength(t *testing.T) {
	c := newConfig(0, 4, 1, 1, 8, 8)
	p := newProblem(8, s.op.DType(), c, []int{1}, nil, softGates)
	setTo(p.k, 1)
	setTo(p.v, 1)
	for _, logit := range []float64{6, 8, 16, 32} {
		setTo(p.z, logit)
		call, _ := p.call(s.op.DType())
		s.op.Forward(call)
		want := -math.Expm1(-math.Log1p(math.Exp(-logit)) / 8)
		if got := call.Final[0].SlotKeys.Value(0); !(math.Abs(got-want) <= 2e-5*want) {
			t.Errorf("gate logit %v writes with strength %v, want %v", logit, got, want)
		}
	}
}

// Error 8: a state for every query head. It belongs to the kv head: queries have no part in it, and adding heads costs nothing.
func (s suite) statePerKVHead(t *testing.T) {
	one := newProblem(9, s.op.DType(), newConfig(16, 8, 2, 2, 16, 16), []int{70}, nil, softGates)
	four := newProblem(10, s.op.DType(), newConfig(16, 8, 8, 2, 16, 16), []int{70}, nil, softGates)
	four.k, four.v, four.z = one.k, one.v, one.z
	a, _ := one.call(s.op.DType())
	b, _ := four.call(s.op.DType())
	s.op.Forward(a)
	s.op.Forward(b)
	s.nearState(t, "state under four times the query heads", b.Config, b.Final[0], a.Final[0], s.tol.Cut)
	if x, y := a.Final[0].Bytes(), b.Final[0].Bytes(); x != y {
		t.Errorf("state of %d bytes for 2 query heads, %d for 8", x, y)
	}
}

// Error 9: packed documents saw each other.
func (s suite) packedDocuments(t *testing.T) {
	for _, w := range []int{0, 16, full} {
		lengths := []int{65, 1, 40, 64}
		for ours := range lengths {
			p := newProblem(11, s.op.DType(), newConfig(w, 8, 2, 1, 16, 16), lengths, nil, softGates)
			c, g := s.run(p)
			s.spoil(p, ours, nan)
			spoilt, spoiltG := s.run(p)
			sameSequence(t, ours, c, spoilt, g, spoiltG)
		}
	}
}

// Error 10: states changed in place under their forks and beams. Beams start from one state, in one call.
func (s suite) statesFork(t *testing.T) {
	for _, w := range []int{0, 5, full} {
		c := newConfig(w, 8, 2, 1, 16, 16)
		s.fork(t, c, 12, 40, 20, softGates)

		prefix, _ := newProblem(13, s.op.DType(), c, []int{40}, nil, softGates).call(s.op.DType())
		s.op.Forward(prefix)
		state := prefix.Final[0]
		kept := state.Clone()
		p := newProblem(14, s.op.DType(), c, []int{3, 1, 3}, nil, softGates)
		beams, _ := p.call(s.op.DType())
		beams.Initial = []*attention.State{state, state, state}
		s.op.Forward(beams)
		sameState(t, "state after three beams from it", c, state, kept)
		for i := range p.lengths {
			alone, _ := p.sequence(i).call(s.op.DType())
			alone.Initial = []*attention.State{kept}
			s.op.Forward(alone)
			s.nearState(t, "beam's state", c, beams.Final[i], alone.Final[0], s.tol.Cut)
		}
	}
}
