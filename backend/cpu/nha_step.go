package cpu

import (
	"math"

	"nha/backend/cpu/kernel"
)

// step is the operator for one token, the decode step (SPEC 1.1): the ring is read where it lies, row by row, and slots that need
// no padding are updated in place. Pushing the token comes last, as its row may hold the one that leaves.
func (w *nhaWorker) step() {
	e := w.held
	final := stateOf(w.call.Final, w.index)
	w.q, w.rq, w.o = w.matrix(w.group, w.keyWidth), w.matrix(w.group, w.keyWidth), w.matrix(w.group, w.valueWidth)
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
	from := w.windowStart(e)
	window := w.matrix(w.group, e+1-from)
	w.stepScores(window, from)

	if w.idle() {
		clear(w.weights.Data)
	} else {
		kernel.SlotRead(w.keyShape(), w.keyState, w.x, w.s, w.q, w.weights)
	}
	clear(w.o.Data)
	for r := range w.group {
		p, u := w.weights.Row(r)[:w.Slots], window.Row(r)[:e+1-from]
		top := kernel.Max(u)
		if w.live(e) {
			top = max(top, kernel.Max(p))
		}
		total, fromSlots := kernel.ExpSum(u, u, top), float32(0)
		if w.live(e) {
			fromSlots = kernel.ExpSum(p, p, top)
		} else {
			clear(p)
		}
		total += fromSlots
		kernel.Scale(u, 1/total)
		kernel.Scale(p, 1/total)
		w.reader(w.lse, r)[0] = top + float32(math.Log(float64(total)))
		if w.share.data != nil {
			w.reader(w.share, r)[0] = fromSlots / total
		}
	}
	if w.Window > 0 {
		w.stepValues(window, from)
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

// stepScores is the token's logits with the window from token from on.
func (w *nhaWorker) stepScores(to kernel.Matrix, from int) {
	if w.Window == 0 {
		return
	}
	w.base, w.cos, w.sin = 0, nil, nil
	if w.Rope != nil {
		w.cos, w.sin = w.Rope.Table(w.held + 1)
	}
	w.rotateQueries()
	w.eachStretch(from, func(u, n int, keys, _ []float32) {
		for r := range w.group {
			q, out := w.rq.Row(r)[:w.KeyDim], to.Row(r)[u-from:u-from+n]
			if w.Rope != nil {
				kernel.RotatedDots(out, keys, w.cos[u*w.KeyDim/2:], w.sin[u*w.KeyDim/2:], q)
				continue
			}
			for i := range out {
				out[i] = kernel.Dot(keys[i*w.KeyDim:(i+1)*w.KeyDim], q)
			}
		}
	})
}

// stepValues adds the window's values under the probabilities p.
func (w *nhaWorker) stepValues(p kernel.Matrix, from int) {
	w.eachStretch(from, func(u, n int, _, values []float32) {
		if w.ValueDim%kernel.TileWidth() == 0 {
			kernel.MatrixTiles(w.group, w.ValueDim, n, p.Data[u-from:], p.Stride, 1, kernel.Matrix{Data: values, Stride: w.ValueDim}, w.o, true)
			return
		}
		for i := range n {
			for r := range w.group {
				kernel.Axpy(w.o.Row(r)[:w.ValueDim], p.Row(r)[u-from+i], values[i*w.ValueDim:(i+1)*w.ValueDim])
			}
		}
	})
}

// eachStretch calls f for the tokens from u on that lie together in memory, with their keys and values: two stretches of the ring
// at most, and the new token.
func (w *nhaWorker) eachStretch(from int, f func(u, n int, keys, values []float32)) {
	for u := from; u < w.held; {
		row := w.ring.row(u)
		n := min(w.held-u, w.ring.rows-row)
		f(u, n, w.ring.keys[row*w.KeyDim:(row+n)*w.KeyDim], w.ring.values[row*w.ValueDim:(row+n)*w.ValueDim])
		u += n
	}
	f(w.held, 1, w.k.row(0), w.v.row(0))
}
