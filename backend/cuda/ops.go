package cuda

import (
	"math"

	"nha/backend"
	"nha/tensor"
)

// Every op names itself and its tensors (for errors), finds its kernel under the constants that fit its operands, and queues it.

// wide is how many numbers a thread may move at once in rows of so many columns: 8 where every row of every tensor begins at a
// multiple of 16 bytes, else 1.
func wide(columns int, tensors ...tensor.Tensor) int {
	if columns%8 != 0 {
		return 1
	}
	for _, t := range tensors {
		if t.Address()%16 != 0 {
			return 1
		}
	}
	return 8
}

// common is what every model uses; Open has it compiled at once, in parallel.
func (b *Backend) common() []moduleKey {
	return []moduleKey{
		key("pointwise.cu", []define{b.real, typeOf("FROM", b.dtype), number("VEC", 8)}),
		key("embed.cu", []define{b.real, typeOf("TABLE", b.dtype), number("VEC", 8)}),
		key("reduce.cu", []define{b.real, typeOf("TOTAL", b.dtype), number("VEC", 8)}),
	}
}

// pointwise is a kernel of pointwise.cu that moves v numbers a thread.
func (b *Backend) pointwise(entry string, v int) *kernel {
	return b.d.kernel("pointwise.cu", entry, b.real, typeOf("FROM", b.dtype), number("VEC", v))
}

// elementwise runs a kernel over n elements, v a thread.
func (b *Backend) elementwise(k *kernel, v, n int, args ...arg) {
	const threads = 256
	b.d.launch(k, grid{blocks(n, threads*v), 1, 1}, threads, 0, args...)
}

// blocks is n in parts of size, rounded up.
func blocks(n, size int) int { return (n + size - 1) / size }

// Add is y = p + q.
func (b *Backend) Add(y, p, q tensor.Tensor) {
	b.op("add", y, p, q)
	v := wide(8, y, p, q)
	b.elementwise(b.pointwise("add", v), v, y.Len(), pointer(y), pointer(p), pointer(q), integer(y.Len()))
}

// SiLU is y = x sigmoid(x).
func (b *Backend) SiLU(y, x tensor.Tensor) {
	b.op("silu", y, x)
	v := wide(8, y, x)
	b.elementwise(b.pointwise("silu", v), v, y.Len(), pointer(y), pointer(x), integer(y.Len()))
}

// SiLUBackward is the gradient of SiLU.
func (b *Backend) SiLUBackward(dx backend.Gradient, dy, x tensor.Tensor) {
	b.op("silu backward", dx.Tensor, dy, x)
	v := wide(8, dx.Tensor, dy, x)
	b.elementwise(b.pointwise("silu_backward", v), v, x.Len(), pointer(dx.Tensor), pointer(dy), pointer(x), integer(x.Len()), truth(dx.Add))
}

// SwiGLU is y = silu(gate) up.
func (b *Backend) SwiGLU(y, gate, up tensor.Tensor) {
	b.op("swiglu", y, gate, up)
	v := wide(8, y, gate, up)
	b.elementwise(b.pointwise("swiglu", v), v, y.Len(), pointer(y), pointer(gate), pointer(up), integer(y.Len()))
}

// SwiGLUBackward is the gradient of SwiGLU.
func (b *Backend) SwiGLUBackward(dgate, dup backend.Gradient, dy, gate, up tensor.Tensor) {
	b.op("swiglu backward", dgate.Tensor, dup.Tensor, dy, gate, up)
	v := wide(8, dgate.Tensor, dup.Tensor, dy, gate, up)
	b.elementwise(b.pointwise("swiglu_backward", v), v, dy.Len(), pointer(dgate.Tensor), pointer(dup.Tensor), pointer(dy), pointer(gate), pointer(up),
		integer(dy.Len()), truth(dgate.Add), truth(dup.Add))
}

const (
	embedThreads = 128 // of a block that looks up
	embedGroups  = 4   // warps of a block that gathers
)

func (b *Backend) embed(entry string, table tensor.DType, v int) *kernel {
	return b.d.kernel("embed.cu", entry, b.real, typeOf("TABLE", table), number("VEC", v))
}

// Embed is y[r] = table[ids[r]]; the table may be of any floating-point type.
func (b *Backend) Embed(y, table, ids tensor.Tensor) {
	b.op("embed", y, table, ids)
	n := table.Columns()
	b.d.launch(b.embed("embed", table.DType, wide(n, y, table)), grid{ids.Len(), 1, 1}, embedThreads, 0, pointer(y), pointer(table), pointer(ids), integer(n))
}

// EmbedBackward is dtable[ids[r]] (+)= dy[r], the rows of an id in their order.
func (b *Backend) EmbedBackward(dtable backend.Gradient, dy, ids tensor.Tensor) {
	b.op("embed backward", dtable.Tensor, dy, ids)
	n, rows := dtable.Columns(), ids.Len()
	if !dtable.Add {
		b.d.fill(dtable.Address(), 0, dtable.Len()*dtable.DType.Size())
	}
	if rows == 0 {
		return
	}
	v := wide(n, dtable.Tensor, dy)
	bytes := 4 * dtable.Rows()
	first, counts, offsets, used := b.scratch(bytes), b.scratch(bytes), b.scratch(bytes), b.scratch(8)
	list, places := b.scratch(4*rows), b.scratch(4*rows)
	b.d.fill(uintptr(first), 0x7f, bytes) // larger than any row
	b.d.fill(uintptr(counts), 0, bytes)
	b.d.fill(uintptr(used), 0, 8)
	each := grid{blocks(rows, embedThreads), 1, 1}
	t := dtable.DType
	b.d.launch(b.embed("embed_count", t, v), each, embedThreads, 0, first, counts, pointer(ids), integer(rows))
	b.d.launch(b.embed("embed_list", t, v), each, embedThreads, 0, list, offsets, used, first, counts, pointer(ids), integer(rows))
	b.d.launch(b.embed("embed_place", t, v), each, embedThreads, 0, places, offsets, pointer(ids), integer(rows))
	b.d.launch(b.embed("embed_backward", t, v), grid{min(rows, 16*b.d.sms), blocks(n, 32*v), 1}, 32*embedGroups, 0, pointer(dtable.Tensor),
		pointer(dy), pointer(ids), counts, list, offsets, places, used, integer(rows), integer(n), truth(dtable.Add))
}

// reduce is a kernel of reduce.cu for elements and results of some type.
func (b *Backend) reduce(entry string, element, total tensor.DType, v int) *kernel {
	return b.d.kernel("reduce.cu", entry, realType(element), typeOf("TOTAL", total), number("VEC", v))
}

// SumRows is dst[j] (+)= sum over r of x[r,j].
func (b *Backend) SumRows(dst backend.Gradient, x tensor.Tensor) {
	b.op("sum_rows", dst.Tensor, x)
	rows, n := x.Rows(), x.Columns()
	chunk := max(32, blocks(rows, 256))
	parts := blocks(rows, chunk)
	partial := b.scratch(4 * parts * n)
	b.d.launch(b.reduce("column_sums", x.DType, dst.DType, 8), grid{blocks(n, 32), parts, 1}, 256, 0, partial, pointer(x), integer(rows), integer(n), integer(chunk))
	b.addPartials(dst, partial, parts, n)
}

// addPartials is dst (+)= the sum of rows of n float32.
func (b *Backend) addPartials(dst backend.Gradient, partial arg, rows, n int) {
	b.d.launch(b.reduce("add_partials", b.dtype, dst.DType, 8), grid{blocks(n, 32), 1, 1}, 256, 0, pointer(dst.Tensor), partial, integer(rows), integer(n), truth(dst.Add))
}

// normWarps is the rows that a block of norm.cu has in hand at a time.
const normWarps = 4

func (b *Backend) norm(entry string, n int, rstd tensor.DType, v int) *kernel {
	return b.d.kernel("norm.cu", entry, b.real, typeOf("STATISTIC", rstd), number("COLUMNS", n), number("VEC", v))
}

// RMSNorm is y = x rstd weight over rows of len(weight). rstd may be F32 whatever the backend's type.
func (b *Backend) RMSNorm(y, rstd, x, weight tensor.Tensor, epsilon float64) {
	b.op("rms_norm", y, rstd, x, weight)
	rows := rstd.Len()
	b.d.launch(b.norm("rms_norm", weight.Len(), rstd.DType, wide(weight.Len(), y, x, weight)), grid{blocks(rows, normWarps), 1, 1}, 32*normWarps, 0,
		pointer(y), pointer(rstd), pointer(x), pointer(weight), integer(rows), f32(epsilon))
}

// RMSNormBackward is the gradient of RMSNorm.
func (b *Backend) RMSNormBackward(dx, dweight backend.Gradient, dy, x, weight, rstd tensor.Tensor) {
	b.op("rms_norm backward", dx.Tensor, dweight.Tensor, dy, x, weight, rstd)
	rows, n := rstd.Len(), weight.Len()
	parts := min(blocks(rows, normWarps), 4*b.d.sms)
	partial := arg(0)
	if dweight.Present() {
		partial = b.scratch(4 * parts * n)
	}
	b.d.launch(b.norm("rms_norm_backward", n, rstd.DType, wide(n, dx.Tensor, dy, x, weight)), grid{parts, 1, 1}, 32*normWarps, 0,
		pointer(dx.Tensor), partial, pointer(dy), pointer(x), pointer(weight), pointer(rstd), integer(rows), truth(dx.Add))
	if dweight.Present() {
		b.addPartials(dweight, partial, parts, n)
	}
}

// CrossEntropy leaves scale (softmax - onehot) in logits and -log p(target) in loss, which may be F32 whatever the backend's type.
func (b *Backend) CrossEntropy(loss, logits, targets tensor.Tensor, scale float64) {
	b.op("cross_entropy", loss, logits, targets)
	const threads = 512
	k := b.d.kernel("training.cu", "cross_entropy", b.real, typeOf("LOSS", loss.DType), number("VEC", wide(logits.Columns(), logits)))
	b.d.launch(k, grid{loss.Len(), 1, 1}, threads, 0,
		pointer(loss), pointer(logits), pointer(targets), integer(logits.Columns()), f32(scale))
}

// Sum is the sum of all elements, in float64.
func (b *Backend) Sum(x tensor.Tensor) float64 { return b.sum("sum", x, false) }

// SumSquares is the sum of the squares of all elements, in float64.
func (b *Backend) SumSquares(x tensor.Tensor) float64 { return b.sum("sum_squares", x, true) }

func (b *Backend) sum(op string, x tensor.Tensor, squares bool) float64 {
	b.op(op, x)
	n := x.Len()
	if n == 0 {
		return 0
	}
	chunk := max(4096, blocks(n, 1024*8)*8)
	parts := blocks(n, chunk)
	partial, total := b.scratch(8*parts), b.scratchTensor(tensor.F64, tensor.Of(1))
	b.d.launch(b.reduce("sum_blocks", x.DType, x.DType, wide(8, x)), grid{parts, 1, 1}, 256, 0, partial, pointer(x), integer(n), integer(chunk), truth(squares))
	b.d.launch(b.reduce("sum_all", x.DType, x.DType, 8), grid{1, 1, 1}, 256, 0, pointer(total), partial, integer(parts))
	b.d.read(b.host, total)
	return b.results[0]
}

// AdamW is one step of the optimiser, in place, in one pass over all of it. p, g, and m with v, may be F32 whatever the backend's
// type: a parameter of 8 bits does not see updates of a thousandth.
func (b *Backend) AdamW(p, g, m, v tensor.Tensor, s backend.AdamW) {
	b.op("adamw", p, g, m, v)
	width := wide(8, p, g, m, v, s.Rounded)
	k := b.d.kernel("adamw.cu", "adamw", b.real, typeOf("PARAMETER", p.DType), typeOf("GRADIENT", g.DType), typeOf("MOMENT", m.DType), number("VEC", width))
	b.elementwise(k, width, p.Len(), pointer(p), pointer(s.Rounded), pointer(g), pointer(m), pointer(v), integer(p.Len()), f32(s.LearningRate), f32(s.Beta1), f32(s.Beta2), f32(s.Epsilon),
		f32(s.WeightDecay), f32(s.GradientScale), f32(1/biasCorrection(s.Beta1, s.Step)), f32(1/biasCorrection(s.Beta2, s.Step)))
}

// biasCorrection is 1 - beta^step for beta as the kernel has it, rounded to float32: 1 - 0.999 is off by 1e-5 there.
func biasCorrection(beta float64, step int) float64 {
	return 1 - math.Pow(float64(float32(beta)), float64(step))
}
