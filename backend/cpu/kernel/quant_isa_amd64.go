//go:build amd64 && !purego

package kernel

import "golang.org/x/sys/cpu"

func init() {
	register("avx2", func() {
		if !cpu.X86.HasF16C {
			return
		}
		quantActivate = func(x []float32, p []int8, dx, sx []float32) {
			quantActivateAVX2(len(x)/quantBlock, &x[0], &p[0], &dx[0], &sx[0])
		}
		quants = [quantTypes]quantKernel{
			Q4_0: {quantDotEightBy(quantEightQ4_0AVX2, quantDotQ4_0AVX2), quantWidenBy(Q4_0, quantWidenQ4_0AVX2)},
			Q4_1: {quantDotEightBy(quantEightQ4_1AVX2, quantDotQ4_1AVX2), quantWidenBy(Q4_1, quantWidenQ4_1AVX2)},
			Q5_0: {quantDotBy(quantDotQ5_0AVX2), quantWidenBy(Q5_0, quantWidenQ5_0AVX2)},
			Q5_1: {quantDotBy(quantDotQ5_1AVX2), quantWidenBy(Q5_1, quantWidenQ5_1AVX2)},
			Q8_0: {quantDotBy(quantDotQ8_0AVX2), quantWidenBy(Q8_0, quantWidenQ8_0AVX2)},
			Q4_K: {quantDotBy(quantDotQ4_KAVX2), quantWidenBy(Q4_K, quantWidenQ4_KAVX2)},
			Q5_K: {quantDotBy(quantDotQ5_KAVX2), quantWidenBy(Q5_K, quantWidenQ5_KAVX2)},
			Q6_K: {quantDotBy(quantDotQ6_KAVX2), quantWidenBy(Q6_K, quantWidenQ6_KAVX2)},
		}
	})
	register("avx512", func() {
		if !cpu.X86.HasAVX512VNNI {
			return
		}
		quants[Q4_0].dot = quantDotBy(quantDotQ4_0VNNI)
		quants[Q4_1].dot = quantDotBy(quantDotQ4_1VNNI)
		quants[Q5_0].dot = quantDotBy(quantDotQ5_0VNNI)
		quants[Q5_1].dot = quantDotBy(quantDotQ5_1VNNI)
		quants[Q8_0].dot = quantDotBy(quantDotQ8_0VNNI)
		quants[Q4_K].dot = quantDotBy(quantDotQ4_KVNNI)
		quants[Q5_K].dot = quantDotBy(quantDotQ5_KVNNI)
	})
}

func quantDotBy(f func(rows, blocks int, w *byte, wRow int, p *int8, dx, sx, out *float32)) func(rows, blocks int, w []byte, wRow int, p []int8, dx, sx []float32, out []float32) {
	return func(rows, blocks int, w []byte, wRow int, p []int8, dx, sx []float32, out []float32) {
		f(rows, blocks, &w[0], wRow, &p[0], &dx[0], &sx[0], &out[0])
	}
}

// quantDotEightBy gives eight rows at a time to a kernel for them, the rest to f.
func quantDotEightBy(eight, f func(n, blocks int, w *byte, wRow int, p *int8, dx, sx, out *float32)) func(rows, blocks int, w []byte, wRow int, p []int8, dx, sx []float32, out []float32) {
	return func(rows, blocks int, w []byte, wRow int, p []int8, dx, sx []float32, out []float32) {
		done := rows / 8 * 8
		if done > 0 {
			eight(done/8, blocks, &w[0], wRow, &p[0], &dx[0], &sx[0], &out[0])
		}
		if done < rows {
			f(rows-done, blocks, &w[done*wRow], wRow, &p[0], &dx[0], &sx[0], &out[done])
		}
	}
}

func quantWidenBy(t Quant, f func(blocks int, src *byte, dst *float32)) func(dst []float32, src []byte) {
	return func(dst []float32, src []byte) {
		if len(dst) > 0 {
			f(len(dst)/quantLayout[t].elements, &src[0], &dst[0])
		}
	}
}
