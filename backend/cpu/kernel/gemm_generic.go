package kernel

import "math"

// The micro-kernels in Go: what the assembly computes, and all there is on machines without any.

const (
	gemmGenericRows  = 4
	gemmGenericCols  = 16
	gemmGenericDepth = 256
)

// gemmTileGeneric computes rows of C (rows at most gemmRows, gemmCols wide): alpha times the product of A's tile, element (i,p)
// at a[i*aRow+p*aCol], and B's panel, element (p,j) at b[p*bRow+j], plus bias where given, plus C itself where add is not 0.
func gemmTileGeneric(rows, k int, a []float32, aRow, aCol int, b []float32, bRow int, c []float32, cRow int, alpha float32, bias []float32, add int) {
	for j := 0; j < gemmGenericCols; j += 4 {
		for i := 0; i < rows; {
			var sums [4][4]float32
			tall := min(rows-i, 4)
			if tall == 4 {
				gemmTile4x4(&sums, k, a[i*aRow:], aRow, aCol, b[min(j, len(b)):], bRow)
			} else {
				for r := range tall {
					gemmTile1x4(&sums[r], k, a[(i+r)*aRow:], aCol, b[min(j, len(b)):], bRow)
				}
			}
			for r := range tall {
				out := c[(i+r)*cRow+j : (i+r)*cRow+j+4]
				for x, s := range sums[r] {
					v := alpha * s
					if bias != nil {
						v += bias[j+x]
					}
					if add != 0 {
						v += out[x]
					}
					out[x] = v
				}
			}
			i += tall
		}
	}
}

func gemmTile4x4(sums *[4][4]float32, k int, a []float32, aRow, aCol int, b []float32, bRow int) {
	var c00, c01, c02, c03, c10, c11, c12, c13, c20, c21, c22, c23, c30, c31, c32, c33 float32
	for p := range k {
		at := p * aCol
		a0, a1, a2, a3 := a[at], a[at+aRow], a[at+2*aRow], a[at+3*aRow]
		r := b[p*bRow : p*bRow+4]
		b0, b1, b2, b3 := r[0], r[1], r[2], r[3]
		c00 += a0 * b0
		c01 += a0 * b1
		c02 += a0 * b2
		c03 += a0 * b3
		c10 += a1 * b0
		c11 += a1 * b1
		c12 += a1 * b2
		c13 += a1 * b3
		c20 += a2 * b0
		c21 += a2 * b1
		c22 += a2 * b2
		c23 += a2 * b3
		c30 += a3 * b0
		c31 += a3 * b1
		c32 += a3 * b2
		c33 += a3 * b3
	}
	*sums = [4][4]float32{{c00, c01, c02, c03}, {c10, c11, c12, c13}, {c20, c21, c22, c23}, {c30, c31, c32, c33}}
}

func gemmTile1x4(sums *[4]float32, k int, a []float32, aCol int, b []float32, bRow int) {
	var c0, c1, c2, c3 float32
	for p := range k {
		x := a[p*aCol]
		r := b[p*bRow : p*bRow+4]
		c0 += x * r[0]
		c1 += x * r[1]
		c2 += x * r[2]
		c3 += x * r[3]
	}
	*sums = [4]float32{c0, c1, c2, c3}
}

// gemmCopyGeneric copies the first width floats, 1 to 16, of each row. Behind them it may write zeros, up to a multiple of 8.
func gemmCopyGeneric(rows, width int, src []float32, srcRow int, dst []float32, dstRow int) {
	for p := range rows {
		copy(dst[p*dstRow:p*dstRow+width], src[p*srcRow:])
	}
}

// gemmTransposeF32Generic writes element (i,p) of 8 rows and 8*blocks columns, at src[i*srcRow+p], to dst[p*dstRow+i].
func gemmTransposeF32Generic(blocks int, src []float32, srcRow int, dst []float32, dstRow int) {
	for i := range 8 {
		for p, v := range src[i*srcRow : i*srcRow+8*blocks] {
			dst[p*dstRow+i] = v
		}
	}
}

// gemmTransposeBF16Generic is gemmTransposeF32Generic from bfloat16.
func gemmTransposeBF16Generic(blocks int, src []uint16, srcRow int, dst []float32, dstRow int) {
	for i := range 8 {
		for p, v := range src[i*srcRow : i*srcRow+8*blocks] {
			dst[p*dstRow+i] = gemmFromBF16(v)
		}
	}
}

// gemmTransposeF16Generic is gemmTransposeF32Generic from half precision.
func gemmTransposeF16Generic(blocks int, src []uint16, srcRow int, dst []float32, dstRow int) {
	for i := range 8 {
		for p, v := range src[i*srcRow : i*srcRow+8*blocks] {
			dst[p*dstRow+i] = gemmFromF16(v)
		}
	}
}

// gemvDotF32Generic computes the products of up to gemvDotRows rows of x with four rows of w, over k a multiple of gemvDotStep:
// out[i*outRow+j] = sum over p of x[i*xRow+p] w[j*wRow+p].
func gemvDotF32Generic(rows, k int, x []float32, xRow int, w []float32, wRow int, out []float32, outRow int) {
	for i := range rows {
		for j := range 4 {
			out[i*outRow+j] = gemvDotRow(x[i*xRow:i*xRow+k], w[j*wRow:j*wRow+k], func(v float32) float32 { return v })
		}
	}
}

// gemvDotBF16Generic is gemvDotF32Generic for bfloat16.
func gemvDotBF16Generic(rows, k int, x []float32, xRow int, w []uint16, wRow int, out []float32, outRow int) {
	for i := range rows {
		for j := range 4 {
			out[i*outRow+j] = gemvDotRow(x[i*xRow:i*xRow+k], w[j*wRow:j*wRow+k], gemmFromBF16)
		}
	}
}

// gemvDotF16Generic is gemvDotF32Generic for half precision.
func gemvDotF16Generic(rows, k int, x []float32, xRow int, w []uint16, wRow int, out []float32, outRow int) {
	for i := range rows {
		for j := range 4 {
			out[i*outRow+j] = gemvDotRow(x[i*xRow:i*xRow+k], w[j*wRow:j*wRow+k], gemmFromF16)
		}
	}
}

// gemvEachBF16Generic computes the products of one row of x with rows of w in bfloat16, over k a multiple of gemvDotStep:
// out[i] = sum over p of x[p] w[i*wRow+p].
func gemvEachBF16Generic(rows, k int, x []float32, w []uint16, wRow int, out []float32) {
	for i := range rows {
		out[i] = gemvDotRow(x[:k], w[i*wRow:i*wRow+k], gemmFromBF16)
	}
}

// gemvEachF16Generic is gemvEachBF16Generic for half precision.
func gemvEachF16Generic(rows, k int, x []float32, w []uint16, wRow int, out []float32) {
	for i := range rows {
		out[i] = gemvDotRow(x[:k], w[i*wRow:i*wRow+k], gemmFromF16)
	}
}

// gemvDotRow keeps four sums, as one would wait for each addition.
func gemvDotRow[T float32 | uint16](x []float32, w []T, from func(T) float32) float32 {
	var s0, s1, s2, s3 float32
	for len(x) >= 4 && len(w) >= 4 {
		s0 += x[0] * from(w[0])
		s1 += x[1] * from(w[1])
		s2 += x[2] * from(w[2])
		s3 += x[3] * from(w[3])
		x, w = x[4:], w[4:]
	}
	return (s0 + s1) + (s2 + s3)
}

// gemmFromBF16 is exact: bfloat16 is the upper half of a float32.
func gemmFromBF16(h uint16) float32 { return math.Float32frombits(uint32(h) << 16) }

// gemmFromF16 is exact: every half is a float32. Below the exponent bias of 15 a half's fraction counts steps of 2^-24.
func gemmFromF16(h uint16) float32 {
	sign := uint32(h>>15) << 31
	exponent, fraction := uint32(h>>10)&31, uint32(h)&1023
	switch exponent {
	case 0:
		v := float32(fraction) * (1.0 / (1 << 24))
		return math.Float32frombits(math.Float32bits(v) | sign)
	case 31:
		return math.Float32frombits(sign | 255<<23 | fraction<<13)
	}
	return math.Float32frombits(sign | (exponent+127-15)<<23 | fraction<<13)
}
