//go:build linux || darwin

package kernel

import (
	"math/rand/v2"
	"testing"
)

// TestQuantKernelsStayInsideTheirPages: weights lie in a mapped file, so what is behind them, or before, may not exist.
func TestQuantKernelsStayInsideTheirPages(t *testing.T) {
	b := lonelyPage(t)
	r := rand.New(rand.NewPCG(6, 6))
	eachGemmSet(t, func(t *testing.T) {
		for q := range quantTypes {
			for blocks := 1; blocks <= 11; blocks++ {
				n, rows := blocks*quantLayout[q].elements, 1
				if quantLayout[q].elements == 32 {
					rows = 9 // some kernels take eight at a time
				}
				w := quantRandom(r, q, rows*n)
				x := quantised{make([]int8, n), make([]float32, n/32), make([]float32, n/32)}
				wide, out := make([]float32, n), make([]float32, rows)
				for _, from := range []int{0, len(b) - len(w)} {
					at := b[from : from+len(w)]
					copy(at, w)
					quants[q].widen(wide, at)
					quants[q].dot(rows, n/32, at, len(w)/rows, x.p, x.dx, x.sx, out)
				}
			}
		}
	})
}
