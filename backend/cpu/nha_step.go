package cpu

import (
	"math"

	"nha/attention"
	"nha/backend/cpu/kernel"
)

// step is the operator for one token, the decode step (SPEC 1.1). Slots that need no padding are updated in place. Pushing the token
// comes last, as its row may hold the one that leaves.
//
// The window is read as flash decoding does it: every reach of stepReach tokens gives all query heads of the kv head a maximum m, a sum
// l of e^(logit - m) and outputs weighted so, and those meet under one softmax with the slots',
//
//	M = max m    L = sum e^(m - M) l    o = sum e^(m - M) o / L
//
// Reaches are the same however the work is shared: a short window's are read by the head's own task, a long one's side by side.
//
// The ring keeps keys unrotated. A few of them are turned together, by positions that count from the first, and the query by its
// distance to that: logits depend on differences alone, and the tables for the keys stay in L1. Floor: keys and values once, 512
// bytes a token and kv head at K = V = 64 in float32, 256 in half precision; turning, products and exponentials cost three query heads
// some 40 cycles.

const (
	stepReach = 256 // tokens
	stepTurn  = 32  // tokens turned or widened together: 8 KB at K = 64
	stepRoom  = 3   // columns that kernel.Dots may write behind its own
)

// nhaReach is tokens [from, to) as a single token of a sequence sees them in one kv head.
type nhaReach struct {
	index, head, from, to int
	top, sum              []float32     // [group]
	o                     kernel.Matrix // [group, V]
}

// reach cuts long windows of single tokens into reaches, and reads them.
func (n *nha) reach(c *attention.Call, g *attention.Gradients) {
	n.reaches, n.reachesOf = n.reaches[:0], n.reachesOf[:0]
	for i, tokens := range c.Lengths {
		s := stateOf(c.Initial, i)
		long := tokens == 1 && g == nil && n.pool.Threads() > 1 && s != nil && min(s.Count+1, c.Window) > stepReach
		for head := range c.KVHeads {
			n.reachesOf = append(n.reachesOf, len(n.reaches))
			for from := 0; long && from <= s.Count; from += stepReach {
				from = max(from, s.Count+1-c.Window)
				n.reaches = append(n.reaches, nhaReach{index: i, head: head, from: from, to: min(from+stepReach, s.Count+1)})
			}
		}
	}
	n.reachesOf = append(n.reachesOf, len(n.reaches))
	if len(n.reaches) == 0 {
		return
	}
	group := c.Group()
	size := reachSize(group, roundUp(c.ValueDim, kernel.TileColumns))
	if cap(n.reached) < len(n.reaches)*size {
		n.reached = make([]float32, len(n.reaches)*size)
	}
	for i := range n.reaches {
		n.reaches[i].place(n.reached[i*size:(i+1)*size], group)
	}
	n.phase = nhaReaches
	n.pool.Run(len(n.reaches), n)
}

// reachSize is the memory of a reach. The next one's lies in other cache lines.
func reachSize(group, valueWidth int) int { return roundUp(group*(2+valueWidth), 16) }

// place lays out a reach in memory.
func (r *nhaReach) place(memory []float32, group int) {
	rest := memory[2*group:]
	r.top, r.sum, r.o = memory[:group], memory[group:2*group], kernel.Matrix{Data: rest, Stride: len(rest) / group}
}

// startReach takes the scratch for reaches.
func (w *nhaWorker) startReach() {
	w.q, w.rq = w.matrix(w.group, w.keyWidth), w.matrix(w.group, w.keyWidth)
	w.scores = w.matrix(w.group, stepReach+stepRoom)
	w.stretch = w.floats(stepTurn * max(w.KeyDim, w.ValueDim))
	w.cos, w.sin = nil, nil
	if w.Rope != nil && w.Window > 0 {
		w.cos, w.sin = w.Rope.Table(max(stepTurn, w.held+1))
	}
}

func (w *nhaWorker) loadQueries() {
	for r := range w.group {
		kernel.Scale(load(w.q, r, w.reader(w.queries, r), w.keyWidth)[:w.KeyDim], float32(w.Scale))
	}
}

// reach reads r's tokens.
func (w *nhaWorker) reach(r *nhaReach) {
	w.first, w.count = w.held, 1
	w.startReach()
	w.loadQueries()
	w.read(r)
}

func (w *nhaWorker) read(r *nhaReach) {
	for u := r.from; u < r.to; u += stepTurn {
		w.score(u, min(stepTurn, r.to-u), u-r.from)
	}
	for i := range w.group {
		p := w.scores.Row(i)[:r.to-r.from]
		r.top[i] = kernel.Max(p)
		r.sum[i] = kernel.ExpSum(p, p, r.top[i])
	}
	clear(r.o.Data)
	for u := r.from; u < r.to; u += stepTurn {
		w.weigh(r.o, u, min(stepTurn, r.to-u), u-r.from)
	}
}

// run is how many of n tokens from u on lie together in memory, in the ring from its row on or in the call. Results do not depend on
// it: a state that was saved and loaded, whose ring begins elsewhere, gives the same bits.
func (w *nhaWorker) run(u, n int) (row, run int) {
	if u == w.held {
		return 0, 1
	}
	row = w.ring.row(u)
	return row, min(n, w.held-u, w.ring.rows-row)
}

// score writes the logits of n tokens from u on to columns at and up.
func (w *nhaWorker) score(u, n, at int) {
	half, queries := w.KeyDim/2, w.q
	if w.Rope != nil {
		queries = w.rq
		distance := (w.held - u) * half
		for r := range w.group {
			kernel.Rotate(w.rq.Row(r)[:w.KeyDim], w.q.Row(r)[:w.KeyDim], w.cos[distance:distance+half], w.sin[distance:distance+half], false)
		}
	}
	keys := w.stretch[:n*w.KeyDim]
	for i := 0; i < n; {
		row, run := w.run(u+i, n-i)
		to, from := keys[i*w.KeyDim:(i+run)*w.KeyDim], row*w.KeyDim
		switch wide := w.ring.keys; {
		case u+i < w.held && w.ring.keys16 != nil && w.Rope != nil:
			kernel.RotateRowsF16(to, w.ring.keys16[from:from+len(to)], run, w.cos[i*half:], w.sin[i*half:])
		case u+i < w.held && w.ring.keys16 != nil:
			kernel.WidenF16(to, w.ring.keys16[from:from+len(to)])
		default:
			if u+i == w.held {
				wide = w.k.row(0)
			}
			if wide = wide[from : from+len(to)]; w.Rope != nil {
				kernel.RotateRows(to, wide, run, w.cos[i*half:], w.sin[i*half:])
			} else {
				copy(to, wide)
			}
		}
		i += run
	}
	to := w.scores
	to.Data = to.Data[at:]
	kernel.Dots(w.group, n, w.KeyDim, queries, keys, to)
}

// weigh adds the values of n tokens from u on under the weights in columns at and up.
func (w *nhaWorker) weigh(o kernel.Matrix, u, n, at int) {
	values := w.values(u, n)
	if w.ValueDim%kernel.TileWidth() == 0 {
		kernel.MatrixTiles(w.group, w.ValueDim, n, w.scores.Data[at:], w.scores.Stride, 1, kernel.Matrix{Data: values, Stride: w.ValueDim}, o, true)
		return
	}
	for i := range n {
		for r := range w.group {
			kernel.Axpy(o.Row(r)[:w.ValueDim], w.scores.Row(r)[at+i], values[i*w.ValueDim:(i+1)*w.ValueDim])
		}
	}
}

// values is those of n tokens from u on, together: where they lie if they lie so, in float32.
func (w *nhaWorker) values(u, n int) []float32 {
	if row, run := w.run(u, n); run == n && u < w.held && w.ring.values16 == nil {
		return w.ring.values[row*w.ValueDim : (row+n)*w.ValueDim]
	}
	values := w.stretch[:n*w.ValueDim]
	for i := 0; i < n; {
		row, run := w.run(u+i, n-i)
		to, from := values[i*w.ValueDim:(i+run)*w.ValueDim], row*w.ValueDim
		switch {
		case u+i == w.held:
			copy(to, w.v.row(0))
		case w.ring.values16 != nil:
			kernel.WidenF16(to, w.ring.values16[from:from+len(to)])
		default:
			copy(to, w.ring.values[from:])
		}
		i += run
	}
	return values
}

func (w *nhaWorker) step() {
	e := w.held
	final := stateOf(w.call.Final, w.index)
	w.startReach()
	w.o = w.matrix(w.group, w.valueWidth)
	w.startSlots()
	inPlace := w.Slots > 0 && final != nil && final == w.initial &&
		w.KeyDim == w.keyWidth && w.ValueDim == w.valueWidth && w.Slots == w.slotWidth
	if inPlace {
		w.keyState = kernel.Matrix{Data: slotsOf(final.SlotKeys, w.head), Stride: w.KeyDim}
		w.valueState = kernel.Matrix{Data: slotsOf(final.SlotValues, w.head), Stride: w.ValueDim}
	} else {
		w.loadSlots()
	}
	w.startChunk(e)
	if w.idle() {
		clear(w.weights.Data)
	} else {
		kernel.SlotRead(w.keyShape(), w.keyState, w.x, w.s, w.q, w.weights)
	}
	w.top, w.sum = w.floats(w.group), w.floats(w.group)
	w.meetWindow(e)
	for r := range w.group {
		w.meetSlots(r, e)
	}
	if !w.idle() {
		kernel.SlotWrite(w.valueShape(), w.valueState, w.y, w.s, w.weights, w.o)
	}
	for r := range w.group {
		copy(w.reader(w.outputs, r), w.o.Row(r))
	}
	switch {
	case final == nil:
	case inPlace:
		w.storeRing(final)
	default:
		w.storeFinal()
	}
}

// meetWindow gathers the window's reaches in o, sum and top, the maximum of the slots' logits too.
func (w *nhaWorker) meetWindow(e int) {
	clear(w.o.Data)
	for r := range w.group {
		w.sum[r], w.top[r] = 0, negativeInfinity
		if w.live(e) {
			w.top[r] = kernel.Max(w.weights.Row(r)[:w.Slots])
		}
	}
	if w.Window == 0 {
		return
	}
	memory := w.floats(reachSize(w.group, w.valueWidth))
	for i := range w.found {
		w.meet(&w.found[i])
	}
	if len(w.found) > 0 {
		return
	}
	for from := w.windowStart(e); from <= e; from += stepReach {
		reach := nhaReach{from: from, to: min(from+stepReach, e+1)}
		reach.place(memory, w.group)
		w.read(&reach)
		w.meet(&reach)
	}
}

func (w *nhaWorker) meet(reach *nhaReach) {
	for r := range w.group {
		top := max(w.top[r], reach.top[r])
		before, now := shrink(w.top[r], top), shrink(reach.top[r], top)
		o := w.o.Row(r)[:w.ValueDim]
		if w.sum[r] > 0 && before != 1 {
			kernel.Scale(o, before)
		}
		kernel.Axpy(o, now, reach.o.Row(r)[:w.ValueDim])
		w.sum[r] = w.sum[r]*before + reach.sum[r]*now
		w.top[r] = top
	}
}

// shrink is e^(from - to), 1 where they are the same.
func shrink(from, to float32) float32 {
	if from == to {
		return 1
	}
	return float32(math.Exp(float64(from - to)))
}
