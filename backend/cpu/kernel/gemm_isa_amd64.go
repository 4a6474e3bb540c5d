//go:build amd64 && !purego

package kernel

import "golang.org/x/sys/cpu"

func init() {
	register("avx2", func() {
		gemmTile, gemmRows, gemmCols = gemmTileAVX2, 6, 16
		gemmCopy = gemmCopyAVX2
		gemmTransposeF32, gemmTransposeBF16 = gemmTransposeF32AVX2, gemmTransposeBF16AVX2
		gemvDotF32, gemvDotBF16 = gemvDotF32AVX2, gemvDotBF16AVX2
		gemvDotRows, gemvDotStep = 3, 8
		if cpu.X86.HasF16C {
			gemmTransposeF16, gemvDotF16 = gemmTransposeF16AVX2, gemvDotF16AVX2
		}
	})
	register("avx512", func() {
		gemmTile, gemmRows, gemmCols = gemmTileAVX512, 12, 32
		gemvDotF32, gemvDotBF16, gemvDotF16 = gemvDotF32AVX512, gemvDotBF16AVX512, gemvDotF16AVX512
		gemvDotRows, gemvDotStep = 6, 16
	})
}
