//go:build linux || darwin

package kernel

import (
	"os"
	"testing"
	"unsafe"
)

// TestVectorKernelsStayInsideTheirPages puts every slice flush against memory that may not be touched, at its end and then at
// its start: a read or write outside ends the test with a fault.
func TestVectorKernelsStayInsideTheirPages(t *testing.T) {
	page := os.Getpagesize()
	const slices = 6
	at := make([][]byte, slices)
	for i := range at {
		at[i] = lonelyPage(t)
	}
	eachVectorSet(t, func(t *testing.T) {
		for _, c := range vectorCases {
			for n := range 100 {
				for _, end := range []bool{true, false} {
					var s [][]float32
					for i, l := range c.lengths(n) {
						from := 0
						if end {
							from = page - 4*l
						}
						s = append(s, unsafe.Slice((*float32)(unsafe.Pointer(unsafe.SliceData(at[i][from:]))), l))
						Fill(s[i], 0.5)
					}
					c.call(s)
				}
			}
		}
	})
}
