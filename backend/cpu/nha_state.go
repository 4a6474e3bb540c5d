package cpu

import (
	"math"

	"nha/attention"
	"nha/backend/cpu/kernel"
	"nha/tensor"
)

// Decode states (SPEC 1.1) as the operator reads and leaves them.

// ringRow is one head's row of a ring tensor for the ring's i-th oldest token.
func ringRow(s *attention.State, x []float32, head, i, width int) []float32 {
	from := (head*s.Capacity() + s.Row(i)) * width
	return x[from : from+width]
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
	keys, values := final.Keys.F32(), final.Values.F32()
	for e := oldest; e < w.all(); e++ {
		row := w.head*rows + (e+shift)%rows
		copy(keys[row*w.KeyDim:(row+1)*w.KeyDim], w.key(e))
		copy(values[row*w.ValueDim:(row+1)*w.ValueDim], w.value(e))
		if w.Slots > 0 {
			logA := final.LogGates.F32()[row*w.Slots : (row+1)*w.Slots]
			if e < w.held {
				copy(logA, ringRow(w.initial, w.initial.LogGates.F32(), w.head, e, w.Slots))
			} else {
				kernel.GateForward(logA, w.gateScratch[:w.Slots], w.logits(e), float32(w.GateNormalizer))
			}
		}
	}
}
