//go:build amd64 && !purego

package kernel

import "golang.org/x/sys/cpu"

func init() {
	register("avx2", func() {
		if cpu.X86.HasF16C {
			rings = ringSetBy(8, ringRotateF32AVX2, ringRotateF16AVX2, ringWidenF16AVX2, ringNarrowF16AVX2)
		}
	})
	register("avx512", func() {
		rings = ringSetBy(16, ringRotateF32AVX512, ringRotateF16AVX512, ringWidenF16AVX512, ringNarrowF16AVX512)
	})
}

// ringSetBy leaves to the generic twins what is no multiple of lanes.
func ringSetBy(lanes int, rotate func(rows, half int, src, cos, sin, dst *float32), rotateF16 func(rows, half int, src *uint16, cos, sin, dst *float32),
	widen func(n int, src *uint16, dst *float32), narrow func(n int, src *float32, dst *uint16)) ringSet {
	return ringSet{
		rotate: func(dst, src []float32, n, half int, cos, sin []float32) {
			if n == 0 || half == 0 || half%lanes != 0 {
				ringRotateGeneric(dst, src, n, half, cos, sin)
				return
			}
			rotate(n, half, &src[0], &cos[0], &sin[0], &dst[0])
		},
		rotateF16: func(dst []float32, src []uint16, n, half int, cos, sin []float32) {
			if n == 0 || half == 0 || half%lanes != 0 {
				ringRotateF16Generic(dst, src, n, half, cos, sin)
				return
			}
			rotateF16(n, half, &src[0], &cos[0], &sin[0], &dst[0])
		},
		widen: func(dst []float32, src []uint16) {
			n := len(dst) / lanes * lanes
			if n > 0 {
				widen(n, &src[0], &dst[0])
			}
			ringWidenGeneric(dst[n:], src[n:])
		},
		narrow: func(dst []uint16, src []float32) {
			n := len(dst) / lanes * lanes
			if n > 0 {
				narrow(n, &src[0], &dst[0])
			}
			ringNarrowGeneric(dst[n:], src[n:])
		},
	}
}
