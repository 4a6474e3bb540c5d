package cuda

import (
	"fmt"
	"slices"
	"testing"

	"nha/backend"
	"nha/tensor"
)

// BenchmarkCard times ops by the card's own clock at the sizes of a training step (32 x 1024 tokens, hidden 768, inner 2048,
// vocabulary 32000): medians, with the arithmetic or the bytes that the op cannot do without. Operands are larger than the
// card's second-level cache together. scripts/gpu-check speed runs it.
func BenchmarkCard(bench *testing.B) {
	b := card(bench, tensor.BF16)
	const rows, n, inner, vocabulary, logitRows = 32768, 768, 2048, 32000, 4096
	none := tensor.Tensor{}
	x, y, wide1, wide2 := up(b, random(1, rows, n)), up(b, random(2, rows, n)), up(b, random(3, rows, inner)), up(b, random(4, rows, inner))
	wide3, wide4 := b.Alloc(b.dtype, wide1.Shape), b.Alloc(b.dtype, wide1.Shape)
	z, w1, w2, head := b.Alloc(b.dtype, x.Shape), up(b, random(5, n, n)), up(b, random(6, inner, n)), up(b, random(7, vocabulary, n))
	logits, loss, token := b.Alloc(b.dtype, tensor.Of(logitRows, vocabulary)), b.Alloc(tensor.F32, tensor.Of(rows)), up(b, ids(8, rows, vocabulary))
	norm, rstd, dnorm := up(b, random(9, n)), up(b, random(10, rows)), b.Alloc(b.dtype, tensor.Of(n))
	dhead, parameters := b.Alloc(b.dtype, head.Shape), 100_000_000
	p, g := b.Alloc(b.dtype, tensor.Of(parameters)), b.Alloc(b.dtype, tensor.Of(parameters))
	m, v := b.Alloc(b.dtype, p.Shape), b.Alloc(b.dtype, p.Shape)
	row := 2.0 * n * rows // bytes of a [rows, n] tensor
	product := func(name string, op backend.Op, c, a, w tensor.Tensor, k int) (string, float64, float64, func()) {
		return name, 2 * float64(c.Len()) * float64(k), 0, func() { b.MatMul(op, backend.Gradient{Tensor: c}, a, w, none) }
	}
	run := func(name string, flops, bytes float64, op func()) {
		bench.Run(name, func(bench *testing.B) {
			op()
			var times []float64
			for bench.Loop() {
				times = append(times, b.Milliseconds(op))
			}
			slices.Sort(times)
			ms := times[len(times)/2]
			bench.ReportMetric(ms, "ms")
			if flops > 0 {
				bench.ReportMetric(flops/ms/1e9, "TFLOP/s")
			}
			if bytes > 0 {
				bench.ReportMetric(bytes/ms/1e6, "GB/s")
			}
			bench.ReportMetric(0, "ns/op")
		})
	}
	run(product(fmt.Sprintf("matmul-nt-%dx%dx%d", rows, n, n), backend.NT, z, x, w1, n))
	run(product(fmt.Sprintf("matmul-nt-%dx%dx%d", rows, inner, n), backend.NT, wide3, x, w2, n))
	run(product(fmt.Sprintf("matmul-nn-%dx%dx%d", rows, n, inner), backend.NN, z, wide1, w2, inner))
	run(product(fmt.Sprintf("matmul-tn-%dx%dx%d", inner, n, rows), backend.TN, b.Alloc(b.dtype, w2.Shape), wide1, x, rows))
	run(product(fmt.Sprintf("matmul-nt-%dx%dx%d", logitRows, vocabulary, n), backend.NT, logits, x.Narrow(0, logitRows), head, n))
	run("copy", 0, 2*row, func() { b.Copy(z, x) })
	run("add", 0, 3*row, func() { b.Add(z, x, y) })
	run("rms_norm", 0, 2*row, func() { b.RMSNorm(z, rstd, x, norm, 1e-5) })
	run("rms_norm-backward", 0, 3*row, func() {
		b.RMSNormBackward(backend.Gradient{Tensor: z}, backend.Gradient{Tensor: dnorm}, y, x, norm, rstd)
	})
	run("swiglu", 0, 3*2*inner*rows, func() { b.SwiGLU(wide3, wide1, wide2) })
	run("swiglu-backward", 0, 5*2*inner*rows, func() {
		b.SwiGLUBackward(backend.Gradient{Tensor: wide3}, backend.Gradient{Tensor: wide4}, wide2, wide1, wide2)
	})
	run("embed", 0, 2*row, func() { b.Embed(z, head, token) })
	run("embed-backward", 0, row+2*n*vocabulary, func() { b.EmbedBackward(backend.Gradient{Tensor: dhead}, y, token) })
	run("cross_entropy", 0, 2*2*logitRows*vocabulary, func() { b.CrossEntropy(loss.Narrow(0, logitRows), logits, token.Narrow(0, logitRows), 1) })
	run("sum_rows", 0, row, func() { b.SumRows(backend.Gradient{Tensor: dnorm}, x) })
	run("sum_squares", 0, 2*float64(parameters), func() { b.SumSquares(g) })
	run("adamw", 0, 7*2*float64(parameters), func() {
		b.AdamW(p, g, m, v, backend.AdamW{LearningRate: 1e-3, Beta1: 0.9, Beta2: 0.95, Epsilon: 1e-8, WeightDecay: 0.1, GradientScale: 1, Step: 1})
	})
	run("launch", 0, 0, func() { b.Add(norm, norm, norm) })
}
