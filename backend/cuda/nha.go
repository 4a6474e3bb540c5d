package cuda

import (
	"fmt"
	"slices"
	"unsafe"

	"nha/attention"
	"nha/tensor"
)

// The operator (SPEC 1) on the card. In bf16 a sequence is cut into segments that are computed side by side (kernels/nha.cuh):
//
//	forward   turn                            rotated keys and queries
//	          contribute, scan                the slots at segment starts
//	          forward                         outputs
//	backward  turn, contribute, scan          the same again
//	          full queries                    the window's part of dq
//	          queries, scan (down)            dq; the slots' adjoints at segment ends
//	          slots, full keys                dk, dv, dz
//
// Where no slot takes part that is turn and full forward; turn, full queries and full keys (kernels/nha_full.cu).
//
// In float32 it is the recurrence, token by token (kernels/nha_f32.cu). States are the host's: they are brought to the card before
// and back after (nha_state.go); the kernels read and write them in the layout of attention.State.

const (
	nhaSegment = 256 // tokens, a multiple of nhaChunk
	nhaChunk   = 64
)

// The kernels in bf16, by PASS.
const (
	nhaContribute = iota
	nhaScan
	nhaForward
	nhaQueries
	nhaSlots
	nhaTurn
	nhaFullForward
	nhaFullQueries
	nhaFullKeys
)

// nhaKernels are their files and entries.
var nhaKernels = [...]struct{ file, entry string }{
	{"nha_forward.cu", "nha_contribute"}, {"nha_forward.cu", "nha_scan"}, {"nha_forward.cu", "nha_forward"},
	{"nha_backward.cu", "nha_backward_queries"}, {"nha_backward.cu", "nha_backward_slots"},
	{"nha_full.cu", "nha_turn"}, {"nha_full.cu", "nha_full_forward"}, {"nha_full.cu", "nha_full_queries"}, {"nha_full.cu", "nha_full_keys"},
}

// nhaSequence is a row of the table that kernels read: struct Sequence of nha.cuh. Addresses are 0 for what is not there.
type nhaSequence struct {
	//lint:ignore U1000 start stays 0, as rings are brought up in the order of time; kernels read it
	at, tokens, held, start, capacity, base, baseToken int64
	key, value, slots                                  int64 // K, V, M
	keys, values, gates                                arg   // the ring's
	slotKeys, slotValues                               arg
	finalKeys, finalValues                             arg
	ringDKeys, ringDValues, ringDGates                 arg
	dSlotKeys, dSlotValues                             arg
	initialDKeys, initialDValues                       arg
}

// nhaRun is one call of the operator under way.
type nhaRun struct {
	b         *Backend
	c         *attention.Call
	g         *attention.Gradients // nil: forward
	sequences []nhaSequence
	longest   int // tokens of the longest sequence, its ring's among them
	all       int // tokens of all sequences, their rings' among them
	segments  int
	slots     int // as kernels see them: 0 where no token enters and no state is carried
	sinks     float64
	sets      int // of slots in scratch: one more for a sequence than it has segments
	table     arg
	items     arg  // sequence and segment, pairs of int32
	chunks    list // of tokens, the rings' among them, by nhaChunk
	blocks    list // of queries
	cos, sin  arg
}

// list is pairs of int32 on the card: a sequence, and which of its parts.
type list struct {
	n  int
	at arg
}

// NHA is the operator: outputs, and final states where wanted.
func (b *Backend) NHA(c *attention.Call) {
	b.op("nha", c.Q, c.K, c.V, c.Z)
	r := b.newRun(c, nil)
	if b.dtype == tensor.F32 {
		r.forwardF32()
	} else {
		r.compile()
		r.forward()
	}
	r.finish()
}

// NHABackward is the gradient of NHA. It forms the slots and the probabilities again, from the inputs and lse.
func (b *Backend) NHABackward(c *attention.Call, g *attention.Gradients) {
	b.op("nha backward", c.Q, c.K, c.V, c.Z)
	r := b.newRun(c, g)
	if b.dtype == tensor.F32 {
		r.backwardF32()
	} else {
		r.compile()
		r.backward()
	}
	r.finishBackward()
}

// newRun brings states and tables to the card.
func (b *Backend) newRun(c *attention.Call, g *attention.Gradients) *nhaRun {
	r := &nhaRun{b: b, c: c, g: g, slots: c.Slots}
	at, all, carried := 0, 0, false
	var items []int32
	for i, tokens := range c.Lengths {
		s := nhaSequence{at: int64(at), tokens: int64(tokens), base: int64(r.sets), baseToken: int64(all), key: int64(c.KeyDim), value: int64(c.ValueDim), slots: int64(c.Slots)}
		r.upState(i, &s)
		carried = carried || s.slotKeys != 0 || s.initialDKeys != 0 || s.finalKeys != 0 || s.dSlotKeys != 0
		segments := blocks(tokens, nhaSegment)
		for n := range segments {
			items = append(items, int32(i), int32(n))
		}
		r.sequences = append(r.sequences, s)
		r.sets += segments + 1
		r.segments += segments
		r.longest = max(r.longest, int(s.held)+tokens)
		all += int(s.held) + tokens
		at += tokens
	}
	if r.slots > 0 && !carried && r.longest <= c.Window {
		r.slots = 0
		if c.EmptySlots == attention.Count {
			r.sinks = float64(c.Slots)
		}
	}
	r.all = all
	lists := [][]int32{items}
	if c.Window > 0 && b.dtype != tensor.F32 {
		rows := nhaFullRows
		if g != nil {
			rows = r.shape().queryRows()
		}
		lists = append(lists, r.blocksOf(nhaChunk, true), r.blocksOf(rows, false))
	}
	r.upLists(lists)
	if c.Rope != nil && c.Window > 0 {
		r.cos, r.sin = b.ropeTable(c.Rope, r.longest)
	}
	return r
}

// upLists brings the table of sequences and lists of their parts to the card, all in one copy.
func (r *nhaRun) upLists(lists [][]int32) {
	table := slices.Clone(bytesOf(r.sequences))
	for _, l := range lists {
		table = append(table, bytesOf(l)...)
	}
	at := upTable(r.b, table)
	r.table, r.items = at, at+arg(len(bytesOf(r.sequences)))
	if len(lists) > 1 {
		r.chunks = list{len(lists[1]) / 2, r.items + arg(4*len(lists[0]))}
		r.blocks = list{len(lists[2]) / 2, r.chunks.at + arg(4*len(lists[1]))}
	}
}

func bytesOf[E any](rows []E) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(rows))), len(rows)*int(unsafe.Sizeof(*new(E))))
}

// upTable brings rows of a table to the card, for the op in hand.
func upTable[E any](b *Backend, rows []E) arg {
	bytes := bytesOf(rows)
	return b.tables.up(b, bytes)
}

// nhaShape is the sizes that kernels of nha.cu are laid out by.
type nhaShape struct{ key, value, slots int } // K and V in steps of 16, M of 32

func (r *nhaRun) shape() nhaShape {
	return nhaShape{(r.c.KeyDim + 15) / 16 * 16, (r.c.ValueDim + 15) / 16 * 16, (r.slots + 31) / 32 * 32}
}

// state is the numbers of one kv head's slots.
func (s nhaShape) state() int { return s.slots * (s.key + s.value) }

// windowRows are the tokens of the window that a block of forward has in shared memory at a time: where a card has room for one block, 64.
func (s nhaShape) windowRows(available int) int {
	if s.shared(nhaForward, nhaChunk) > available {
		return nhaChunk / 2
	}
	return nhaChunk
}

// shared is the shared memory of a kernel, as it takes it.
func (s nhaShape) shared(pass, windowRows int) int {
	keys, values, slotKeys, slotValues := nhaChunk*(s.key+8)*2, nhaChunk*(s.value+8)*2, s.slots*(s.key+8)*2, s.slots*(s.value+8)*2
	gate, weights := nhaChunk*(s.slots+4)*4, nhaChunk*(s.slots+8)*2
	gates := gate + 2*weights + 4*s.slots*4
	keySums, valueSums := nhaChunk*(s.key+8)*4, nhaChunk*(s.value+8)*4
	row := nhaChunk * 4
	switch pass {
	case nhaContribute:
		return keys + values + gates
	case nhaForward:
		return max(2*keys, valueSums) + 3*row + keys + values + (keys+values)*windowRows/nhaChunk + slotKeys + slotValues + gates
	case nhaQueries:
		rests := slotKeys
		if max(s.key, s.value) <= 64 {
			rests += slotValues
		}
		return max(keys+values, keySums) + keys + values + max(slotKeys+slotValues, 2*weights) + rests + gates + s.slots*4 + 8*row
	case nhaSlots:
		sums := max(keySums, valueSums)
		if max(s.key, s.value) <= 64 {
			sums *= 2
		}
		return max(keys+values, 2*gate) + max(keys+values+2*weights, slotKeys+slotValues, sums) + gates + 2*gate + 5*s.slots*4
	case nhaFullForward:
		return max(2*(keys+values), nhaFullRows*(max(s.key, s.value)+8)*2)
	case nhaFullQueries:
		rows := s.queryRows()
		return max(2*(2*keys+values), rows*(2*s.key+s.value+24)*2, rows*(s.key+8)*4)
	case nhaFullKeys:
		return max(2*(2*keys+values), keySums, valueSums) + 4*row
	}
	return 0
}

// passes are the kernels that a call of this shape may need.
func (s nhaShape) passes() []int {
	if s.slots == 0 {
		return []int{nhaTurn, nhaFullForward, nhaFullQueries, nhaFullKeys}
	}
	return []int{nhaContribute, nhaScan, nhaForward, nhaQueries, nhaSlots, nhaTurn, nhaFullQueries, nhaFullKeys}
}

// together is how many blocks are to share a multiprocessor: as many as have room for their registers and shared memory.
func (s nhaShape) together(pass, available int) int {
	const reserved = 1 << 10 // by CUDA, for every block
	n := 1
	if max(s.key, s.value) <= 64 && s.slots <= 64 {
		switch pass {
		case nhaContribute:
			n = 3
		case nhaForward, nhaFullForward:
			n = 2
		case nhaFullQueries, nhaFullKeys:
			n = 3
		}
	}
	return max(1, min(n, (available+reserved)/(s.shared(pass, s.windowRows(available))+reserved)))
}

// threads are a kernel's to a block.
func (s nhaShape) threads(pass int) int {
	switch {
	case pass == nhaTurn, pass == nhaFullKeys, pass == nhaFullForward && max(s.key, s.value) <= 64:
		return 128
	case pass == nhaFullQueries:
		return 2 * s.queryRows()
	}
	return 256
}

// launch queues a kernel over a grid.
func (r *nhaRun) launch(pass int, g grid, args ...arg) {
	k := r.b.d.kernel(nhaKernels[pass].file, nhaKernels[pass].entry, r.defines(pass)...)
	s := r.shape()
	r.b.d.launch(k, g, s.threads(pass), s.shared(pass, s.windowRows(r.b.d.shared)), args...)
}

// defines are a kernel's constants. Where nothing is padded the sizes are constants, other calls share a padded shape.
func (r *nhaRun) defines(pass int) []define {
	s := r.shape()
	return s.defines(pass, s == nhaShape{r.c.KeyDim, r.c.ValueDim, r.slots}, r.b.d.shared)
}

// compile has the kernels of the call's shape compiled together, the first time.
func (r *nhaRun) compile() {
	var missing []moduleKey
	s, available := r.shape(), r.b.d.shared
	for _, pass := range s.passes() {
		if need := s.shared(pass, s.windowRows(available)); need > available {
			panic(&Error{Op: "nha", Text: fmt.Sprintf("%d slots of %d and %d numbers need %d KiB of shared memory, a block of this card has %d", r.c.Slots, r.c.KeyDim, r.c.ValueDim, need>>10, available>>10),
				Advice: "take fewer slots, or --backend cuda-f32"})
		}
		k := key(nhaKernels[pass].file, r.defines(pass))
		if _, ok := r.b.d.modules.loaded[k]; !ok {
			missing = append(missing, k)
		}
	}
	if len(missing) > 0 {
		if err := r.b.d.load(missing...); err != nil {
			panic(err)
		}
	}
}

func (s nhaShape) defines(pass int, exact bool, available int) []define {
	list := []define{number("PASS", pass), number("KEY_DIM", s.key), number("VALUE_DIM", s.value), number("SLOTS", s.slots), flag("EXACT", exact), number("SEGMENT", nhaSegment), number("BLOCKS", s.together(pass, available))}
	if pass == nhaForward {
		list = append(list, number("TILE", s.windowRows(available)))
	}
	return list
}

// bySegment is a block for every segment and kv head, bySlot one for 1024 numbers of the slots of a sequence and kv head.
func (r *nhaRun) bySegment() grid { return grid{r.segments, r.c.KVHeads, 1} }

func (r *nhaRun) bySlot() grid {
	return grid{blocks(r.shape().state(), 4*256), r.c.KVHeads, len(r.sequences)}
}

func (r *nhaRun) queryHeads() arg { return integer(r.c.QueryHeads) }
func (r *nhaRun) heads() arg      { return integer(r.c.KVHeads) }

// window is W, or as many tokens as there are: kernels may add to it.
func (r *nhaRun) window() arg { return integer(min(r.c.Window, r.longest)) }
func (r *nhaRun) scale() arg  { return f32(r.c.Scale) }

// normalizer is 1/tau; without slots there is none.
func (r *nhaRun) normalizer() arg {
	if r.slots == 0 {
		return 0
	}
	return f32(1 / r.c.GateNormalizer)
}

func (r *nhaRun) mask() arg { return truth(r.c.EmptySlots == attention.Mask) }

// starts computes the slots at the start of every segment, and how far a segment makes slots fade.
func (r *nhaRun) starts() (states, decays arg) {
	if r.slots == 0 {
		return 0, 0
	}
	c, sets := r.c, r.sets*r.c.KVHeads
	states, decays = r.b.scratch(4*sets*r.shape().state()), r.b.scratch(4*sets*r.shape().slots)
	r.launch(nhaContribute, r.bySegment(), r.table, r.items, pointer(c.K), pointer(c.V), pointer(c.Z), states, decays, r.heads(), r.window(), r.normalizer())
	r.launch(nhaScan, r.bySlot(), r.table, states, decays, r.heads(), truth(false))
	return states, decays
}

func (r *nhaRun) forward() {
	c := r.c
	t := r.turn(false)
	if r.slots == 0 {
		r.fullForward(t)
		return
	}
	states, _ := r.starts()
	r.launch(nhaForward, r.bySegment(), r.table, r.items, pointer(c.Q), pointer(c.K), pointer(c.V), pointer(c.Z), t.queries, t.keys, states,
		pointer(c.O), pointer(c.LSE), pointer(c.Share), r.queryHeads(), r.heads(), r.window(), r.scale(), r.normalizer(), r.mask(), f32(r.sinks))
}

func (r *nhaRun) backward() {
	c, g, b := r.c, r.g, r.b
	n, shape := c.Q.Dim(0), r.shape()
	t := r.turn(true)
	exact, inner := b.scratch(4*n*c.QueryHeads), b.scratch(4*n*c.QueryHeads)
	if g.DZ.Present() { // tokens that stay in the window have no part in the slots
		b.d.fill(g.DZ.Address(), 0, g.DZ.Len()*g.DZ.DType.Size())
	}
	if r.slots == 0 {
		r.fullQueries(t, 0, exact, inner, 0)
		r.fullKeys(t, exact, inner)
		return
	}
	states, decays := r.starts()
	adjoints := b.scratch(4 * r.sets * c.KVHeads * shape.state())
	weights, dlogits := b.scratch(2*n*c.QueryHeads*shape.slots), b.scratch(2*n*c.QueryHeads*shape.slots)
	earlier := b.scratch(2 * n * c.QueryHeads * shape.slots)
	chunkStates := b.scratch(4 * (nhaSegment / nhaChunk) * r.sets * c.KVHeads * shape.state())
	rest, starts := arg(0), arg(0)
	if c.Window > 0 {
		rest, starts = b.scratch(2*c.Q.Len()), b.scratch(4*n*c.QueryHeads)
		r.fullQueries(t, rest, exact, inner, starts)
	}
	r.launch(nhaQueries, r.bySegment(), r.table, r.items, pointer(c.Q), pointer(c.K), pointer(c.V), pointer(c.Z), states, adjoints, pointer(c.LSE), pointer(g.DO), pointer(g.DQ),
		rest, exact, inner, starts, weights, dlogits, earlier, chunkStates, r.queryHeads(), r.heads(), r.window(), r.scale(), r.normalizer(), r.mask(), f32(r.sinks))
	r.launch(nhaScan, r.bySlot(), r.table, adjoints, decays, r.heads(), truth(true))
	r.launch(nhaSlots, r.bySegment(), r.table, r.items, pointer(c.Q), pointer(c.K), pointer(c.V), pointer(c.Z), states, adjoints, pointer(g.DO), weights, dlogits, earlier, chunkStates,
		pointer(g.DK), pointer(g.DV), pointer(g.DZ), r.queryHeads(), r.heads(), r.window(), r.normalizer())
	if c.Window > 0 {
		r.fullKeys(t, exact, inner)
	}
}

// ropeTables are the rotary tables on the card of the last few that were used.
type ropeTables []ropeTable

type ropeTable struct {
	rope     *attention.Rope
	rows     int
	cos, sin uintptr
}

// ropesKept is more than the models of a process have.
const ropesKept = 4

// ropeTable is the cosines and sines of positions 0 to rows-1, [rows, K/2] in float32, on the card.
func (b *Backend) ropeTable(rope *attention.Rope, rows int) (cos, sin arg) {
	for i, t := range b.ropes {
		if t.rope == rope && t.rows >= rows {
			return arg(t.cos), arg(t.sin)
		}
		if t.rope == rope || i == ropesKept-1 {
			b.d.release(t.cos)
			b.d.release(t.sin)
			b.ropes = append(b.ropes[:i:i], b.ropes[i+1:]...)
			break
		}
	}
	hostCos, hostSin := rope.Table(rows)
	half := rope.Dim() / 2
	up := func(x []float32) uintptr {
		p := b.d.alloc(4*rows*half, forScratch)
		b.d.write(tensor.OnDevice(tensor.F32, tensor.Of(rows*half), p), tensor.FromF32(x[:rows*half], rows*half))
		return p
	}
	t := ropeTable{rope, rows, up(hostCos), up(hostSin)}
	b.ropes = append(ropeTables{t}, b.ropes...)
	return arg(t.cos), arg(t.sin)
}
