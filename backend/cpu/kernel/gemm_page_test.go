//go:build linux || darwin

package kernel

import (
	"os"
	"syscall"
	"testing"
	"unsafe"
)

// TestHalvesStayInsideTheirPages: weights in half precision lie in a mapped file, behind which there may be nothing. What is fetched
// ahead of the sums does not count.
func TestHalvesStayInsideTheirPages(t *testing.T) {
	page := os.Getpagesize()
	b, err := syscall.Mmap(-1, 0, 3*page, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Munmap(b)
	for _, edge := range [][]byte{b[:page], b[2*page:]} {
		if err := syscall.Mprotect(edge, syscall.PROT_NONE); err != nil {
			t.Fatal(err)
		}
	}
	p := NewPool(1)
	defer p.Close()
	eachGemmSet(t, func(t *testing.T) {
		for _, m := range []int{1, 2, 5} {
			for _, n := range []int{1, 3, 4, 6} {
				for k := 1; k <= 150; k++ {
					x, y := make([]float32, m*k), make([]float32, m*n)
					for _, from := range []int{page, 2*page - 2*n*k} {
						w := unsafe.Slice((*uint16)(unsafe.Pointer(&b[from])), n*k)
						GemmBF16(p, m, n, k, x, k, w, k, y, n, false, nil)
						GemmF16(p, m, n, k, x, k, w, k, y, n, false, nil)
					}
				}
			}
		}
	})
}
