//go:build arm64 && !purego

package kernel

func init() {
	register("neon", func() {
		gemmTile, gemmRows, gemmCols, gemmDepth = gemmTileNEON, 6, 16, 256
		gemvDotF32, gemvDotBF16 = gemvDotF32NEON, gemvDotBF16NEON
		gemvDotRows, gemvDotStep = 3, 4
		gemvEachBF16 = nil
	})
}

// gemmTileNEON is gemmTileGeneric for tiles of up to 6 x 16.
//
//go:noescape
func gemmTileNEON(rows, k int, a []float32, aRow, aCol int, b []float32, bRow int, c []float32, cRow int, alpha float32, bias []float32, add int)

// gemvDotF32NEON is gemvDotF32Generic.
//
//go:noescape
func gemvDotF32NEON(rows, k int, x []float32, xRow int, w []float32, wRow int, out []float32, outRow int)

// gemvDotBF16NEON is gemvDotBF16Generic.
//
//go:noescape
func gemvDotBF16NEON(rows, k int, x []float32, xRow int, w []uint16, wRow int, out []float32, outRow int)
