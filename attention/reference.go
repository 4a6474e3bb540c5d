package attention

import (
	"math"

	"nha/tensor"
)

// The recurrence of the package documentation (SPEC 1, 1.3) in float64: plain loops over tokens, to be read beside it.
//
// A sequence with an initial state is one whose first tokens have been seen already: the ring's tokens stand in front of the
// new ones, and "token j enters the slots at step j+W" holds for both alike. In these extended indices e = held + t the
// condition j = e - W >= 0 is the one on positions: either the ring holds every earlier token, or it holds W of them.

// Forward computes O and, where present, LSE and Share, and the states in Final. Tensors may be of any floating-point type;
// the arithmetic is float64.
func Forward(c *Call) {
	at := 0
	for i, n := range c.Lengths {
		s := newSequence(c, i, at)
		o, lse, share := newRows(n*s.QueryHeads, s.ValueDim), newRows(n*s.QueryHeads, 1), newRows(n*s.QueryHeads, 1)
		for h := range s.KVHeads {
			now := s.initial(h)
			for t := range n {
				if j := s.held + t - s.Window; j >= 0 {
					now.enter(s.token(j, h))
				}
				for q := h * s.Group(); q < (h+1)*s.Group(); q++ {
					p, out := s.attend(now, t, q), o.row(t*s.QueryHeads+q)
					for i, pi := range p.slots {
						axpy(out, pi, now.values.row(i))
						share.row(t*s.QueryHeads + q)[0] += pi
					}
					for w, pu := range p.window {
						axpy(out, pu, s.v.row((p.first+w)*s.KVHeads+h))
					}
					lse.row(t*s.QueryHeads + q)[0] = p.lse
				}
			}
			copy(s.slotKeys.data[h*len(now.keys.data):], now.keys.data)
			copy(s.slotValues.data[h*len(now.values.data):], now.values.data)
		}
		store(c.O, at, o)
		store(c.LSE, at, lse)
		store(c.Share, at, share)
		if c.Final != nil && c.Final[i] != nil {
			kept := min(s.Window, s.position+n)
			s.save(c.Final[i], s.position+n, kept, s.held+n-kept, s.slotKeys, s.slotValues, s.k, s.v, s.g)
		}
		at += n
	}
}

// Backward computes DQ, DK, DV, DZ and the states in DInitial. It needs the inputs of the call, Initial among them as they
// were before Forward, and none of its outputs. Memory: the slots after every token of one kv head.
func Backward(c *Call, g *Gradients) {
	at := 0
	for i, n := range c.Lengths {
		s := newSequence(c, i, at)
		d := newAdjoints(s, g, i, at)
		for h := range s.KVHeads {
			s.backward(d, h)
		}
		for e := range s.held + n { // rotations are orthogonal: the gradient turns back by the same angle
			for h := range s.KVHeads {
				k := d.rotatedK.row(e*s.KVHeads + h)
				s.rotate(k, s.first()+e, -1)
				axpy(d.k.row(e*s.KVHeads+h), 1, k)
			}
		}
		for t := range n {
			for h := range s.QueryHeads {
				q := d.rotatedQ.row(t*s.QueryHeads + h)
				s.rotate(q, s.position+t, -1)
				axpy(d.q.row(t*s.QueryHeads+h), 1, q)
			}
		}
		dz := newRows(n*s.KVHeads, s.Slots)
		for i, z := range s.z.data {
			dz.data[i] = d.g.data[s.held*s.KVHeads*s.Slots+i] * sigmoid(-z) / s.GateNormalizer
		}
		store(g.DQ, at, d.q)
		store(g.DK, at, d.k.from(s.held*s.KVHeads))
		store(g.DV, at, d.v.from(s.held*s.KVHeads))
		store(g.DZ, at, dz)
		if g.DInitial != nil && g.DInitial[i] != nil {
			s.save(g.DInitial[i], s.position, s.held, 0, d.slotKeys, d.slotValues, d.k, d.v, d.g)
		}
		at += n
	}
}

// backward walks one kv head's tokens downwards.
func (s *sequence) backward(d *adjoints, h int) {
	history := []slots{s.initial(h)} // history[t]: the slots before token t; history[t+1]: as it read them
	for t := range s.tokens {
		now := history[t]
		if j := s.held + t - s.Window; j >= 0 {
			now = now.clone()
			now.enter(s.token(j, h))
		}
		history = append(history, now)
	}
	u, r := d.slotKeys.from(h*s.Slots), d.slotValues.from(h*s.Slots)
	for t := s.tokens - 1; t >= 0; t-- {
		now := history[t+1]
		for n := h * s.Group(); n < (h+1)*s.Group(); n++ {
			p, row := s.attend(now, t, n), t*s.QueryHeads+n
			do, q, rq := d.o.row(row), s.q.row(row), s.rotatedQ.row(row)
			inner := 0.0 // d_t = dO_t . o_t = sum of p times value . dO_t
			for i, pi := range p.slots {
				inner += pi * dot(now.values.row(i), do)
			}
			for w, pu := range p.window {
				inner += pu * dot(s.v.row((p.first+w)*s.KVHeads+h), do)
			}
			for i, pi := range p.slots {
				dl := s.Scale * pi * (dot(now.values.row(i), do) - inner)
				axpy(d.q.row(row), dl, now.keys.row(i))
				axpy(u.row(i), dl, q)
				axpy(r.row(i), pi, do)
			}
			for w, pu := range p.window {
				e := (p.first+w)*s.KVHeads + h
				dl := s.Scale * pu * (dot(s.v.row(e), do) - inner)
				axpy(d.v.row(e), pu, do)
				axpy(d.rotatedK.row(e), dl, rq)
				axpy(d.rotatedQ.row(row), dl, s.rotatedK.row(e))
			}
		}
		j := s.held + t - s.Window
		if j < 0 {
			continue
		}
		before, e := history[t], j*s.KVHeads+h
		k, v, g := s.token(j, h)
		for i := range s.Slots {
			a, write, ui, ri := math.Exp(g[i]), -math.Expm1(g[i]), u.row(i), r.row(i)
			da := dotDifference(ui, before.keys.row(i), k) + dotDifference(ri, before.values.row(i), v)
			d.g.row(e)[i] += da * a
			axpy(d.k.row(e), write, ui)
			axpy(d.v.row(e), write, ri)
			scale(ui, a)
			scale(ri, a)
		}
	}
}

// sequence is one sequence of a call in float64. Rows are token * heads + head, or head * M + slot.
type sequence struct {
	*Config
	tokens, held, position int  // new tokens; tokens the initial ring brings; position of the first new one
	q, rotatedQ            rows // [tokens, Hq, K]
	k, rotatedK            rows // [held+tokens, H, K]
	v, g                   rows // [held+tokens, H, V], [held+tokens, H, M] log a
	z                      rows // [tokens, H, M]
	slotKeys, slotValues   rows // [H, M, K], [H, M, V]
}

func newSequence(c *Call, i, at int) *sequence {
	n, s := c.Lengths[i], &sequence{Config: c.Config, tokens: c.Lengths[i]}
	initial := new(State)
	if c.Initial != nil && c.Initial[i] != nil {
		initial = c.Initial[i]
		if err := initial.Check(c.Config); err != nil {
			panic("attention: initial state: " + err.Error())
		}
	}
	s.position, s.held = initial.Position, initial.Count
	s.slotKeys, s.slotValues = newRows(s.KVHeads*s.Slots, s.KeyDim), newRows(s.KVHeads*s.Slots, s.ValueDim)
	copy(s.slotKeys.data, float64s(initial.SlotKeys))
	copy(s.slotValues.data, float64s(initial.SlotValues))

	s.q = rows{float64s(narrow(c.Q, at, n)), s.KeyDim}
	s.z = rows{float64s(narrow(c.Z, at, n)), s.Slots}
	s.k = extend(initial, initial.Keys, narrow(c.K, at, n), s.KVHeads, s.KeyDim)
	s.v = extend(initial, initial.Values, narrow(c.V, at, n), s.KVHeads, s.ValueDim)
	s.g = newRows((s.held+n)*s.KVHeads, s.Slots)
	initial.readRing(initial.LogGates, s.g, s.KVHeads)
	for i, z := range s.z.data {
		s.g.data[s.held*s.KVHeads*s.Slots+i] = logSigmoid(z) / s.GateNormalizer
	}

	s.rotatedQ, s.rotatedK = s.q.clone(), s.k.clone()
	for row := range n * s.QueryHeads {
		s.rotate(s.rotatedQ.row(row), s.position+row/s.QueryHeads, 1)
	}
	for row := range (s.held + n) * s.KVHeads {
		s.rotate(s.rotatedK.row(row), s.first()+row/s.KVHeads, 1)
	}
	return s
}

// first is the position of extended token 0.
func (s *sequence) first() int { return s.position - s.held }

// initial is a copy of the slots that kv head h starts with.
func (s *sequence) initial(h int) slots {
	return slots{s.slotKeys.slice(h*s.Slots, s.Slots), s.slotValues.slice(h*s.Slots, s.Slots)}.clone()
}

func (s *sequence) token(e, h int) (k, v, g []float64) {
	row := e*s.KVHeads + h
	return s.k.row(row), s.v.row(row), s.g.row(row)
}

// rotate turns pair (i, i+K/2) of x by sign * position * frequency_i.
func (s *sequence) rotate(x []float64, position int, sign float64) {
	if s.Rope == nil {
		return
	}
	half := len(x) / 2
	for i := range half {
		sin, cos := math.Sincos(sign * float64(position) * s.Rope.Frequency(i))
		x[i], x[i+half] = x[i]*cos-x[i+half]*sin, x[i+half]*cos+x[i]*sin
	}
}

// probabilities is one query's softmax over the live slots and the window, whose extended tokens start at first.
type probabilities struct {
	slots, window []float64
	first         int
	lse           float64
}

func (s *sequence) attend(now slots, t, n int) probabilities {
	e, h, row := s.held+t, n/s.Group(), t*s.QueryHeads+n
	p := probabilities{first: max(0, e-s.Window+1)}
	live := 0
	if s.EmptySlots == Count || e >= s.Window {
		live = s.Slots
	}
	logits := make([]float64, 0, live+e-p.first+1)
	for i := range live {
		logits = append(logits, s.Scale*dot(s.q.row(row), now.keys.row(i)))
	}
	for u := p.first; u <= e; u++ {
		logits = append(logits, s.Scale*dot(s.rotatedQ.row(row), s.rotatedK.row(u*s.KVHeads+h)))
	}
	p.lse = softmax(logits)
	p.slots, p.window = logits[:live], logits[live:]
	return p
}

// save writes a state, or the gradient of one: of the extended tokens those from first on go into the ring, oldest in row 0.
func (s *sequence) save(to *State, position, count, first int, slotKeys, slotValues, k, v, g rows) {
	to.Reserve(s.Config, position)
	to.Position, to.Start, to.Count = position, 0, count
	store(to.SlotKeys, 0, slotKeys)
	store(to.SlotValues, 0, slotValues)
	to.writeRing(to.Keys, k.from(first*s.KVHeads), s.KVHeads)
	to.writeRing(to.Values, v.from(first*s.KVHeads), s.KVHeads)
	to.writeRing(to.LogGates, g.from(first*s.KVHeads), s.KVHeads)
}

// adjoints are the gradients of a sequence's parts, laid out like them.
type adjoints struct {
	o, q, rotatedQ, k, rotatedK, v, g, slotKeys, slotValues rows
}

func newAdjoints(s *sequence, g *Gradients, i, at int) *adjoints {
	like := func(r rows) rows { return rows{make([]float64, len(r.data)), r.width} }
	d := &adjoints{
		o: rows{float64s(narrow(g.DO, at, s.tokens)), s.ValueDim},
		q: like(s.q), rotatedQ: like(s.q), k: like(s.k), rotatedK: like(s.k), v: like(s.v), g: like(s.g),
		slotKeys: like(s.slotKeys), slotValues: like(s.slotValues),
	}
	if g.DFinal == nil || g.DFinal[i] == nil {
		return d
	}
	final := g.DFinal[i]
	if final.Count != min(s.Window, s.position+s.tokens) {
		panic("attention: the gradient of a final state must have the final state's Position and Count")
	}
	copy(d.slotKeys.data, float64s(final.SlotKeys))
	copy(d.slotValues.data, float64s(final.SlotValues))
	first := (s.held + s.tokens - final.Count) * s.KVHeads
	final.readRing(final.Keys, d.k.from(first), s.KVHeads)
	final.readRing(final.Values, d.v.from(first), s.KVHeads)
	final.readRing(final.LogGates, d.g.from(first), s.KVHeads)
	return d
}

// slots are one kv head's Ks [M,K] and Vs [M,V].
type slots struct{ keys, values rows }

func (s slots) clone() slots { return slots{s.keys.clone(), s.values.clone()} }

// enter blends one token in: Ks += s (k - Ks).
func (s slots) enter(k, v, g []float64) {
	for i, gi := range g {
		write := -math.Expm1(gi)
		blend(s.keys.row(i), write, k)
		blend(s.values.row(i), write, v)
	}
}

// rows is a row-major matrix.
type rows struct {
	data  []float64
	width int
}

func newRows(n, width int) rows    { return rows{make([]float64, n*width), width} }
func (r rows) row(i int) []float64 { return r.data[i*r.width : (i+1)*r.width] }
func (r rows) from(i int) rows     { return rows{r.data[i*r.width:], r.width} }
func (r rows) slice(i, n int) rows { return rows{r.data[i*r.width : (i+n)*r.width], r.width} }
func (r rows) clone() rows         { return rows{append([]float64(nil), r.data...), r.width} }

// extend puts the ring's tokens in front of the call's.
func extend(s *State, ring, given tensor.Tensor, heads, width int) rows {
	r := newRows(s.Count*heads, width)
	s.readRing(ring, r, heads)
	r.data = append(r.data, float64s(given)...)
	return r
}

// readRing copies the ring's tokens, oldest first, into rows token * heads + head.
func (s *State) readRing(t tensor.Tensor, to rows, heads int) {
	if !t.Present() {
		return
	}
	for i := range s.Count {
		for h := range heads {
			from := (h*s.Capacity() + s.Row(i)) * to.width
			for x := range to.width {
				to.row(i*heads + h)[x] = t.Value(from + x)
			}
		}
	}
}

// writeRing is the reverse of readRing.
func (s *State) writeRing(t tensor.Tensor, from rows, heads int) {
	if !t.Present() {
		return
	}
	for i := range s.Count {
		for h := range heads {
			to := (h*s.Capacity() + s.Row(i)) * from.width
			for x, value := range from.row(i*heads + h) {
				t.SetValue(to+x, value)
			}
		}
	}
}

func narrow(t tensor.Tensor, at, n int) tensor.Tensor {
	if !t.Present() {
		return t
	}
	return t.Narrow(at, at+n)
}

// float64s is a copy of t's elements; none of an absent tensor.
func float64s(t tensor.Tensor) []float64 {
	if !t.Present() {
		return nil
	}
	x := make([]float64, t.Len())
	for i := range x {
		x[i] = t.Value(i)
	}
	return x
}

// store rounds x into t from row at of its first dimension on; an absent tensor is one nobody wants.
func store(t tensor.Tensor, at int, x rows) {
	if !t.Present() {
		return
	}
	offset := at * (t.Len() / max(1, t.Dim(0)))
	for i, value := range x.data {
		t.SetValue(offset+i, value)
	}
}

// softmax turns logits into probabilities in place and returns the log of the denominator.
func softmax(x []float64) float64 {
	top := math.Inf(-1)
	for _, l := range x {
		top = max(top, l)
	}
	sum := 0.0
	for i, l := range x {
		x[i] = math.Exp(l - top)
		sum += x[i]
	}
	scale(x, 1/sum)
	return top + math.Log(sum)
}

func logSigmoid(z float64) float64 { return min(z, 0) - math.Log1p(math.Exp(-math.Abs(z))) }

func sigmoid(z float64) float64 { return math.Exp(logSigmoid(z)) }

func dot(x, y []float64) float64 {
	sum := 0.0
	for i := range x {
		sum += x[i] * y[i]
	}
	return sum
}

// dotDifference is u . (x - y).
func dotDifference(u, x, y []float64) float64 {
	sum := 0.0
	for i := range u {
		sum += u[i] * (x[i] - y[i])
	}
	return sum
}

// axpy is y += a x.
func axpy(y []float64, a float64, x []float64) {
	for i := range x {
		y[i] += a * x[i]
	}
}

// blend is y += a (x - y).
func blend(y []float64, a float64, x []float64) {
	for i := range x {
		y[i] += a * (x[i] - y[i])
	}
}

func scale(x []float64, a float64) {
	for i := range x {
		x[i] *= a
	}
}
