//go:build linux || darwin

package kernel

import (
	"testing"
	"unsafe"
)

// TestHalvesStayInsideTheirPages: weights in half precision lie in a mapped file, behind which there may be nothing. What is fetched
// ahead of the sums does not count.
func TestHalvesStayInsideTheirPages(t *testing.T) {
	b := lonelyPage(t)
	p := NewPool(1)
	defer p.Close()
	eachGemmSet(t, func(t *testing.T) {
		for _, m := range []int{1, 2, 5} {
			for _, n := range []int{1, 3, 4, 6} {
				for k := 1; k <= 150; k++ {
					x, y := make([]float32, m*k), make([]float32, m*n)
					for _, from := range []int{0, len(b) - 2*n*k} {
						w := unsafe.Slice((*uint16)(unsafe.Pointer(&b[from])), n*k)
						GemmBF16(p, m, n, k, x, k, w, k, y, n, false, nil)
						GemmF16(p, m, n, k, x, k, w, k, y, n, false, nil)
					}
				}
			}
		}
	})
}
