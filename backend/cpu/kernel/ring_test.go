package kernel

import (
	"math"
	"math/rand/v2"
	"testing"
)

// TestHalves: widening and rounding to half precision, of every half and of numbers between and beyond them, agree with the
// definition on every instruction set.
func TestHalves(t *testing.T) {
	halves := make([]uint16, 1<<16)
	for i := range halves {
		halves[i] = uint16(i)
	}
	value := func(h uint16) float64 {
		v := float64(h&0x3ff) * 0x1p-24
		if e := int(h >> 10 & 31); e == 31 {
			v = math.Inf(1)
			if h&0x3ff != 0 {
				v = math.NaN()
			}
		} else if e > 0 {
			v = math.Ldexp(1+float64(h&0x3ff)/1024, e-15)
		}
		if h>>15 == 1 {
			v = -v
		}
		return v
	}
	r := rand.New(rand.NewPCG(1, 1))
	eachGemmSet(t, func(t *testing.T) {
		wide, back := make([]float32, len(halves)), make([]uint16, len(halves))
		WidenF16(wide, halves)
		NarrowF16(back, wide)
		for i, v := range wide {
			want := value(halves[i])
			if float64(v) != want && !(v != v && want != want) {
				t.Fatalf("half %#04x is %v, want %v", i, v, want)
			}
			if back[i] != halves[i] && v == v {
				t.Fatalf("half %#04x comes back as %#04x", i, back[i])
			}
			if v != v && (back[i]&0x7c00 != 0x7c00 || back[i]&0x3ff == 0) {
				t.Fatalf("NaN %#04x comes back as %#04x", i, back[i])
			}
		}
		// Between a half h and the next lies their mean, a tie, and its neighbours.
		for h := range uint16(0x7bff) {
			mean := float32((value(h) + value(h+1)) / 2)
			even := h + h&1
			x := []float32{mean, math.Nextafter32(mean, 0), math.Nextafter32(mean, 1e9), -mean}
			got := make([]uint16, 4)
			NarrowF16(got, x)
			for i, want := range []uint16{even, h, h + 1, even | 0x8000} {
				if got[i] != want {
					t.Fatalf("%v is %#04x, want %#04x", x[i], got[i], want)
				}
			}
		}
		for _, n := range []int{0, 1, 7, 8, 17, 33} { // odd lengths, and nothing behind them
			x, got := gemmRandom(r, n), make([]uint16, n+1)
			got[n] = 7
			NarrowF16(got[:n], x)
			for i, v := range x {
				if d := math.Abs(value(got[i]) - float64(v)); d > math.Abs(float64(v))*0x1p-11+0x1p-25 {
					t.Fatalf("%v is %v", v, value(got[i]))
				}
			}
			if got[n] != 7 {
				t.Fatal("wrote beyond the end")
			}
			vector := []float32{65519, 65520, float32(math.Inf(-1)), 1e30, 65519, 65520, 2, 1} // the whole of a register
			NarrowF16(got[:0], nil)
			eight := make([]uint16, 8)
			NarrowF16(eight, vector)
			for i, want := range []uint16{0x7bff, 0x7c00, 0xfc00, 0x7c00, 0x7bff, 0x7c00, 0x4000, 0x3c00} {
				if eight[i] != want {
					t.Fatalf("%v is %#04x, want %#04x", vector[i], eight[i], want)
				}
			}
		}
	})
}

// TestRotateRows: rows turn as single rows do, from float32 and from half precision.
func TestRotateRows(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	eachGemmSet(t, func(t *testing.T) {
		for _, s := range []struct{ n, k int }{{0, 16}, {1, 2}, {3, 16}, {5, 24}, {32, 64}, {7, 128}, {2, 80}} {
			halves := make([]uint16, s.n*s.k)
			src := gemmRandom(r, s.n*s.k)
			NarrowF16(halves, src)
			WidenF16(src, halves)
			cos, sin := gemmRandom(r, s.n*s.k/2), gemmRandom(r, s.n*s.k/2)
			got, got16 := make([]float32, s.n*s.k), make([]float32, s.n*s.k)
			RotateRows(got, src, s.n, cos, sin)
			RotateRowsF16(got16, halves, s.n, cos, sin)
			for i := range s.n {
				for j := range s.k / 2 {
					x, y := float64(src[i*s.k+j]), float64(src[i*s.k+j+s.k/2])
					c, d := float64(cos[i*s.k/2+j]), float64(sin[i*s.k/2+j])
					for at, want := range map[int]float64{i*s.k + j: x*c - y*d, i*s.k + j + s.k/2: y*c + x*d} {
						if math.Abs(float64(got[at])-want) > 2e-6 || got16[at] != got[at] {
							t.Fatalf("%v, row %d: %v and %v, want %v", s, i, got[at], got16[at], want)
						}
					}
				}
			}
		}
	})
}

// TestDots: products of few rows with many, for numbers of rows and columns around the kernels' own.
func TestDots(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	eachGemmSet(t, func(t *testing.T) {
		for _, m := range []int{1, 2, 3, 4, 7, 8} {
			for _, n := range []int{1, 3, 4, 5, 32} {
				for _, k := range []int{1, 24, 64, 128} {
					x := Matrix{gemmRandom(r, m*(k+3)), k + 3}
					w, out := gemmRandom(r, n*k), Matrix{make([]float32, m*(n+3)), n + 3}
					Dots(m, n, k, x, w, out)
					for i := range m {
						for j := range n {
							want := 0.0
							for p := range k {
								want += float64(x.Row(i)[p]) * float64(w[j*k+p])
							}
							if math.Abs(float64(out.Row(i)[j])-want) > 2e-5 {
								t.Fatalf("%dx%dx%d at %d,%d: %v, want %v", m, n, k, i, j, out.Row(i)[j], want)
							}
						}
					}
				}
			}
		}
	})
}
