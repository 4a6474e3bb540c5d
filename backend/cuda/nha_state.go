package cuda

import (
	"nha/attention"
	"nha/tensor"
)

// Decode states (SPEC 1.1) are values on the host. A call that has any brings them to the card and back, and waits for it: rings
// in the order of time, [H, tokens, *], slots as they are.

func stateOf(states []*attention.State, i int) *attention.State {
	if states == nil {
		return nil
	}
	return states[i]
}

// kept is how many tokens sequence i leaves in its window.
func (r *nhaRun) kept(i int) int {
	s := r.sequences[i]
	return min(r.c.Window, int(s.held+s.tokens))
}

// upState brings what sequence i starts with, and makes room for what it leaves.
func (r *nhaRun) upState(i int, s *nhaSequence) {
	b, c := r.b, r.c
	initial := stateOf(c.Initial, i)
	if initial != nil {
		s.held, s.capacity = int64(initial.Count), int64(initial.Count)
		s.slotKeys, s.slotValues = b.upState(initial.SlotKeys, tensor.F32), b.upState(initial.SlotValues, tensor.F32)
		s.keys, s.values = b.upRing(initial, initial.Keys, b.dtype), b.upRing(initial, initial.Values, b.dtype)
		s.gates = b.upRing(initial, initial.LogGates, tensor.F32)
	}
	slotKeys, slotValues := 4*c.KVHeads*c.Slots*c.KeyDim, 4*c.KVHeads*c.Slots*c.ValueDim
	if r.g == nil {
		if stateOf(c.Final, i) != nil && c.Slots > 0 {
			s.finalKeys, s.finalValues = b.scratch(slotKeys), b.scratch(slotValues)
		}
		return
	}
	if d := stateOf(r.g.DFinal, i); d != nil {
		s.dSlotKeys, s.dSlotValues = b.upState(d.SlotKeys, tensor.F32), b.upState(d.SlotValues, tensor.F32)
	}
	if stateOf(r.g.DInitial, i) != nil && c.Slots > 0 {
		s.initialDKeys, s.initialDValues = b.scratch(slotKeys), b.scratch(slotValues)
	}
	if s.held > 0 { // kernels write it, wanted or not
		tokens := c.KVHeads * int(s.held)
		s.ringDKeys, s.ringDValues = b.scratch(tokens*c.KeyDim*b.dtype.Size()), b.scratch(tokens*c.ValueDim*b.dtype.Size())
		gates := b.scratchTensor(tensor.F32, tensor.Of(max(1, tokens*c.Slots)))
		b.d.fill(gates.Address(), 0, 4*gates.Len())
		s.ringDGates = pointer(gates)
	}
}

// upState is a state's tensor on the card in type d; 0 for none.
func (b *Backend) upState(t tensor.Tensor, d tensor.DType) arg {
	if !t.Present() {
		return 0
	}
	to := b.scratchTensor(d, t.Shape)
	b.d.write(to, t)
	return pointer(to)
}

// upRing is a ring's tensor on the card, its tokens in the order of time; 0 for none.
func (b *Backend) upRing(s *attention.State, t tensor.Tensor, d tensor.DType) arg {
	if !t.Present() || s.Count == 0 {
		return 0
	}
	return b.upState(inOrder(s, t), d)
}

// inOrder is a ring's tensor with its tokens in the order of time, [H, Count, width].
func inOrder(s *attention.State, t tensor.Tensor) tensor.Tensor {
	width := t.Columns()
	to := tensor.New(t.DType, tensor.Of(t.Dim(0), s.Count, width))
	for h := range t.Dim(0) {
		stretches(0, s.Count, s.Start, s.Capacity(), s.Count, func(from, row, n int) {
			part := tensor.Of(n * width)
			tensor.Convert(to.At((h*s.Count+row)*width, part), t.At((h*s.Capacity()+from)*width, part))
		})
	}
	return to
}

// copyRow copies a row of width numbers, by number, between host tensors.
func copyRow(to tensor.Tensor, toRow int, from tensor.Tensor, fromRow, width int) {
	tensor.Convert(to.At(toRow*width, tensor.Of(width)), from.At(fromRow*width, tensor.Of(width)))
}

// fromCard reads a tensor of the card at p.
func (b *Backend) fromCard(to tensor.Tensor, d tensor.DType, p arg) {
	if to.Present() && to.Len() > 0 {
		b.d.read(to, tensor.OnDevice(d, to.Shape, uintptr(p)))
	}
}

// lastRows is the last n rows of sequence i of a tensor of the call, on the host.
func (r *nhaRun) lastRows(t tensor.Tensor, i, n int) tensor.Tensor {
	if !t.Present() || n == 0 {
		return tensor.Tensor{}
	}
	end := int(r.sequences[i].at + r.sequences[i].tokens)
	from := t.Narrow(end-n, end)
	to := tensor.New(t.DType, from.Shape)
	r.b.d.read(to, from)
	return to
}

// lastGates is log a of the last n tokens of sequence i, on the host, [n, H*M] in float32.
func (r *nhaRun) lastGates(i, n int) tensor.Tensor {
	z := r.c.Z
	if !z.Present() || n == 0 {
		return tensor.Tensor{}
	}
	end := int(r.sequences[i].at + r.sequences[i].tokens)
	z = z.Narrow(end-n, end)
	gates := r.b.scratchTensor(tensor.F32, z.Shape)
	r.b.d.launch(r.b.d.kernel("state.cu", "log_gates", realType(z.DType)), grid{blocks(z.Len(), 256), 1, 1}, 256, 0, pointer(gates), pointer(z), integer(z.Len()),
		f32(1/r.c.GateNormalizer))
	host := tensor.New(tensor.F32, z.Shape)
	r.b.d.read(host, gates)
	return host
}

// finish brings the final states.
func (r *nhaRun) finish() {
	for i := range r.sequences {
		if final := stateOf(r.c.Final, i); final != nil {
			r.downState(i, final)
		}
	}
}

// downState writes the state after sequence i.
func (r *nhaRun) downState(i int, final *attention.State) {
	c, s, kept, initial := r.c, r.sequences[i], r.kept(i), stateOf(r.c.Initial, i)
	r.b.fromCard(final.SlotKeys, tensor.F32, s.finalKeys)
	r.b.fromCard(final.SlotValues, tensor.F32, s.finalValues)
	fresh := min(kept, int(s.tokens)) // of the ring's tokens; the others come from the initial state's
	keys, values, gates := r.lastRows(c.K, i, fresh), r.lastRows(c.V, i, fresh), r.lastGates(i, fresh)
	position, old := int(s.tokens), [3]tensor.Tensor{}
	if initial != nil {
		position += initial.Position
		for n, t := range [...]tensor.Tensor{initial.Keys, initial.Values, initial.LogGates} {
			if t.Present() && fresh < kept {
				old[n] = inOrder(initial, t) // final may be the same state
			}
		}
	}
	if final != initial {
		final.Count = 0
	}
	final.Reserve(c.Config, kept)
	final.Position, final.Start, final.Count = position, 0, kept
	stay := kept - fresh
	for h := range c.KVHeads {
		for n := range kept {
			to := h*final.Capacity() + n
			if n < stay {
				from := h*int(s.held) + int(s.held) - stay + n
				copyRow(final.Keys, to, old[0], from, c.KeyDim)
				copyRow(final.Values, to, old[1], from, c.ValueDim)
				if c.Slots > 0 {
					copyRow(final.LogGates, to, old[2], from, c.Slots)
				}
				continue
			}
			from := (n-stay)*c.KVHeads + h
			copyRow(final.Keys, to, keys, from, c.KeyDim)
			copyRow(final.Values, to, values, from, c.ValueDim)
			if c.Slots > 0 {
				copyRow(final.LogGates, to, gates, from, c.Slots)
			}
		}
	}
}

// finishBackward adds the gradients of the final states' rings and brings those of the initial states.
func (r *nhaRun) finishBackward() {
	for i := range r.sequences {
		dFinal, dInitial := stateOf(r.g.DFinal, i), stateOf(r.g.DInitial, i)
		if dFinal != nil && dFinal.Count > 0 {
			r.addFinal(i, dFinal)
		}
		if dInitial != nil {
			r.downGradient(i, dInitial, dFinal)
		}
	}
}

// addFinal adds the gradient of the final ring to that of the call's tokens in it.
func (r *nhaRun) addFinal(i int, d *attention.State) {
	b, c, s, kept := r.b, r.c, r.sequences[i], r.kept(i)
	fresh := min(kept, int(s.tokens))
	keys, values, gates := b.upRing(d, d.Keys, b.dtype), b.upRing(d, d.Values, b.dtype), b.upRing(d, d.LogGates, tensor.F32)
	normalizer := arg(0)
	if c.Slots > 0 {
		normalizer = f32(1 / c.GateNormalizer)
	}
	const threads = 64
	b.d.launch(b.d.kernel("nha_final.cu", "nha_final", b.real), grid{fresh, c.KVHeads, 1}, threads, 0, pointer(r.g.DK), pointer(r.g.DV), pointer(r.g.DZ), pointer(c.Z), keys, values, gates,
		integer(int(s.at+s.tokens)-fresh), integer(kept-fresh), integer(kept), r.heads(), integer(c.KeyDim), integer(c.ValueDim), integer(c.Slots), normalizer)
}

// downGradient writes the gradient of sequence i's initial state. Tokens of its ring that are in the final ring too have a part of
// that one's gradient, dFinal.
func (r *nhaRun) downGradient(i int, d, dFinal *attention.State) {
	b, c, s := r.b, r.c, r.sequences[i]
	held, position := int(s.held), 0
	if initial := stateOf(c.Initial, i); initial != nil {
		position = initial.Position
	}
	b.fromCard(d.SlotKeys, tensor.F32, s.initialDKeys)
	b.fromCard(d.SlotValues, tensor.F32, s.initialDValues)
	d.Start, d.Count = 0, 0
	d.Reserve(c.Config, held)
	d.Position, d.Count = position, held
	if held == 0 {
		return
	}
	stay := 0
	if dFinal != nil {
		stay = max(0, r.kept(i)-int(s.tokens))
	}
	part := func(to, final tensor.Tensor, type_ tensor.DType, from arg) {
		if !to.Present() {
			return
		}
		width := to.Columns()
		x := tensor.New(tensor.F32, tensor.Of(c.KVHeads, held, width))
		b.fromCard(x, type_, from)
		var added tensor.Tensor
		if stay > 0 {
			added = inOrder(dFinal, final)
		}
		for h := range c.KVHeads {
			for n := range held {
				row := x.At((h*held+n)*width, tensor.Of(width))
				for m := range width {
					if n >= held-stay {
						row.F32()[m] += float32(added.Value((h*dFinal.Count+n-(held-stay))*width + m))
					}
				}
				copyRow(to, h*d.Capacity()+n, row, 0, width)
			}
		}
	}
	var keys, values, gates tensor.Tensor
	if dFinal != nil {
		keys, values, gates = dFinal.Keys, dFinal.Values, dFinal.LogGates
	}
	part(d.Keys, keys, b.dtype, s.ringDKeys)
	part(d.Values, values, b.dtype, s.ringDValues)
	part(d.LogGates, gates, tensor.F32, s.ringDGates)
}
