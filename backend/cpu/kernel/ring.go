package kernel

import "math"

// What a decoding step does with the ring of keys and values (SPEC 1.1): rows turned by their positions, half precision to float32
// and back, and the products of a few queries with many keys. The ring is read once for all query heads of a kv head.

//go:generate go run -C _asm ./ring -out ../ring_amd64.s -stubs ../ring_amd64.go -pkg kernel

// ringSet is one instruction set's kernels.
type ringSet struct {
	rotate    func(dst, src []float32, n, half int, cos, sin []float32)
	rotateF16 func(dst []float32, src []uint16, n, half int, cos, sin []float32)
	widen     func(dst []float32, src []uint16)
	narrow    func(dst []uint16, src []float32)
}

var (
	ringGeneric = ringSet{ringRotateGeneric, ringRotateF16Generic, ringWidenGeneric, ringNarrowGeneric}
	rings       = ringGeneric
)

func init() {
	register("generic", func() { rings = ringGeneric })
}

// RotateRows writes rows of k = len(src)/n columns turned by the angles of rows of cos and sin [n, k/2] to dst [n, k].
func RotateRows(dst, src []float32, n int, cos, sin []float32) {
	rings.rotate(dst, src, n, len(src)/(2*max(1, n)), cos, sin)
}

// RotateRowsF16 is RotateRows from half precision.
func RotateRowsF16(dst []float32, src []uint16, n int, cos, sin []float32) {
	rings.rotateF16(dst, src, n, len(src)/(2*max(1, n)), cos, sin)
}

// WidenF16 is src as float32, over len(src).
func WidenF16(dst []float32, src []uint16) { rings.widen(dst[:len(src)], src) }

// NarrowF16 rounds src to half precision, ties to even, over len(src).
func NarrowF16(dst []uint16, src []float32) { rings.narrow(dst[:len(src)], src) }

// Dots writes the products of m rows of x with n rows of w, k columns each and w's without gaps: out_ij = x_i . w_j. Behind the n
// columns of a row of out there must be room for 3 more.
func Dots(m, n, k int, x Matrix, w []float32, out Matrix) {
	if k%gemvDotStep != 0 {
		for i := range m {
			for j := range n {
				out.Data[i*out.Stride+j] = vectors.dot(x.Row(i)[:k], w[j*k:(j+1)*k])
			}
		}
		return
	}
	groups := ceil(m, gemvDotRows)
	for j := 0; j < n; j += 4 {
		at, row := j, k
		if j+4 > n {
			if at = n - 4; at < 0 { // fewer than four: one at a time, as four times the same
				for i := range n {
					for t := range groups {
						from, to := tileRows(t, groups, m)
						gemvDotF32(to-from, k, x.Row(from), x.Stride, w[i*k:], 0, out.Row(from)[i:], out.Stride)
					}
				}
				return
			}
		}
		for t := range groups {
			from, to := tileRows(t, groups, m)
			gemvDotF32(to-from, k, x.Row(from), x.Stride, w[at*k:], row, out.Row(from)[at:], out.Stride)
		}
	}
}

func ringRotateGeneric(dst, src []float32, n, half int, cos, sin []float32) {
	for i := range n {
		rotateGeneric(dst[2*i*half:2*(i+1)*half], src[2*i*half:2*(i+1)*half], cos[i*half:(i+1)*half], sin[i*half:(i+1)*half], 1)
	}
}

func ringRotateF16Generic(dst []float32, src []uint16, n, half int, cos, sin []float32) {
	ringWidenGeneric(dst[:2*n*half], src)
	ringRotateGeneric(dst, dst, n, half, cos, sin)
}

func ringWidenGeneric(dst []float32, src []uint16) {
	for i := range dst {
		dst[i] = gemmFromF16(src[i])
	}
}

func ringNarrowGeneric(dst []uint16, src []float32) {
	for i := range dst {
		dst[i] = toF16(src[i])
	}
}

// toF16 rounds to half precision, ties to even; what is too large becomes infinite. Below 2^-14 halves are steps of 2^-24, which is
// what a float32 between 0.5 and 1 is rounded to.
func toF16(f float32) uint16 {
	u := math.Float32bits(f)
	sign := uint16(u>>16) & 0x8000
	switch u &= 1<<31 - 1; {
	case u > 0x7f800000:
		return sign | 0x7e00 | uint16(u>>13)&0x3ff
	case u >= 0x47800000:
		return sign | 0x7c00
	case u < 0x38800000:
		return sign | uint16(math.Float32bits(math.Float32frombits(u)+0.5)-math.Float32bits(0.5))
	}
	u += 0xfff + u>>13&1
	return sign | uint16((u-0x38000000)>>13)
}
