package cpu

import (
	"math"

	"nha/attention"
	"nha/backend/cpu/kernel"
)

// With fewer heads than threads a head's sequence is cut into parts, at multiples of the chunk, which run side by side.
//
// The slots are linear in what enters them. With D the product of the forget factors that enter in a part, and C what its own
// tokens leave in slots that start at 0, the slots behind it are D S + C; and with E what its readers leave in adjoints that
// start at 0 behind it, those in front of it are D U + E. Entering token t adds to C_i, and reading token t to E_i,
//
//	e^(G_end - G_t),i s_t,i x_t      e^G_t,i dl_t,i q_t (keys)  e^G_t,i p_t,i dO_t (values)      G_t: sum of log a up to t
//
// Sums of products: the recurrence rounds near-equal tokens near-equally, which evens out over a whole sequence but not over the
// same part of every one.
//
// So forward is a sweep for every C and D, a scan, and all parts from their slots; backward a sweep, a scan up, a walk for every
// E, a scan down, and all parts from their slots and adjoints. Exponents are never positive.
//
// A part's queries see up to W tokens in front of it, and up to W enter during it. Their gradients go to rows aside, which the
// parts that own the tokens add afterwards, in order: results depend on the number of threads alone.

const (
	nhaPartsPerThread = 2 // parts aimed at: with a full window their work differs
	nhaPartChunks     = 4 // chunks in a part, at least; a shorter sequence is the same bits however it is fed
	nhaAside          = 4 // rows aside of a sequence, at most this many times its tokens
)

// nhaPart is one of count parts of a head: tokens [from, to). It owns the gradients of [owned, to).
type nhaPart struct {
	index, head     int // sequence and kv head
	number, count   int
	from, to, owned int
	decay           []float64 // log D
	states          []float32 // slots at its start, then room for those behind it, which are the next part's start
	adjoints        []float32 // adjoints in front of it, then those behind it
	aside           []float32 // gradients of keys, then of values, of tokens [seen, owned)
	seen            int
}

func (p *nhaPart) last() bool { return p.number == p.count-1 }

// nhaPhase is what the tasks of a loop do.
type nhaPhase uint8

const (
	nhaHeads    nhaPhase = iota // whole heads, one a task
	nhaReaches                  // a stretch of a single token's window
	nhaSweep                    // C and D of every part, a head's last only for the final state
	nhaAdjoints                 // E and D of every part but a head's first
	nhaCompute
	nhaFinish // forward: the final state; backward: rows aside to their owners
)

// chunkOf is how many tokens of a sequence make a chunk.
func chunkOf(group, tokens int) int { return min(nhaTokens, max(8, nhaRows/group), max(1, tokens)) }

// partsOf is how many parts each head of a sequence gets, total being the call's tokens.
func (n *nha) partsOf(c *attention.Call, tokens, held, total int) int {
	chunks := (tokens + chunkOf(c.Group(), tokens) - 1) / chunkOf(c.Group(), tokens)
	wanted := nhaPartsPerThread * n.pool.Threads()
	parts := min((wanted*tokens+total*c.KVHeads-1)/(total*c.KVHeads), chunks/nhaPartChunks)
	if reach := min(c.Window, (held+tokens)/2); reach > 0 {
		parts = min(parts, 1+nhaAside*(held+tokens)/reach)
	}
	return max(1, parts)
}

// cut makes the parts of a call; none where its heads are enough for the threads, or too short. A few heads more than threads leave some
// idle at the end: that is worth cutting where it costs nothing, forward without slots.
func (n *nha) cut(c *attention.Call) {
	n.parts = n.parts[:0]
	total := 0
	for _, tokens := range c.Lengths {
		total += tokens
	}
	heads, threads := len(c.Lengths)*c.KVHeads, n.pool.Threads()
	uneven := c.Slots == 0 && n.grads == nil && heads%threads > 0 && heads < 4*threads
	if heads >= threads && !uneven || total == 0 {
		return
	}
	whole := true
	for i, tokens := range c.Lengths {
		held := 0
		if s := stateOf(c.Initial, i); s != nil {
			held = s.Count
		}
		count := n.partsOf(c, tokens, held, total)
		whole = whole && count == 1
		chunk := chunkOf(c.Group(), tokens)
		chunks := (tokens + chunk - 1) / chunk
		for head := range c.KVHeads {
			for number := range count {
				p := nhaPart{index: i, head: head, number: number, count: count}
				p.from, p.to = held+number*chunks/count*chunk, held+min(tokens, (number+1)*chunks/count*chunk)
				if number > 0 {
					p.owned, p.seen = p.from, p.from-min(c.Window, p.from)
				}
				n.parts = append(n.parts, p)
			}
		}
	}
	if whole {
		n.parts = n.parts[:0]
		return
	}
	n.shareMemory(c)
}

// shareMemory gives the parts their room. Behind a head's last part there is room for one more state.
func (n *nha) shareMemory(c *attention.Call) {
	size := stateSize(c.Slots, c.KeyDim) + stateSize(c.Slots, c.ValueDim)
	states, aside := 0, 0
	for i := range n.parts {
		p := &n.parts[i]
		states += size
		if p.last() {
			states += size
		}
		aside += (p.owned - p.seen) * (c.KeyDim + c.ValueDim)
	}
	n.decays = resize(n.decays, len(n.parts)*c.Slots)
	n.states = resize(n.states, states)
	if n.grads != nil {
		n.adjoints, n.aside = resize(n.adjoints, states), resize(n.aside, aside)
	}
	states, aside = 0, 0
	for i := range n.parts {
		p := &n.parts[i]
		p.decay = n.decays[i*c.Slots : (i+1)*c.Slots]
		p.states = n.states[states : states+2*size]
		if n.grads != nil {
			rows := (p.owned - p.seen) * (c.KeyDim + c.ValueDim)
			p.adjoints, p.aside = n.adjoints[states:states+2*size], n.aside[aside:aside+rows]
			aside += rows
		}
		states += size
		if p.last() {
			states += size
		}
	}
}

// stateSize is the length of a worker's keyState or valueState, rows being stateStride apart.
func stateSize(slots, width int) int { return roundUp(slots, kernel.SlotUnit) * stateStride(width) }

func stateStride(width int) int { return oddLines(roundUp(width, kernel.TileColumns)) }

func resize[T any](x []T, n int) []T {
	if cap(x) < n {
		return make([]T, n)
	}
	return x[:n]
}

// runParts computes a call by its parts.
func (n *nha) runParts() {
	backward := n.grads != nil
	if n.call.Slots > 0 {
		n.loop(nhaSweep)
		n.scan(false)
		if backward {
			n.loop(nhaAdjoints)
			n.scan(true)
		}
	}
	n.loop(nhaCompute)
	n.loop(nhaFinish)
}

func (n *nha) loop(phase nhaPhase) {
	n.phase = phase
	n.pool.Run(len(n.parts), n)
}

// swept reports whether anyone asks for the slots behind a part.
func (n *nha) swept(p *nhaPart) bool {
	return !p.last() || n.grads == nil && stateOf(n.call.Final, p.index) != nil
}

// scan adds D S to every C, upwards, or D U to every E, downwards.
func (n *nha) scan(adjoints bool) {
	for i := range n.parts {
		if adjoints {
			i = len(n.parts) - 1 - i
		}
		p := &n.parts[i]
		if p.count == 1 || adjoints && p.number == 0 || !adjoints && !n.swept(p) {
			continue
		}
		half := len(p.states) / 2
		to, from := p.states[half:], p.states[:half]
		if adjoints {
			to, from = p.adjoints[:half], p.adjoints[half:]
		}
		at := 0
		for _, width := range [2]int{n.call.KeyDim, n.call.ValueDim} {
			stride := stateStride(width)
			for slot, d := range p.decay {
				row, sum := from[at+slot*stride:][:width], to[at+slot*stride:]
				factor, rest := decayOf(d)
				kernel.Axpy(sum, factor, row)
				kernel.Axpy(sum, rest, row)
			}
			at += stateSize(n.call.Slots, width)
		}
	}
}

// doPart is one task of a phase. Parts go in reverse: with a full window the last has most to do.
func (n *nha) doPart(w *nhaWorker, index int) {
	p := &n.parts[len(n.parts)-1-index]
	if p.count == 1 {
		if n.phase == nhaCompute {
			w.begin(n.call, n.grads, p.index, p.head, n.offsets[p.index])
			w.compute()
		}
		return
	}
	backward := n.grads != nil
	switch {
	case n.phase == nhaSweep && !n.swept(p), n.phase == nhaAdjoints && p.number == 0, n.phase == nhaFinish && !backward && !p.last():
		return
	}
	w.begin(n.call, n.grads, p.index, p.head, n.offsets[p.index])
	w.part, w.from, w.to, w.owned = p, p.from, p.to, p.owned
	switch n.phase {
	case nhaSweep:
		w.sweepPart()
	case nhaAdjoints:
		w.gatherAdjoints()
	case nhaCompute:
		w.compute()
	case nhaFinish:
		if !backward {
			w.startSlots()
			w.recall(p.states, 1)
			w.storeFinal()
			return
		}
		later := len(n.parts) - index
		w.addAside(n.parts[later : later+p.count-1-p.number])
	}
}

// sweepPart finds C and D.
func (w *nhaWorker) sweepPart() {
	w.startSlots()
	w.startDecay()
	factors := w.floats(w.slotWidth)
	if w.part.number == 0 {
		w.loadSlots()
		w.mark(w.part.states, 0)
	}
	clear(w.keyState.Data)
	clear(w.valueState.Data)
	for e := w.from; e < w.to; e += w.chunk {
		w.first, w.count = e, min(w.chunk, w.all()-e)
		if !w.entering() {
			continue
		}
		w.loadEntering()
		clear(w.logSum)
		sum := w.logSum[:w.Slots]
		for t := w.count - 1; t >= max(0, w.Window-w.first); t-- {
			kernel.Exp(factors[:w.Slots], sum)
			multiply(w.s.Row(t)[:w.Slots], factors)
			kernel.AddTo(sum, w.logA.Row(t))
		}
		for i, l := range sum {
			w.decay[i] += float64(l)
			factor, rest := decayOf(float64(l))
			for _, x := range [2][]float32{w.keyState.Row(i)[:w.keyWidth], w.valueState.Row(i)[:w.valueWidth]} {
				if rest == 0 {
					kernel.Scale(x, factor)
				} else {
					kernel.Axpy(x, factor, x)
				}
			}
		}
		kernel.MatrixTiles(w.Slots, w.keyWidth, w.count, w.s.Data, 1, w.s.Stride, w.x, w.keyState, true)
		kernel.MatrixTiles(w.Slots, w.valueWidth, w.count, w.s.Data, 1, w.s.Stride, w.y, w.valueState, true)
	}
	w.mark(w.part.states, 1)
}

// decayOf is e^d as a sum. Near 1 it is e^d-1 and 1, as e^d, rounded, would lose mass; where it is small that would cancel.
func decayOf(d float64) (factor, rest float32) {
	if d < -math.Ln2 {
		return float32(math.Exp(d)), 0
	}
	return float32(math.Expm1(d)), 1
}

func multiply(x, y []float32) { kernel.SoftmaxBackward(x, x, y, 0) }

// chunkAt is the number of the chunk that token e begins, or of the one behind the last.
func (w *nhaWorker) chunkAt(e int) int { return (e - w.held + w.chunk - 1) / w.chunk }

// startDecay begins the sums of log a: within a chunk in float32, over chunks in float64.
func (w *nhaWorker) startDecay() {
	w.decay, w.logSum = w.part.decay, w.floats(w.slotWidth)
	clear(w.decay)
}

// gatherAdjoints finds E and D, walking upwards.
func (w *nhaWorker) gatherAdjoints() {
	w.startSlots()
	rows := w.chunk * w.group
	w.q, w.dO, w.inner = w.matrix(rows, w.keyWidth), w.matrix(rows, w.valueWidth), w.floats(rows)
	w.reads, w.dWeights = w.matrix(rows, w.slotWidth), w.matrix(rows, w.slotWidth)
	w.keyAdjoint, w.valueAdjoint = w.matrix(w.slotWidth, w.keyWidth), w.matrix(w.slotWidth, w.valueWidth)
	factors := w.floats(2 * w.slotWidth)
	w.startDecay()
	w.recall(w.part.states, 0)
	if w.part.last() {
		w.loadAdjoints()
		markStates(w.part.adjoints, 1, w.keyAdjoint, w.valueAdjoint)
	}
	clear(w.keyAdjoint.Data)
	clear(w.valueAdjoint.Data)
	for e := w.from; e < w.to; e += w.chunk {
		w.startChunk(e)
		if w.idle() {
			continue
		}
		w.loadOutputs()
		kernel.SlotRead(w.keyShape(), w.keyState, w.x, w.s, w.q, w.weights)
		kernel.SlotRead(w.valueShape(), w.valueState, w.y, w.s, w.dO, w.reads)
		w.slotGradients()
		clear(w.logSum)
		sum, from := w.logSum[:w.Slots], factors[w.slotWidth:]
		for i := range sum {
			from[i] = float32(w.decay[i])
		}
		for t := range w.count {
			if w.first+t >= w.Window {
				kernel.AddTo(sum, w.logA.Row(t))
			}
			kernel.Add(factors[:w.Slots], from, sum)
			kernel.Exp(factors[:w.Slots], factors[:w.Slots])
			for r := t * w.group; r < (t+1)*w.group; r++ {
				multiply(w.weights.Row(r)[:w.Slots], factors)
				multiply(w.dWeights.Row(r)[:w.Slots], factors)
			}
		}
		for i, l := range sum {
			w.decay[i] += float64(l)
		}
		depth := w.count * w.group
		kernel.MatrixTiles(w.Slots, w.keyWidth, depth, w.dWeights.Data, 1, w.dWeights.Stride, w.q, w.keyAdjoint, true)
		kernel.MatrixTiles(w.Slots, w.valueWidth, depth, w.weights.Data, 1, w.weights.Stride, w.dO, w.valueAdjoint, true)
	}
	markStates(w.part.adjoints, 0, w.keyAdjoint, w.valueAdjoint)
}

// rowsAside are where the gradients of token e go, one of those in front of the part.
func (w *nhaWorker) rowsAside(p *nhaPart, e int) (dKey, dValue []float32) {
	i := e - p.seen
	return rowOf(p.aside, i, w.KeyDim), rowOf(p.aside[(p.owned-p.seen)*w.KeyDim:], i, w.ValueDim)
}

// addAside adds what the later parts of the head have for the tokens of this one.
func (w *nhaWorker) addAside(later []nhaPart) {
	for i := range later {
		p := &later[i]
		for e := max(w.owned, p.seen); e < w.to; e++ {
			dKey, dValue, _ := w.gradients(e)
			if dKey == nil {
				continue
			}
			keys, values := w.rowsAside(p, e)
			kernel.Axpy(dKey, 1, keys)
			kernel.Axpy(dValue, 1, values)
		}
	}
}
