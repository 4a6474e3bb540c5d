// Package autograd records the ops of a forward pass and runs their gradients backwards. An op is a forward and a backward
// (ops.go), nothing else; the arithmetic is the backend's.
//
// A Tape is made once and reused: Reset forgets the recorded ops and keeps all memory, so that a training step after the
// first allocates nothing. Memory is also reused within a step: backward gives an op's output and its gradient back as soon
// as nothing further back can need them; Keep, after every block, frees what the block made: without recording all of it, with
// recording the outputs of cheap ops (norms, activations), which backward computes again when it comes to them.
package autograd

import (
	"nha/attention"
	"nha/backend"
	"nha/tensor"
)

// Value is a tensor in the graph, with its gradient once backward has reached it. A Value made by a Tape is valid until
// the Tape's next Reset (or Keep); parameters live as long as their owner.
type Value struct {
	tensor.Tensor               // the data
	Gradient      tensor.Tensor // absent until written

	wants   bool // some parameter or input below wants a gradient
	leaf    bool // the gradient belongs to the owner and stays
	written bool // leaf: the gradient holds something of this step
	dropped bool // the data is gone; its maker can compute it again
	maker   int  // 1 + the index of the record whose output this is; 0: none

	block, gradientBlock tensor.Tensor // arena memory behind Tensor and Gradient
}

// Parameter is a leaf whose gradient goes to memory of the caller's; an absent gradient makes it a constant.
func Parameter(data, gradient tensor.Tensor) *Value {
	return &Value{Tensor: data, Gradient: gradient, wants: gradient.Present(), leaf: true}
}

// ClearGradient says that the next gradient is to be written, not added.
func (v *Value) ClearGradient() { v.written = false }

// Written reports whether backward has given v a gradient since ClearGradient.
func (v *Value) Written() bool { return v.written }

// record is one op on the tape: its backward, and what that needs.
type record struct {
	backward func(t *Tape, r *record)
	again    func(t *Tape, r *record) // computes out's data once more; nil where that cannot be
	cheap    bool                     // again costs little beside what made the inputs
	in       [5]*Value
	out      *Value
	saved    [2]tensor.Tensor // arena blocks that live until backward has run
	rstd     tensor.Tensor
	epsilon  float64
	call     attention.Call
	flows    *StateFlow

	normalize bool     // of Route
	group     []*Value // of LinearEach
	counts    []int
}

// Tape records ops over one backend. The zero value is not usable: New.
type Tape struct {
	b         backend.Backend
	arena     arena
	recording bool
	recompute Recompute
	records   []record
	values    [][]Value // slabs, so that pointers stay valid
	used      int
	gradients attention.Gradients // scratch of the nha op
}

const slab = 256

// New is a tape over b that records (Record) from the start.
func New(b backend.Backend) *Tape {
	return &Tape{b: b, arena: arena{b: b, free: map[int][]tensor.Tensor{}}, recording: true}
}

// Recompute is what backward computes again instead of keeping it from the forward pass. The gradients are the same bits.
type Recompute uint8

const (
	RecomputeActivations Recompute = iota // outputs of norms and activations: a third of the memory for a hundredth of the time
	RecomputeNothing                      // the fastest
	RecomputeBlocks                       // everything between Mark and Keep, a block, but its output: the least memory, a third more time
)

// SetRecompute chooses for the steps that follow.
func (t *Tape) SetRecompute(r Recompute) { t.recompute = r }

// Backend is what the tape computes on.
func (t *Tape) Backend() backend.Backend { return t.b }

// Record switches recording for backward on or off; off is for generation and evaluation.
func (t *Tape) Record(on bool) { t.recording = on }

// Recording reports whether ops are recorded for backward.
func (t *Tape) Recording() bool { return t.recording }

// Bytes is the memory that the tape holds for activations and gradients, in use or not.
func (t *Tape) Bytes() int { return t.arena.bytes }

// Reset forgets the graph and takes all its memory back for the next.
func (t *Tape) Reset() {
	t.releaseFrom(0, nil)
	for i := range t.records {
		t.releaseSaved(&t.records[i])
	}
	clear(t.records)
	t.records = t.records[:0]
	t.used = 0
}

// Close gives the memory back to the backend.
func (t *Tape) Close() {
	t.Reset()
	t.arena.close()
}

// Mark is a point to which Keep goes back.
func (t *Tape) Mark() int { return t.used }

// Keep frees what was made since mark except v, a block's intermediate tensors: all of them when not recording, else those
// that are to be computed again.
func (t *Tape) Keep(mark int, v *Value) {
	if !t.recording {
		t.releaseFrom(mark, v)
		return
	}
	for i := mark; i < t.used; i++ {
		x := &t.values[i/slab][i%slab]
		if x == v || x.maker == 0 || x.dropped {
			continue
		}
		r := &t.records[x.maker-1]
		if r.again == nil || !r.cheap && t.recompute != RecomputeBlocks || t.recompute == RecomputeNothing {
			continue
		}
		t.arena.release(x.block)
		x.Tensor, x.block, x.dropped = tensor.Tensor{DType: x.DType, Shape: x.Shape}, tensor.Tensor{}, true
	}
}

// restore computes the data of v once more when Keep has dropped it.
func (t *Tape) restore(v *Value) {
	if v == nil || !v.dropped {
		return
	}
	r := &t.records[v.maker-1]
	for _, x := range r.in {
		t.restore(x)
	}
	v.Tensor, v.block = t.arena.alloc(v.DType, v.Shape)
	v.dropped = false
	r.again(t, r)
}

// Drop frees v when not recording: a tensor that the caller no longer needs.
func (t *Tape) Drop(v *Value) {
	if !t.recording && !v.leaf {
		t.release(v)
	}
}

func (t *Tape) releaseFrom(mark int, except *Value) {
	for i := mark; i < t.used; i++ {
		if v := &t.values[i/slab][i%slab]; v != except {
			t.release(v)
		}
	}
}

func (t *Tape) release(v *Value) {
	t.arena.release(v.block)
	t.arena.release(v.gradientBlock)
	v.block, v.gradientBlock, v.Tensor, v.Gradient = tensor.Tensor{}, tensor.Tensor{}, tensor.Tensor{}, tensor.Tensor{}
}

func (t *Tape) releaseSaved(r *record) {
	for i := range r.saved {
		t.arena.release(r.saved[i])
		r.saved[i] = tensor.Tensor{}
	}
}

// node is a fresh Value without memory.
func (t *Tape) node() *Value {
	if t.used == len(t.values)*slab {
		t.values = append(t.values, make([]Value, slab))
	}
	v := &t.values[t.used/slab][t.used%slab]
	t.used++
	*v = Value{}
	return v
}

// value is a fresh Value of the backend's type. Its memory is not cleared.
func (t *Tape) value(s tensor.Shape) *Value { return t.of(t.b.DType(), s) }

// of is value of another type.
func (t *Tape) of(d tensor.DType, s tensor.Shape) *Value {
	v := t.node()
	v.Tensor, v.block = t.arena.alloc(d, s)
	return v
}

// statistic is the type of what is one number a row (rstd, losses): float32 also where the backend computes in 16
// bits, which would cost digits of every number of the row.
func (t *Tape) statistic() tensor.DType {
	if d := t.b.DType(); d.Size() > 2 {
		return d
	}
	return tensor.F32
}

// scratch is memory that lives until backward of r has run, or until Reset.
func (t *Tape) scratch(r *record, i int, d tensor.DType, s tensor.Shape) tensor.Tensor {
	view, block := t.arena.alloc(d, s)
	r.saved[i] = block
	return view
}

// record appends an op whose inputs are in. When nothing wants its gradient the record only carries scratch memory.
func (t *Tape) record(backward func(*Tape, *record), out *Value, in ...*Value) *record {
	if len(t.records) == cap(t.records) {
		grown := make([]record, len(t.records), max(64, 2*cap(t.records)))
		copy(grown, t.records)
		t.records = grown
	}
	t.records = t.records[:len(t.records)+1]
	r := &t.records[len(t.records)-1]
	*r = record{out: out}
	copy(r.in[:], in)
	for _, v := range in {
		out.wants = out.wants || v != nil && v.wants
	}
	out.wants = out.wants && t.recording
	if out.wants {
		r.backward = backward
		out.maker = len(t.records)
	}
	return r
}

// finish drops r's scratch at once when no backward will come.
func (t *Tape) finish(r *record) {
	if r.backward == nil {
		t.releaseSaved(r)
	}
}

// gradient is where the next contribution to v's gradient goes: absent when v wants none, to be written the first time and
// added after that.
func (t *Tape) gradient(v *Value) backend.Gradient {
	if v == nil || !v.wants {
		return backend.Gradient{}
	}
	if v.leaf {
		g := backend.Gradient{Tensor: v.Gradient, Add: v.written}
		v.written = true
		return g
	}
	if v.Gradient.Present() {
		return backend.Gradient{Tensor: v.Gradient, Add: true}
	}
	v.Gradient, v.gradientBlock = t.arena.alloc(v.DType, v.Shape)
	return backend.Gradient{Tensor: v.Gradient}
}

// pass hands the gradient of out, whose op is y = x + ..., on to x: by moving it where x has none yet, by adding otherwise.
func (t *Tape) pass(x, out *Value) {
	if x == nil || !x.wants {
		return
	}
	if !x.leaf && !x.Gradient.Present() && out.gradientBlock.Present() {
		x.Gradient, x.gradientBlock = out.Gradient, out.gradientBlock
		out.Gradient, out.gradientBlock = tensor.Tensor{}, tensor.Tensor{}
		return
	}
	if g := t.gradient(x); g.Add {
		backend.Add(t.b, g.Tensor, g.Tensor, out.Gradient)
	} else {
		t.b.Copy(g.Tensor, out.Gradient)
	}
}

// Backward runs the recorded ops backwards from those whose output already has a gradient (Loss and Seed give one). It frees activations
// and gradients as it goes: afterwards only leaves hold theirs.
func (t *Tape) Backward() {
	for i := len(t.records) - 1; i >= 0; i-- {
		r := &t.records[i]
		if r.backward != nil && (r.out.Gradient.Present() || r.flows.arrives()) {
			for _, v := range r.in {
				t.restore(v)
			}
			r.backward(t, r)
		}
		t.releaseSaved(r)
		t.release(r.out)
	}
}

// Seed gives v the gradient g to start Backward from, as a loss <g, v> would.
func (t *Tape) Seed(v *Value, g tensor.Tensor) {
	if d := t.gradient(v); d.Present() {
		if d.Add {
			panic("autograd: seed of a value that has a gradient")
		}
		t.b.Write(d.Tensor, g)
	}
}
