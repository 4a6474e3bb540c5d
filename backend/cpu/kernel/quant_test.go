package kernel

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
)

// quantHalves is where a block of each type has its halves.
var quantHalves = [quantTypes][]int{Q4_0: {0}, Q4_1: {0, 2}, Q5_0: {0}, Q5_1: {0, 2}, Q8_0: {0}, Q4_K: {0, 2}, Q5_K: {0, 2}, Q6_K: {208}}

// quantRandom is n weights of random bits, with scales of either sign that are numbers, subnormal ones and zeros among them.
func quantRandom(r *rand.Rand, t Quant, n int) []byte {
	b := make([]byte, t.rowBytes(n))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	layout := quantLayout[t]
	for at := 0; at < len(b); at += layout.bytes {
		for _, h := range quantHalves[t] {
			v := uint16(r.Uint32()) & 0xbfff // below 2
			if r.IntN(10) == 0 {
				v &= 0x83ff // subnormal
			}
			binary.LittleEndian.PutUint16(b[at+h:], v)
		}
	}
	return b
}

func quantName(t Quant) string {
	return [...]string{"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"}[t]
}

// TestQuantWiden: every instruction set decodes to the generic twin's numbers, and writes no more.
func TestQuantWiden(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	eachGemmSet(t, func(t *testing.T) {
		for q := range quantTypes {
			for blocks := range 4 {
				n := blocks * quantLayout[q].elements
				src := quantRandom(r, q, n)
				got, want := make([]float32, n+1), make([]float32, n)
				got[n] = 7
				quants[q].widen(got[:n], src)
				quantWidenGeneric(q)(want, src)
				for i := range want {
					if got[i] != want[i] {
						t.Fatalf("%s element %d of %d: %v, want %v", quantName(q), i, n, got[i], want[i])
					}
				}
				if got[n] != 7 {
					t.Fatalf("%s: wrote beyond %d", quantName(q), n)
				}
			}
		}
	})
}

// TestQuantActivate: rounding to 8 bits is the same to the bit everywhere, the error is half a step at most, and what is no number
// makes its block's scale none.
func TestQuantActivate(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	const blocks = 40
	x := gemmRandom(r, blocks*quantBlock)
	for i := range quantBlock {
		x[i] = 0
		x[quantBlock+i] *= 1e-38
		x[2*quantBlock+i] *= 1e30
		x[3*quantBlock+i] = -3
		x[6*quantBlock+i] = float32(i) - 15.5 // ties
	}
	x[4*quantBlock+3] = float32(math.NaN())
	x[5*quantBlock+31] = float32(math.Inf(-1))
	for b := 7; b < blocks; b++ { // exactly 127 steps, so that halves round to even
		x[b*quantBlock] = 127
		for i := 1; i < quantBlock; i++ {
			x[b*quantBlock+i] = float32(r.IntN(507)-253) / 2
		}
	}
	want := quantised{make([]int8, len(x)), make([]float32, blocks), make([]float32, blocks)}
	quantActivateGeneric(x, want.p, want.dx, want.sx)
	for b := range blocks {
		if b == 4 || b == 5 {
			if v := float64(want.dx[b]); !math.IsNaN(v) && !math.IsInf(v, 0) {
				t.Errorf("block %d: scale %v", b, v)
			}
			continue
		}
		sum := 0
		for i, v := range x[b*quantBlock:][:quantBlock] {
			q := want.p[b*quantBlock+i]
			sum += int(q)
			step := float64(want.dx[b])
			if e := math.Abs(float64(v) - step*float64(q)); e > step*0.5001+1e-28 {
				t.Errorf("block %d: %v is %d steps of %v", b, v, q, step)
			}
		}
		if s := want.dx[b] * float32(sum); want.sx[b] != s {
			t.Errorf("block %d: sum %v, want %v", b, want.sx[b], s)
		}
	}
	eachGemmSet(t, func(t *testing.T) {
		got := quantised{make([]int8, len(x)), make([]float32, blocks), make([]float32, blocks)}
		quantActivate(x, got.p, got.dx, got.sx)
		for b := range blocks {
			if math.Float32bits(got.dx[b]) != math.Float32bits(want.dx[b]) && want.dx[b] == want.dx[b] || (got.dx[b] == got.dx[b]) != (want.dx[b] == want.dx[b]) {
				t.Errorf("block %d: scale %v, want %v", b, got.dx[b], want.dx[b])
			}
			if b == 4 || b == 5 {
				continue
			}
			if got.sx[b] != want.sx[b] || string(bytesOf(got.p[b*quantBlock:][:quantBlock])) != string(bytesOf(want.p[b*quantBlock:][:quantBlock])) {
				t.Errorf("block %d: %v, want %v", b, got.p[b*quantBlock:][:quantBlock], want.p[b*quantBlock:][:quantBlock])
			}
		}
	})
}

func bytesOf(p []int8) []byte {
	b := make([]byte, len(p))
	for i, v := range p {
		b[i] = byte(v)
	}
	return b
}

// quantTruth is a product with rounded activations in float64, and the sum of magnitudes that its rounding is held against: that of the
// integers as they are stored, offsets and minima apart.
func quantTruth(t Quant, blocks int, w []byte, x quantised) (sum, size float64) {
	var o quantOpen
	layout := quantLayout[t]
	offset := [quantTypes]float64{Q4_0: 8, Q5_0: 16, Q8_0: 128}[t]
	for b := 0; b < blocks; b += layout.elements / quantBlock {
		quantOpeners[t](&o, w)
		w = w[layout.bytes:]
		for i := range layout.elements {
			d, p := float64(x.dx[b+i/32]), float64(x.p[b*quantBlock+i])
			s, q := float64(o.scale[i/16]), float64(o.q[i])
			sum += d * p * (s*q - float64(o.least[i/32]))
			size += math.Abs(d*p) * (math.Abs(s)*(math.Abs(q)+offset) + math.Abs(float64(o.least[i/32])))
		}
	}
	return sum, size
}

// TestQuantDot: integers are summed exactly, so only the float32 sums over blocks round. Weights and activations at their extremes.
func TestQuantDot(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	eachGemmSet(t, func(t *testing.T) {
		for q := range quantTypes {
			per := quantLayout[q].elements / quantBlock
			for _, n := range []int{1, 2, 3, 7, 8, 9, 18, 48} {
				blocks := n * per
				k, rows := blocks*quantBlock, 21
				w := quantRandom(r, q, rows*k)
				row := q.rowBytes(k)
				if n == 8 {
					for i := range w {
						if i%quantLayout[q].bytes >= 4 && i%quantLayout[q].bytes < 200 {
							w[i] = 0xff
						}
					}
				}
				if n == 9 && q == Q8_0 {
					for i := range w {
						if i%34 > 1 {
							w[i] = 0x80
						}
					}
				}
				x := quantised{make([]int8, k), make([]float32, blocks), make([]float32, blocks)}
				for b := range blocks {
					x.dx[b] = float32(math.Abs(r.NormFloat64()))
					sum := 0
					for i := range quantBlock {
						v := r.IntN(255) - 127
						if n == 8 || n == 9 {
							v = 127 * (1 - 2*(b%2))
						}
						x.p[b*quantBlock+i] = int8(v)
						sum += v
					}
					x.sx[b] = x.dx[b] * float32(sum)
				}
				out := make([]float32, rows+1)
				out[rows] = 7
				quants[q].dot(rows, blocks, w, row, x.p, x.dx, x.sx, out)
				for i := range rows {
					want, size := quantTruth(q, blocks, w[i*row:], x)
					if e := math.Abs(float64(out[i]) - want); !(e <= 4e-7*size) {
						t.Errorf("%s, %d blocks, row %d: %v, want %v (off by %.2g of %.2g)", quantName(q), blocks, i, out[i], want, e, size)
					}
				}
				if out[rows] != 7 {
					t.Errorf("%s: wrote beyond %d rows", quantName(q), rows)
				}
			}
		}
	})
}

// TestGemmQuant: products with quantised weights are those with the widened ones: exactly so far as sums round alike with float32
// activations, within half a step of every activation where they are rounded; the same bits each time.
func TestGemmQuant(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 4))
	p := NewPool(3)
	defer p.Close()
	eachGemmSet(t, func(t *testing.T) {
		for q := range quantTypes {
			for _, s := range []struct{ m, n, blocks int }{{1, 1, 1}, {1, 37, 2}, {3, 130, 1}, {8, 21, 3}, {9, 50, 2}, {16, 33, 3}, {17, 40, 3}, {100, 70, 3}, {120, 33, 2}} {
				k := s.blocks * quantLayout[q].elements
				w := quantRandom(r, q, s.n*k)
				wide := make([]float32, s.n*k)
				Widen(q, wide, w)
				a, bias, before := gemmRandom(r, s.m*k), gemmRandom(r, s.n), gemmRandom(r, s.m*s.n)
				for _, exact := range []bool{true, false} {
					name := fmt.Sprintf("%s %dx%dx%d exact %t", quantName(q), s.m, s.n, k, exact)
					c, again := append([]float32(nil), before...), append([]float32(nil), before...)
					GemmQuant(p, q, exact, s.m, s.n, k, a, k, w, c, s.n, true, bias)
					GemmQuant(p, q, exact, s.m, s.n, k, a, k, w, again, s.n, true, bias)
					for i := range s.m {
						for j := range s.n {
							want, size, step := float64(before[i*s.n+j])+float64(bias[j]), 0.0, 0.0
							for b := 0; b < k; b += quantBlock {
								top := 0.0
								for _, v := range a[i*k+b : i*k+b+quantBlock] {
									top = max(top, math.Abs(float64(v)))
								}
								for l := b; l < b+quantBlock; l++ {
									want += float64(a[i*k+l]) * float64(wide[j*k+l])
									size += math.Abs(float64(a[i*k+l]) * float64(wide[j*k+l]))
									step += top / 127 / 2 * math.Abs(float64(wide[j*k+l]))
								}
							}
							limit := 1e-6*size + 1e-6
							if !exact && s.m <= quantRows {
								limit += step + 1e-4*size
							}
							if e := math.Abs(float64(c[i*s.n+j]) - want); !(e <= limit) {
								t.Fatalf("%s at %d,%d: %v, want %v, limit %.2g", name, i, j, c[i*s.n+j], want, limit)
							}
							if math.Float32bits(c[i*s.n+j]) != math.Float32bits(again[i*s.n+j]) {
								t.Fatalf("%s at %d,%d: %v, then %v", name, i, j, c[i*s.n+j], again[i*s.n+j])
							}
						}
					}
				}
			}
		}
	})
}

// BenchmarkQuantDot reads 64 MB of weights in rows of 576 on one core.
func BenchmarkQuantDot(b *testing.B) {
	r := rand.New(rand.NewPCG(5, 5))
	for q := range quantTypes {
		for _, k := range []int{576, 1536} {
			if k%quantLayout[q].elements != 0 {
				continue
			}
			w := quantRandom(r, q, 32*k)
			for len(w) < 64<<20 {
				w = append(w, w...)
			}
			rows, x := len(w)/q.rowBytes(k), gemmRandom(r, k)
			a := quantised{make([]int8, k), make([]float32, k/32), make([]float32, k/32)}
			choose()
			quantActivate(x, a.p, a.dx, a.sx)
			out := make([]float32, rows)
			b.Run(fmt.Sprintf("%s/%d", quantName(q), k), func(b *testing.B) {
				b.SetBytes(int64(len(w)))
				for b.Loop() {
					quants[q].dot(rows, k/32, w, q.rowBytes(k), a.p, a.dx, a.sx, out)
				}
				b.ReportMetric(float64(rows*k)*float64(b.N)/b.Elapsed().Seconds()/1e9, "Gweights/s")
			})
		}
	}
}
