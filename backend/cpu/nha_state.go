package cpu

import (
	"math"

	"nha/attention"
	"nha/backend/cpu/kernel"
	"nha/tensor"
)

// Decode states (SPEC 1.1) as the operator reads and leaves them.

// A ring is one kv head's rows of a state's ring; the zero ring holds nothing. Keys and values are float32 or half precision.
type ring struct {
	keys, values, gates     []float32
	keys16, values16        []uint16 // instead of keys and values
	start, rows             int
	keyDim, valueDim, slots int
}

func (w *nhaWorker) ringOf(s *attention.State) ring {
	if s == nil || s.Capacity() == 0 {
		return ring{}
	}
	r := ring{start: s.Start, rows: s.Capacity(), keyDim: w.KeyDim, valueDim: w.ValueDim, slots: w.Slots}
	keys, values, gates := r.rows*w.KeyDim, r.rows*w.ValueDim, r.rows*w.Slots
	if s.Keys.DType == tensor.F16 {
		r.keys16, r.values16 = s.Keys.U16()[w.head*keys:(w.head+1)*keys], s.Values.U16()[w.head*values:(w.head+1)*values]
	} else {
		r.keys, r.values = s.Keys.F32()[w.head*keys:(w.head+1)*keys], s.Values.F32()[w.head*values:(w.head+1)*values]
	}
	if w.Slots > 0 {
		r.gates = s.LogGates.F32()[w.head*gates : (w.head+1)*gates]
	}
	return r
}

// row is where the i-th oldest token lies.
func (r *ring) row(i int) int {
	if i += r.start; i >= r.rows {
		i -= r.rows
	}
	return i
}

// key and value are of a float32 ring.
func (r *ring) key(i int) []float32   { return rowOf(r.keys, r.row(i), r.keyDim) }
func (r *ring) value(i int) []float32 { return rowOf(r.values, r.row(i), r.valueDim) }
func (r *ring) gate(i int) []float32  { return rowOf(r.gates, r.row(i), r.slots) }

func rowOf[E any](x []E, i, width int) []E { return x[i*width : (i+1)*width] }

// store writes a token to a row.
func (r *ring) store(row int, key, value []float32) {
	if r.keys16 != nil {
		kernel.NarrowF16(rowOf(r.keys16, row, r.keyDim), key)
		kernel.NarrowF16(rowOf(r.values16, row, r.valueDim), value)
		return
	}
	copy(rowOf(r.keys, row, r.keyDim), key)
	copy(rowOf(r.values, row, r.valueDim), value)
}

// writeStrength is s = -expm1(log a), by its series where 1 - a would cancel.
func writeStrength(logA float32) float32 {
	if logA < -0.25 {
		return float32(1 - math.Exp(float64(logA)))
	}
	x := -logA
	return x * (1 - x*(1.0/2)*(1-x*(1.0/3)*(1-x*(1.0/4)*(1-x*(1.0/5)*(1-x*(1.0/6))))))
}

// prepareFinal gives the final state room, before the tasks write its rows. One that is its own initial state keeps its tokens.
func prepareFinal(c *attention.Call, initial, final *attention.State, tokens int) {
	held := 0
	if initial != nil {
		held = initial.Count
	}
	if final != initial {
		final.Start, final.Count = 0, 0
	}
	final.Reserve(c.Config, min(c.Window, held+tokens))
}

// advance sets the counters of the final state, once every head has written its rows.
func advance(c *attention.Call, initial, final *attention.State, tokens int) {
	position, start, held := 0, 0, 0
	if initial != nil {
		position, held = initial.Position, initial.Count
	}
	if final == initial {
		start = initial.Start
	}
	kept := min(c.Window, held+tokens)
	if rows := final.Capacity(); rows > 0 && final == initial {
		start = (start + held + tokens - kept) % rows
	}
	final.Position, final.Start, final.Count = position+tokens, start, kept
}

// prepareGradient makes d the form of the initial state, whose gradient it will be.
func prepareGradient(c *attention.Call, initial, d *attention.State) {
	d.Start, d.Position, d.Count = 0, 0, 0
	if initial != nil {
		d.Reserve(c.Config, initial.Count)
		d.Position, d.Count = initial.Position, initial.Count
	}
}

// loadSlots copies the initial slots of the worker's head, zeros where there are none, into padded states.
func (w *nhaWorker) loadSlots() {
	for i := range w.slotWidth {
		var key, value []float32
		if w.initial != nil && i < w.Slots {
			key, value = slotRow(w.initial.SlotKeys, w.head, i), slotRow(w.initial.SlotValues, w.head, i)
		}
		load(w.keyState, i, key, w.keyWidth)
		load(w.valueState, i, value, w.valueWidth)
	}
}

func slotRow(t tensor.Tensor, head, i int) []float32 {
	slots, width := t.Dim(1), t.Dim(2)
	from := (head*slots + i) * width
	return t.F32()[from : from+width]
}

// slotsOf is one head's slots.
func slotsOf(t tensor.Tensor, head int) []float32 {
	n := t.Dim(1) * t.Dim(2)
	return t.F32()[head*n : (head+1)*n]
}

// storeSlots copies padded states to the worker's head of a state.
func (w *nhaWorker) storeSlots(to *attention.State, keys, values kernel.Matrix) {
	for i := range w.Slots {
		copy(slotRow(to.SlotKeys, w.head, i), keys.Row(i))
		copy(slotRow(to.SlotValues, w.head, i), values.Row(i))
	}
}

// storeFinal writes the worker's head of the final state.
func (w *nhaWorker) storeFinal() {
	final := stateOf(w.call.Final, w.index)
	if final == nil {
		return
	}
	if w.Slots > 0 {
		w.storeSlots(final, w.keyState, w.valueState)
	}
	w.storeRing(final)
}

// storeRing writes the last min(W, e) tokens. In place, those that stay are where they belong and token e goes to row Start+e.
func (w *nhaWorker) storeRing(final *attention.State) {
	rows := final.Capacity()
	if rows == 0 {
		return
	}
	from := w.all() - min(w.Window, w.all())
	oldest, shift := from, -from
	if final == w.initial {
		oldest, shift = max(from, w.held), final.Start
	}
	to := w.ringOf(final)
	for e := oldest; e < w.all(); e++ {
		row := (e + shift) % rows
		to.store(row, w.key(e), w.value(e))
		switch {
		case w.Slots == 0:
		case e < w.held:
			copy(rowOf(to.gates, row, w.Slots), w.ring.gate(e))
		default:
			kernel.GateForward(rowOf(to.gates, row, w.Slots), w.gateScratch[:w.Slots], w.z.row(e-w.held), float32(w.GateNormalizer))
		}
	}
}
