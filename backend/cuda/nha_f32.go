package cuda

import "nha/tensor"

// The operator in float32 (kernels/nha_f32.cu): a block for every sequence and kv head.

const (
	nhaF32Threads = 256
	nhaF32Chunk   = 64 // CHUNK
)

func (r *nhaRun) kernelF32(entry string) *kernel {
	return r.b.d.kernel("nha_f32.cu", entry, r.b.real)
}

func (r *nhaRun) stateF32() int { return r.c.Slots * (r.c.KeyDim + r.c.ValueDim) }

// logits is how many a query has at most.
func (r *nhaRun) logits() int { return r.c.Slots + min(r.c.Window, r.longest) }

func (r *nhaRun) bySequence() grid { return grid{len(r.sequences), r.c.KVHeads, 1} }

func (r *nhaRun) normalizerF32() arg {
	if r.c.Slots == 0 {
		return 0
	}
	return f32(1 / r.c.GateNormalizer)
}

func (r *nhaRun) forwardF32() {
	c, each := r.c, r.logits()
	scratch := r.b.scratch(4 * each * len(r.sequences) * c.KVHeads)
	r.b.d.launch(r.kernelF32("nha_f32_forward"), r.bySequence(), nhaF32Threads, 4*r.stateF32(), r.table, pointer(c.Q), pointer(c.K), pointer(c.V), pointer(c.Z), r.cos, r.sin,
		scratch, integer(each), pointer(c.O), pointer(c.LSE), pointer(c.Share), r.queryHeads(), r.heads(), r.window(), r.scale(), r.normalizerF32(), r.mask())
}

func (r *nhaRun) backwardF32() {
	c, g, b := r.c, r.g, r.b
	offsets, all := make([]int64, len(r.sequences)), 0
	for i, s := range r.sequences {
		offsets[i] = int64(all)
		all += int(s.held + s.tokens)
	}
	sums := func(width int) arg { // of all tokens, zeros
		t := b.scratchTensor(tensor.F32, tensor.Of(all*c.KVHeads*width))
		b.d.fill(t.Address(), 0, 4*t.Len())
		return pointer(t)
	}
	each := 2*r.logits() + (blocks(r.longest, nhaF32Chunk)+nhaF32Chunk+1)*r.stateF32()
	scratch := b.scratch(4 * each * len(r.sequences) * c.KVHeads)
	b.d.launch(r.kernelF32("nha_f32_backward"), r.bySequence(), nhaF32Threads, 4*(r.stateF32()+c.KeyDim), r.table, upTable(b, offsets),
		pointer(c.Q), pointer(c.K), pointer(c.V), pointer(c.Z), r.cos, r.sin, scratch, integer(each), integer(r.logits()),
		pointer(g.DO), pointer(g.DQ), pointer(g.DK), pointer(g.DV), pointer(g.DZ), sums(c.KeyDim), sums(c.KeyDim), sums(c.ValueDim), sums(c.Slots),
		r.queryHeads(), r.heads(), r.window(), r.scale(), r.normalizerF32(), r.mask())
}
