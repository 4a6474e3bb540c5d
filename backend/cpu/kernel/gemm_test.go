package kernel

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
)

// eachGemmSet runs f once for every instruction set of the machine.
func eachGemmSet(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	before := Active()
	defer func() {
		if err := Use(before); err != nil {
			t.Fatal(err)
		}
	}()
	for _, name := range Available() {
		if err := Use(name); err != nil {
			t.Fatal(err)
		}
		t.Run(name, f)
	}
}

func gemmRandom(r *rand.Rand, n int) []float32 {
	v := make([]float32, n)
	for i := range v {
		v[i] = float32(r.NormFloat64())
	}
	return v
}

// gemmCase is a product with operands of its own: rows further apart than they are long, and NaN between and around them, so
// that whatever is read beyond a row shows.
type gemmCase struct {
	op            Op
	m, n, k       int
	a, b, c, bias []float32
	lda, ldb, ldc int
	product, size []float64
}

func newGemmCase(r *rand.Rand, op Op, m, n, k, pad int) *gemmCase {
	g := &gemmCase{op: op, m: m, n: n, k: k}
	matrix := func(rows, cols int) ([]float32, int) {
		ld := cols + pad
		v := gemmRandom(r, max(0, (rows-1)*ld+cols))
		for i := range v {
			if i%ld >= cols {
				v[i] = float32(math.NaN())
			}
		}
		return v[:len(v):len(v)], ld
	}
	aRows, aCols, bRows, bCols := m, k, k, n
	if op == NT {
		bRows, bCols = n, k
	}
	if op == TN {
		aRows, aCols = k, m
	}
	g.a, g.lda = matrix(aRows, aCols)
	g.b, g.ldb = matrix(bRows, bCols)
	g.c, g.ldc = matrix(m, n)
	g.bias = gemmRandom(r, n)
	return g
}

// multiply computes, once, the product in float64, and with it the sums of the absolute terms, to which rounding is relative.
func (g *gemmCase) multiply() {
	if g.product != nil {
		return
	}
	g.product, g.size = make([]float64, g.m*g.n), make([]float64, g.m*g.n)
	for i := range g.m {
		for j := range g.n {
			for p := range g.k {
				a, b := i*g.lda+p, p*g.ldb+j
				if g.op == TN {
					a = p*g.lda + i
				}
				if g.op == NT {
					b = j*g.ldb + p
				}
				v := float64(g.a[a]) * float64(g.b[b])
				g.product[i*g.n+j] += v
				g.size[i*g.n+j] += math.Abs(v)
			}
		}
	}
}

// want is element (i,j) of the whole operation, with the size of what was summed.
func (g *gemmCase) want(i, j int, alpha float64, accumulate bool, bias []float32) (value, size float64) {
	g.multiply()
	value, size = alpha*g.product[i*g.n+j], math.Abs(alpha)*g.size[i*g.n+j]
	add := func(v float32) {
		value += float64(v)
		size += math.Abs(float64(v))
	}
	if accumulate {
		add(g.c[i*g.ldc+j])
	}
	if bias != nil {
		add(bias[j])
	}
	return value, size
}

// check runs the product on a copy of C and compares every element, and that nothing between the rows was written.
func (g *gemmCase) check(t *testing.T, alpha float64, accumulate bool, bias []float32, product func(c []float32)) {
	t.Helper()
	c := make([]float32, len(g.c))
	copy(c, g.c)
	if !accumulate {
		for i := range c {
			c[i] = float32(math.NaN())
		}
	}
	product(c)
	// A sum of k roundings in random order drifts by about sqrt(k) of them.
	tolerance := 1.2e-7 * (2 + math.Sqrt(float64(g.k)))
	for i := range c {
		row, col := i/g.ldc, i%g.ldc
		if col >= g.n {
			if !math.IsNaN(float64(c[i])) {
				t.Fatalf("%s op %d, %d x %d x %d: wrote between rows at row %d, column %d", Active(), g.op, g.m, g.n, g.k, row, col)
			}
			continue
		}
		want, size := g.want(row, col, alpha, accumulate, bias)
		if d := math.Abs(float64(c[i]) - want); !(d <= tolerance*size) {
			t.Fatalf("%s op %d, %d x %d x %d, alpha %g, accumulate %v, bias %v: C[%d,%d] = %g, want %g",
				Active(), g.op, g.m, g.n, g.k, alpha, accumulate, bias != nil, row, col, c[i], want)
		}
	}
}

func (g *gemmCase) checkAll(t *testing.T, p *Pool, ws *Workspace) {
	t.Helper()
	for _, accumulate := range []bool{false, true} {
		for _, bias := range [][]float32{nil, g.bias} {
			g.check(t, 1, accumulate, bias, func(c []float32) {
				Gemm(p, g.op, g.m, g.n, g.k, g.a, g.lda, g.b, g.ldb, c, g.ldc, accumulate, bias)
			})
		}
		g.check(t, -0.37, accumulate, nil, func(c []float32) {
			GemmSerial(ws, g.op, g.m, g.n, g.k, -0.37, g.a, g.lda, g.b, g.ldb, c, g.ldc, accumulate)
		})
	}
}

var gemmOps = []Op{NN, NT, TN}

func TestGemmSmall(t *testing.T) {
	p := NewPool(2)
	defer p.Close()
	eachGemmSet(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(1, 2))
		var ws Workspace
		for _, op := range gemmOps {
			for m := range 15 {
				for _, n := range []int{0, 1, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 40} {
					for _, k := range []int{0, 1, 2, 3, 4, 5, 7, 8, 9, 16, 17} {
						newGemmCase(r, op, m, n, k, (m+n+k)%3).checkAll(t, p, &ws)
					}
				}
			}
		}
	})
}

func TestGemmBlockEdges(t *testing.T) {
	p := NewPool(3)
	defer p.Close()
	eachGemmSet(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(3, 4))
		var ws Workspace
		for _, op := range gemmOps {
			for _, s := range [][3]int{{gemmM - 1, 70, 65}, {gemmM + 1, 67, gemmDepth + 1}, {2*gemmM + 7, 40, 2*gemmDepth + 3}, {16, 260, 2 * gemmDepth},
				{17, 260, gemmDepth - 1}, {gemmFlat, 130, 80}, {gemmFlat + 1, 130, 80}, {7, 300, 700}, {64, 128, 64}} {
				newGemmCase(r, op, s[0], s[1], s[2], 5).checkAll(t, p, &ws)
			}
			for range 12 {
				newGemmCase(r, op, 1+r.IntN(150), 1+r.IntN(150), 1+r.IntN(400), r.IntN(3)).checkAll(t, p, &ws)
			}
		}
	})
}

// Both ways to share a product give the same bits, on any number of threads.
func TestGemmThreads(t *testing.T) {
	eachGemmSet(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(5, 6))
		for _, op := range gemmOps {
			for _, s := range [][3]int{{5, 300, 200}, {60, 200, 300}, {200, 90, 520}} {
				g := newGemmCase(r, op, s[0], s[1], s[2], 0)
				var first []float32
				for _, threads := range []int{1, 2, 5} {
					p := NewPool(threads)
					c := make([]float32, len(g.c))
					Gemm(p, op, g.m, g.n, g.k, g.a, g.lda, g.b, g.ldb, c, g.ldc, false, g.bias)
					p.Close()
					if first == nil {
						first = c
					}
					for i := range c {
						if c[i] != first[i] {
							t.Fatalf("op %d, %d threads: C[%d] = %g, on one thread %g", op, threads, i, c[i], first[i])
						}
					}
				}
			}
		}
	})
}

// The panels of a wide B are packed in several rounds.
func TestGemmRounds(t *testing.T) {
	p := NewPool(2)
	defer p.Close()
	r := rand.New(rand.NewPCG(7, 8))
	const m, k = gemmFlat + 1, 16
	n := gemmPacked/k + 100
	a, b, c := gemmRandom(r, m*k), gemmRandom(r, k*n), make([]float32, m*n)
	Gemm(p, NN, m, n, k, a, k, b, n, c, n, false, nil)
	for i := 0; i < m*n; i += 9973 {
		var want, size float64
		for q := range k {
			v := float64(a[i/n*k+q]) * float64(b[q*n+i%n])
			want += v
			size += math.Abs(v)
		}
		if math.Abs(float64(c[i])-want) > 1e-6*size {
			t.Fatalf("C[%d,%d] = %g, want %g", i/n, i%n, c[i], want)
		}
	}
}

// toBF16 rounds toward zero: any bfloat16 will do.
func toBF16(v float32) uint16 { return uint16(math.Float32bits(v) >> 16) }

func TestGemmHalf(t *testing.T) {
	p := NewPool(2)
	defer p.Close()
	eachGemmSet(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(9, 10))
		for _, m := range []int{1, 2, 3, 4, 5, 7, 12, 16, 17, 40, 120} {
			for _, n := range []int{1, 3, 4, 16, 33, 70} {
				for _, k := range []int{0, 1, 7, 8, 16, 24, 31, 300} {
					g := newGemmCase(r, NT, m, n, k, 3)
					half := make([]uint16, len(g.b))
					for name, product := range map[string]func(*Pool, int, int, int, []float32, int, []uint16, int, []float32, int, bool, []float32){
						"bf16": GemmBF16, "f16": GemmF16} {
						for i := range half {
							if name == "bf16" {
								half[i] = toBF16(g.b[i])
								g.b[i] = gemmFromBF16(half[i])
							} else {
								half[i] = uint16(r.IntN(1 << 16))
								if half[i]>>10&31 == 31 {
									half[i] ^= 1 << 14
								}
								g.b[i] = gemmFromF16(half[i])
							}
						}
						g.product = nil
						for _, accumulate := range []bool{false, true} {
							g.check(t, 1, accumulate, g.bias, func(c []float32) {
								product(p, m, n, k, g.a, g.lda, half, g.ldb, c, g.ldc, accumulate, g.bias)
							})
						}
					}
				}
			}
		}
	})
}

// Every half converts to the value that its bits spell.
func TestGemmFromF16(t *testing.T) {
	for h := range 1 << 16 {
		exponent, fraction := h>>10&31, float64(h&1023)
		want := math.Ldexp(1+fraction/1024, exponent-15)
		switch {
		case exponent == 0:
			want = math.Ldexp(fraction, -24)
		case exponent == 31 && fraction == 0:
			want = math.Inf(1)
		case exponent == 31:
			want = math.NaN()
		}
		if h>>15 == 1 {
			want = -want
		}
		got := float64(gemmFromF16(uint16(h)))
		if got != want && !(math.IsNaN(got) && math.IsNaN(want)) || math.Signbit(got) != (h>>15 == 1) {
			t.Fatalf("half %#04x is %g, want %g", h, got, want)
		}
	}
}

func TestGemmDoesNotAllocate(t *testing.T) {
	p := NewPool(2)
	defer p.Close()
	eachGemmSet(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(11, 12))
		var ws Workspace
		half := make([]uint16, 150*150)
		for _, op := range gemmOps {
			for _, m := range []int{1, 10, 60, 120} {
				g := newGemmCase(r, op, m, 150, 150, 0)
				n := testing.AllocsPerRun(3, func() {
					Gemm(p, op, m, 150, 150, g.a, g.lda, g.b, g.ldb, g.c, g.ldc, true, g.bias)
					GemmSerial(&ws, op, min(m, 64), 128, 64, 2, g.a, g.lda, g.b, g.ldb, g.c, g.ldc, false)
					if op == NT {
						GemmBF16(p, m, 150, 150, g.a, g.lda, half, 150, g.c, g.ldc, false, nil)
					}
				})
				if n != 0 {
					t.Errorf("op %d, m %d: %g allocations a product", op, m, n)
				}
			}
		}
	})
}

// Products at the same time on one pool, nested ones too, do not disturb each other.
func TestGemmNested(t *testing.T) {
	p := NewPool(2)
	defer p.Close()
	r := rand.New(rand.NewPCG(13, 14))
	cases := make([]*gemmCase, 8)
	for i := range cases {
		cases[i] = newGemmCase(r, gemmOps[i%3], 130, 50, 90, 0)
	}
	out := make([][]float32, len(cases))
	p.Run(len(cases), poolFunc(func(worker, i int) {
		g := cases[i]
		out[i] = make([]float32, len(g.c))
		Gemm(p, g.op, g.m, g.n, g.k, g.a, g.lda, g.b, g.ldb, out[i], g.ldc, false, nil)
	}))
	for i, g := range cases {
		g.check(t, 1, false, nil, func(c []float32) { copy(c, out[i]) })
	}
}

type gemmShape struct {
	op      Op
	m, n, k int
}

func (s gemmShape) String() string {
	return fmt.Sprintf("%s-%dx%dx%d", [...]string{"nn", "nt", "tn"}[s.op], s.m, s.n, s.k)
}

func benchmarkGemm(b *testing.B, p *Pool, s gemmShape) {
	r := rand.New(rand.NewPCG(1, 1))
	g := newGemmCase(r, s.op, s.m, s.n, s.k, 0)
	for i := range g.c {
		g.c[i] = 0
	}
	Gemm(p, s.op, s.m, s.n, s.k, g.a, g.lda, g.b, g.ldb, g.c, g.ldc, false, nil)
	b.ResetTimer()
	for b.Loop() {
		Gemm(p, s.op, s.m, s.n, s.k, g.a, g.lda, g.b, g.ldb, g.c, g.ldc, false, nil)
	}
	b.ReportMetric(2*float64(s.m)*float64(s.n)*float64(s.k)*float64(b.N)/b.Elapsed().Seconds()/1e9, "GFLOP/s")
}

func BenchmarkGemm(b *testing.B) {
	p := NewPool(0)
	defer p.Close()
	for _, n := range []int{16, 32, 64, 128, 256, 512, 1024, 2048} {
		for _, op := range gemmOps {
			s := gemmShape{op, n, n, n}
			b.Run(s.String(), func(b *testing.B) { benchmarkGemm(b, p, s) })
		}
	}
}

// BenchmarkGemmModels has the products of a training step of 2048 tokens: y = x W^T, dx = dy W, dW = dy^T x.
func BenchmarkGemmModels(b *testing.B) {
	p := NewPool(0)
	defer p.Close()
	const tokens = 2048
	for _, layer := range [][2]int{{256, 256}, {704, 256}, {256, 704}, {4096, 256}, {512, 512}, {1408, 512}, {512, 1408}, {8192, 512}} {
		out, in := layer[0], layer[1]
		for _, s := range []gemmShape{{NT, tokens, out, in}, {NN, tokens, in, out}, {TN, out, in, tokens}} {
			b.Run(s.String(), func(b *testing.B) { benchmarkGemm(b, p, s) })
		}
	}
}

// BenchmarkGemmSerial has the tiles of the attention operator, on one core.
func BenchmarkGemmSerial(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 1))
	for _, n := range [][3]int{{16, 16, 16}, {32, 32, 32}, {64, 64, 64}, {64, 128, 64}, {64, 64, 128}, {128, 128, 128}} {
		for _, op := range gemmOps {
			s := gemmShape{op, n[0], n[1], n[2]}
			b.Run(s.String(), func(b *testing.B) {
				var ws Workspace
				g := newGemmCase(r, op, s.m, s.n, s.k, 0)
				for b.Loop() {
					GemmSerial(&ws, op, s.m, s.n, s.k, 1, g.a, g.lda, g.b, g.ldb, g.c, g.ldc, false)
				}
				b.ReportMetric(2*float64(s.m)*float64(s.n)*float64(s.k)*float64(b.N)/b.Elapsed().Seconds()/1e9, "GFLOP/s")
			})
		}
	}
}

// BenchmarkGemmSkinny reads 64 MB of weights, more than the caches hold, a few rows of x at a time.
func BenchmarkGemmSkinny(b *testing.B) {
	p := NewPool(0)
	defer p.Close()
	const n, k = 16384, 1024
	r := rand.New(rand.NewPCG(1, 1))
	w := gemmRandom(r, n*k)
	half := make([]uint16, n*k)
	for i := range half {
		half[i] = toBF16(w[i])
	}
	for _, m := range []int{1, 2, 4, 8, 16} {
		x, y := gemmRandom(r, m*k), make([]float32, m*n)
		b.Run(fmt.Sprintf("f32-%d", m), func(b *testing.B) {
			b.SetBytes(4 * n * k)
			for b.Loop() {
				Gemm(p, NT, m, n, k, x, k, w, k, y, n, false, nil)
			}
		})
		b.Run(fmt.Sprintf("bf16-%d", m), func(b *testing.B) {
			b.SetBytes(2 * n * k)
			for b.Loop() {
				GemmBF16(p, m, n, k, x, k, half, k, y, n, false, nil)
			}
		})
		b.Run(fmt.Sprintf("f16-%d", m), func(b *testing.B) {
			b.SetBytes(2 * n * k)
			for b.Loop() {
				GemmF16(p, m, n, k, x, k, half, k, y, n, false, nil)
			}
		})
	}
}
