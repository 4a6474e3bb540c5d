package cpu

import (
	"nha/backend/cpu/kernel"
)

// Backward (SPEC 1.3): chunks downwards, with the adjoints U and R of the slots behind the chunk. A token's key and value get their
// gradient in two parts: the one through the slots when the token enters, which comes first in this order, and then the window's,
// gathered in its tile and added when the walk leaves the tile behind.

func (w *nhaWorker) backward() {
	rows := w.chunk * w.group
	w.q, w.rq = w.matrix(rows, w.keyWidth), w.matrix(rows, w.keyWidth)
	w.dO = w.matrix(rows, w.valueWidth)
	w.dq, w.dRotated = w.matrix(rows, w.keyWidth), w.matrix(rows, w.keyWidth)
	w.inner = w.floats(rows)
	w.startSlots()
	w.startWindow()
	w.dScores = w.matrix(rows, w.groupTiles*nhaTile)
	w.startAdjoints()
	w.startStates()

	start := w.chunkAt(w.from)
	chunks := w.chunkAt(w.to) - start
	stretches := max(1, (chunks+nhaStretch-1)/nhaStretch)
	size := len(w.keyState.Data) + len(w.valueState.Data)
	w.states, w.marks = w.floats(min(chunks, nhaStretch)*size), w.floats(stretches*size)
	w.mark(w.marks, 0)
	for stretch := range stretches - 1 {
		w.sweep(start+stretch*nhaStretch, start+(stretch+1)*nhaStretch, nil)
		w.mark(w.marks, stretch+1)
	}
	for stretch := stretches - 1; stretch >= 0; stretch-- {
		from, to := start+stretch*nhaStretch, start+min(chunks, (stretch+1)*nhaStretch)
		w.recall(w.marks, stretch)
		w.sweep(from, to, w.states)
		for i := to - 1; i >= from; i-- {
			w.recall(w.states, i-from)
			w.startChunk(w.held + i*w.chunk)
			w.backwardChunk()
		}
	}
	w.dropTiles()
	if d := stateOf(w.grads.DInitial, w.index); d != nil && w.Slots > 0 && w.owned == 0 {
		w.storeSlots(d, w.keyAdjoint, w.valueAdjoint)
	}
}

// sweep takes the slots through chunks [from, to), noting them at each chunk's start in states where given.
func (w *nhaWorker) sweep(from, to int, states []float32) {
	for i := from; i < to; i++ {
		if states != nil {
			w.mark(states, i-from)
			if i == to-1 {
				return
			}
		}
		w.first = w.held + i*w.chunk
		w.count = min(w.chunk, w.all()-w.first)
		if !w.entering() {
			continue
		}
		w.loadEntering()
		shape := w.keyShape()
		shape.Group = 0
		kernel.SlotRead(shape, w.keyState, w.x, w.s, w.x, w.weights)
		shape.Columns = w.valueWidth
		kernel.SlotRead(shape, w.valueState, w.y, w.s, w.y, w.weights)
	}
}

// mark and recall copy the slots to and from place i.
func (w *nhaWorker) mark(to []float32, i int) { markStates(to, i, w.keyState, w.valueState) }

func (w *nhaWorker) recall(from []float32, i int) { recallStates(from, i, w.keyState, w.valueState) }

func markStates(to []float32, i int, keys, values kernel.Matrix) {
	to = to[i*(len(keys.Data)+len(values.Data)):]
	copy(to, keys.Data)
	copy(to[len(keys.Data):], values.Data)
}

func recallStates(from []float32, i int, keys, values kernel.Matrix) {
	from = from[i*(len(keys.Data)+len(values.Data)):]
	copy(keys.Data, from)
	copy(values.Data, from[len(keys.Data):])
}

// loadAdjoints loads the gradients of the final state's slots.
func (w *nhaWorker) loadAdjoints() {
	final := stateOf(w.grads.DFinal, w.index)
	for i := range w.slotWidth {
		var key, value []float32
		if final != nil && i < w.Slots {
			key, value = slotRow(final.SlotKeys, w.head, i), slotRow(final.SlotValues, w.head, i)
		}
		load(w.keyAdjoint, i, key, w.keyWidth)
		load(w.valueAdjoint, i, value, w.valueWidth)
	}
}

// startAdjoints begins with the gradients of the slots behind the walk's tokens. Tokens that stay in the final state's ring get
// theirs from it; those never entered slots. Tokens that enter behind the walk get theirs elsewhere.
func (w *nhaWorker) startAdjoints() {
	w.keyAdjoint, w.valueAdjoint = w.matrix(w.slotWidth, w.keyWidth), w.matrix(w.slotWidth, w.valueWidth)
	w.dx, w.dy = w.matrix(w.chunk, w.keyWidth), w.matrix(w.chunk, w.valueWidth)
	w.dA = w.matrix(w.chunk, w.slotWidth)
	w.reads, w.dWeights = w.matrix(w.chunk*w.group, w.slotWidth), w.matrix(w.chunk*w.group, w.slotWidth)
	w.keep = w.floats(kernel.SlotKeep(nhaHalf))
	w.keyMiddle, w.valueMiddle = w.matrix(w.slotWidth, w.keyWidth), w.matrix(w.slotWidth, w.valueWidth)
	w.walk = w.floats(max(len(w.keyState.Data), len(w.valueState.Data)))
	clear(w.dWeights.Data)

	if w.part == nil || w.part.last() || w.Slots == 0 {
		w.loadAdjoints()
	} else {
		recallStates(w.part.adjoints, 1, w.keyAdjoint, w.valueAdjoint)
	}
	if w.part != nil {
		clear(w.part.aside)
	}
	final := stateOf(w.grads.DFinal, w.index)
	ring, from := w.ringOf(final), w.all()-min(w.Window, w.all())
	first := max(w.owned, w.to-min(w.Window, w.to))
	if w.Slots == 0 {
		first = w.owned // there is nothing to enter
	}
	for e := first; e < w.to; e++ {
		dKey, dValue, dGate := w.gradients(e)
		clear(dKey)
		clear(dValue)
		if e < from {
			continue
		}
		clear(dGate)
		if final == nil {
			continue
		}
		copy(dKey, ring.key(e-from))
		copy(dValue, ring.value(e-from))
		if len(dGate) > 0 {
			copy(dGate, ring.gate(e-from))
			if e >= w.held {
				clear(w.gateScratch) // dA is the gradient of log a here
				kernel.GateBackward(dGate, dGate, w.gateScratch[:w.Slots], w.z.row(e-w.held), float32(w.GateNormalizer))
			}
		}
	}
}

// gradients are where token e's go: those of new tokens into the call's, dGate being dz; those of the ring's into the initial
// state's, dGate being that of log a, or nowhere. A gate's comes once, but a part sets keys and values of earlier ones aside.
func (w *nhaWorker) gradients(e int) (dKey, dValue, dGate []float32) {
	switch {
	case e >= w.held:
		dKey, dValue = w.dK.row(e-w.held), w.dV.row(e-w.held)
		if w.Slots > 0 {
			dGate = w.dZ.row(e - w.held)
		}
	case w.dRing.rows == 0:
		return nil, nil, nil
	default:
		dKey, dValue = w.dRing.key(e), w.dRing.value(e)
		if w.Slots > 0 {
			dGate = w.dRing.gate(e)
		}
	}
	if e < w.owned {
		dKey, dValue = w.rowsAside(w.part, e)
	}
	return dKey, dValue, dGate
}

func (w *nhaWorker) backwardChunk() {
	rows := w.count * w.group
	w.loadOutputs()
	clear(w.dq.Data[:rows*w.dq.Stride])
	if !w.idle() {
		w.backwardSlots()
	}
	if w.Window > 0 {
		w.aim()
		w.rotateQueries()
		w.backwardWindow()
	}
	scale := float32(w.Scale)
	for r := range rows {
		row := w.reader(w.dQueries, r)
		clear(row)
		kernel.Axpy(row, scale, w.dq.Row(r)[:w.KeyDim])
	}
}

// loadOutputs loads the gradients of the chunk's outputs and their products with the outputs.
func (w *nhaWorker) loadOutputs() {
	for r := range w.count * w.group {
		row := w.reader(w.dOutputs, r)
		w.inner[r] = kernel.Dot(row, w.reader(w.outputs, r))
		load(w.dO, r, row, w.valueWidth)
	}
}

// slotGradients turns logits and reads into probabilities and the logits' gradients.
func (w *nhaWorker) slotGradients() {
	for r := range w.count * w.group {
		p, d := w.weights.Row(r)[:w.Slots], w.dWeights.Row(r)[:w.Slots]
		if !w.live(w.first + r/w.group) {
			clear(p)
			clear(d)
			continue
		}
		kernel.ExpSum(p, p, w.reader(w.lse, r)[0])
		kernel.SoftmaxBackward(d, p, w.reads.Row(r)[:w.Slots], w.inner[r])
	}
}

// backwardSlots is the slots' part. The states are those of the chunk's start.
func (w *nhaWorker) backwardSlots() {
	w.readHalves(w.keyShape(), w.keyState, w.keyMiddle, w.x, w.q, w.weights)
	w.readHalves(w.valueShape(), w.valueState, w.valueMiddle, w.y, w.dO, w.reads)
	w.slotGradients()
	clear(w.dA.Data)
	clear(w.dx.Data)
	clear(w.dy.Data)
	for from := (w.count - 1) / nhaHalf * nhaHalf; from >= 0; from -= nhaHalf {
		keyState, valueState, row := w.keyState, w.valueState, from*w.group
		if from > 0 {
			keyState, valueState = w.keyMiddle, w.valueMiddle
		}
		keys, values := w.half(w.keyShape(), from), w.half(w.valueShape(), from)
		s, dA := below(w.s, from), below(w.dA, from)
		kernel.SlotBackward(values, valueState, w.valueAdjoint, below(w.y, from), s,
			below(w.weights, row), below(w.dO, row), kernel.Matrix{}, below(w.dy, from), dA, w.keep)
		kernel.SlotBackward(keys, keyState, w.keyAdjoint, below(w.x, from), s,
			below(w.dWeights, row), below(w.q, row), below(w.dq, row), below(w.dx, from), dA, w.keep)
	}
	for t := range w.count {
		j := w.first + t - w.Window
		if j < 0 {
			continue
		}
		dKey, dValue, dGate := w.gradients(j)
		copy(dKey, w.dx.Row(t))
		copy(dValue, w.dy.Row(t))
		if j >= w.held {
			kernel.GateBackward(dGate, w.dA.Row(t)[:w.Slots], w.logA.Row(t)[:w.Slots], w.z.row(j-w.held), float32(w.GateNormalizer))
			continue
		}
		kernel.Exp(w.gateScratch[:len(dGate)], w.logA.Row(t)[:len(dGate)])
		for i := range dGate {
			dGate[i] = w.dA.Row(t)[i] * w.gateScratch[i]
		}
	}
}

// nhaHalf is how many tokens SlotBackward takes at once: what it keeps of them then stays in L1.
const nhaHalf = nhaTokens / 2

// half is the shape of the chunk's tokens from from on, nhaHalf at most.
func (w *nhaWorker) half(d kernel.SlotShape, from int) kernel.SlotShape {
	d.Tokens = min(nhaHalf, w.count-from)
	return d
}

// below is a matrix without its first rows.
func below(m kernel.Matrix, rows int) kernel.Matrix {
	return kernel.Matrix{Data: m.Row(rows), Stride: m.Stride}
}

// readHalves reads the slots from the chunk's start on, as they are left, and notes them where the second half begins.
func (w *nhaWorker) readHalves(d kernel.SlotShape, state, middle, x, q, out kernel.Matrix) {
	walk := kernel.Matrix{Data: w.walk[:len(state.Data)], Stride: state.Stride}
	copy(walk.Data, state.Data)
	for from := 0; from < w.count; from += nhaHalf {
		if from > 0 {
			copy(middle.Data, walk.Data)
		}
		row := from * w.group
		kernel.SlotRead(w.half(d, from), walk, below(x, from), below(w.s, from), below(q, row), below(out, row))
	}
}

// keyRows is how many keys share one product over the rows that see any of them.
const keyRows = 12

// backwardWindow is the window's part, group of tiles by group of tiles.
func (w *nhaWorker) backwardWindow() {
	rows, end := w.count*w.group, w.first+w.count
	clear(w.dRotated.Data[:rows*w.dRotated.Stride])
	for tile := w.windowStart(w.first) / nhaTile; tile*nhaTile < end; tile += w.groupTiles {
		from, to := tile*nhaTile, min(end, (tile+w.groupTiles)*nhaTile)
		for r := 0; r < rows; r += bandRows {
			w.backwardBand(w.bandAt(r, from, to), to)
		}
		for key := max(from, w.windowStart(w.first)); key < to; {
			next := min(to, key+keyRows, (key/nhaTile+1)*nhaTile)
			w.backwardKeys(key, next, from)
			key = next
		}
	}
	for r := range rows {
		row := w.dRotated.Row(r)[:w.KeyDim]
		w.rotate(row, row, w.first+r/w.group, true)
		kernel.Axpy(w.dq.Row(r)[:w.KeyDim], 1, row)
	}
}

// backwardBand turns a band's scores into probabilities and their gradients, 0 where a row does not see a key that others do, and
// takes the queries' gradients from them.
func (w *nhaWorker) backwardBand(b band, to int) {
	if b.lo < b.hi {
		w.eachTile(b, func(k *nhaKeys, lo, hi int) {
			w.product(b, w.rq, w.keyWidth, k.keysT, k.index, lo, hi, w.scores)
			w.product(b, w.dO, w.valueWidth, k.values, k.index, lo, hi, w.dScores)
		})
	}
	// backwardKeys reads a few keys beyond the band: those of its blocks that any row sees.
	from, until := max(0, b.lo-b.from-keyRows), max(0, min(to, b.hi+keyRows)-b.from)
	for r := b.row; r < b.row+b.rows; r++ {
		lo, hi := w.seen(b, r)
		p, d := w.scores.Row(r), w.dScores.Row(r)
		if lo >= hi {
			lo, hi = until, until
		}
		for _, x := range [2][]float32{p, d} {
			clear(x[min(from, lo):lo])
			clear(x[hi:max(hi, until)])
		}
		kernel.ExpSum(p[lo:hi], p[lo:hi], w.reader(w.lse, r)[0])
		kernel.SoftmaxBackward(d[lo:hi], p[lo:hi], d[lo:hi], w.inner[r])
	}
	if b.lo >= b.hi {
		return
	}
	w.eachTile(b, func(k *nhaKeys, lo, hi int) {
		keys, d, dRotated := k.keys, w.dScores, w.dRotated
		keys.Data = keys.Row(lo - k.index*nhaTile)
		dRotated.Data = dRotated.Row(b.row)
		kernel.MatrixTiles(b.rows, w.keyWidth, hi-lo, d.Row(b.row)[lo-b.from:], d.Stride, 1, keys, dRotated, true)
	})
}

// backwardKeys adds to the gradients of keys [lo, hi) of one tile what the rows that see any of them give.
func (w *nhaWorker) backwardKeys(lo, hi, from int) {
	first, last := max(0, lo-w.first), min(w.count, hi-1+min(w.Window, w.all())-w.first)
	if first >= last {
		return
	}
	k, row, depth := w.tile(lo/nhaTile), first*w.group, (last-first)*w.group
	add := func(a, b, c kernel.Matrix, width int) {
		b.Data, c.Data = b.Row(row), c.Row(lo-k.index*nhaTile)
		kernel.MatrixTiles(hi-lo, width, depth, a.Row(row)[lo-from:], 1, a.Stride, b, c, true)
	}
	add(w.dScores, w.rq, k.dKeys, w.keyWidth)
	add(w.scores, w.dO, k.dValues, w.valueWidth)
}

// flush empties a place for a tile. In backward its gradients go where they belong.
func (w *nhaWorker) flush(k *nhaKeys) {
	if k.index >= 0 && w.grads != nil {
		from, seen := k.index*nhaTile, 0
		if w.part != nil {
			seen = w.part.seen
		}
		for i := max(0, seen-from); i < min(nhaTile, w.to-from); i++ {
			dKey, dValue, _ := w.gradients(from + i)
			if dKey == nil {
				continue
			}
			row := k.dKeys.Row(i)[:w.KeyDim]
			w.rotate(row, row, from+i, true)
			kernel.Axpy(dKey, 1, row)
			kernel.Axpy(dValue, 1, k.dValues.Row(i)[:w.ValueDim])
		}
	}
	k.index = -1
}
