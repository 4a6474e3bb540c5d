package cpu

import (
	"math"

	"nha/backend/cpu/kernel"
)

var negativeInfinity = float32(math.Inf(-1))

// forward walks the tokens upwards.
func (w *nhaWorker) forward() {
	rows := w.chunk * w.group
	w.q, w.rq = w.matrix(rows, w.keyWidth), w.matrix(rows, w.keyWidth)
	w.o = w.matrix(rows, w.valueWidth)
	w.top, w.sum = w.floats(rows), w.floats(rows)
	w.startSlots()
	w.startWindow()
	w.startStates()
	for e := w.from; e < w.to; e += w.chunk {
		w.startChunk(e)
		w.forwardChunk()
	}
	if w.part == nil {
		w.storeFinal()
	}
}

// startStates loads the slots that the walk begins with.
func (w *nhaWorker) startStates() {
	if w.part == nil || w.part.number == 0 {
		w.loadSlots()
		return
	}
	w.recall(w.part.states, 0)
}

// startSlots takes the scratch that forward and backward share.
func (w *nhaWorker) startSlots() {
	w.keyState, w.valueState = w.matrix(w.slotWidth, w.keyWidth), w.matrix(w.slotWidth, w.valueWidth)
	w.x, w.y = w.matrix(w.chunk, w.keyWidth), w.matrix(w.chunk, w.valueWidth)
	w.s, w.logA = w.matrix(w.chunk, w.slotWidth), w.matrix(w.chunk, w.slotWidth)
	w.weights = w.matrix(w.chunk*w.group, w.slotWidth)
	w.gateScratch = w.floats(w.slotWidth)
}

func (w *nhaWorker) forwardChunk() {
	rows := w.count * w.group
	clear(w.o.Data[:rows*w.o.Stride])
	if w.idle() {
		clear(w.weights.Data[:rows*w.weights.Stride])
	} else {
		kernel.SlotRead(w.keyShape(), w.keyState, w.x, w.s, w.q, w.weights)
	}
	for r := range rows {
		w.sum[r], w.top[r] = 0, negativeInfinity
		if w.live(w.first + r/w.group) {
			w.top[r] = kernel.Max(w.weights.Row(r)[:w.Slots])
		}
	}
	if w.Window > 0 {
		w.aim()
		w.rotateQueries()
		end := w.first + w.count
		for tile := w.windowStart(w.first) / nhaTile; tile*nhaTile < end; tile += w.groupTiles {
			for r := 0; r < rows; r += bandRows {
				w.forwardBand(w.bandAt(r, tile*nhaTile, min(end, (tile+w.groupTiles)*nhaTile)))
			}
		}
	}
	for r := range rows {
		w.meetSlots(r, w.first+r/w.group)
	}
	if !w.idle() {
		kernel.SlotWrite(w.valueShape(), w.valueState, w.y, w.s, w.weights, w.o)
	}
	for r := range rows {
		copy(w.reader(w.outputs, r), w.o.Row(r))
	}
}

// forwardBand adds a group of tiles to a band's outputs and sums; both are relative to the rows' running maxima.
func (w *nhaWorker) forwardBand(b band) {
	if b.lo >= b.hi {
		return
	}
	w.eachTile(b, func(k *nhaKeys, lo, hi int) {
		w.product(b, w.rq, w.keyWidth, k.keysT, k.index, lo, hi, w.scores)
	})
	for r := b.row; r < b.row+b.rows; r++ {
		lo, hi := w.seen(b, r)
		row := w.scores.Row(r)
		clear(row[b.lo-b.from : lo])
		clear(row[hi : b.hi-b.from])
		if lo == hi {
			continue
		}
		row = row[lo:hi]
		if top := kernel.Max(row); top > w.top[r] {
			if w.sum[r] > 0 {
				shrink := float32(math.Exp(float64(w.top[r] - top)))
				w.sum[r] *= shrink
				kernel.Scale(w.o.Row(r)[:w.ValueDim], shrink)
			}
			w.top[r] = top
		}
		w.sum[r] += kernel.ExpSum(row, row, w.top[r])
	}
	w.eachTile(b, func(k *nhaKeys, lo, hi int) {
		p, values, o := w.scores, k.values, w.o
		values.Data = values.Row(lo - k.index*nhaTile)
		o.Data = o.Row(b.row)
		kernel.MatrixTiles(b.rows, w.valueWidth, hi-lo, p.Row(b.row)[lo-b.from:], p.Stride, 1, values, o, true)
	})
}

// meetSlots turns the sums of row r, a query of token e, into outputs of the one softmax, its slot logits into probabilities.
func (w *nhaWorker) meetSlots(r, e int) {
	p, fromSlots := w.weights.Row(r)[:w.Slots], float32(0)
	if w.live(e) {
		fromSlots = kernel.ExpSum(p, p, w.top[r])
	} else {
		clear(p)
	}
	total := w.sum[r] + fromSlots
	kernel.Scale(p, 1/total)
	kernel.Scale(w.o.Row(r)[:w.ValueDim], 1/total)
	w.reader(w.lse, r)[0] = w.top[r] + float32(math.Log(float64(total)))
	if w.share.data != nil {
		w.reader(w.share, r)[0] = fromSlots / total
	}
}
