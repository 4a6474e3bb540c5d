package kernel

import (
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"testing"
)

// A vectorCase is one exported kernel as the tests and benchmarks drive it: call on slices of the given lengths, the first
// `written` of them outputs (their content before the call counts too), and the same in float64.
type vectorCase struct {
	name      string
	lengths   func(n int) []int
	written   int
	bytes     int                 // read and written per element, for the benchmark
	prepare   func(s [][]float32) // makes random slices valid arguments, where they are not
	call      func(s [][]float32) float64
	want      func(s [][]float64) float64
	tolerance float64 // of the scalar result and of the elements, relative to max(1, |want|)
	aliased   bool    // the second slice may be the first
}

func equal(count int) func(int) []int {
	return func(n int) []int {
		l := make([]int, count)
		for i := range l {
			l[i] = n
		}
		return l
	}
}

func each(f func(i int, s [][]float64)) func(s [][]float64) float64 {
	return func(s [][]float64) float64 {
		for i := range s[0] {
			f(i, s)
		}
		return 0
	}
}

func total(f func(i int, s [][]float64) float64) func(s [][]float64) float64 {
	return func(s [][]float64) float64 {
		var sum float64
		for i := range s[0] {
			sum += f(i, s)
		}
		return sum
	}
}

func sigmoid(x float64) float64 { return 1 / (1 + math.Exp(-x)) }

func siluSlope(x float64) float64 { return sigmoid(x) * (1 + x*sigmoid(-x)) }

func logSumExp(x []float64) float64 {
	m, sum := math.Inf(-1), 0.0
	for _, v := range x {
		m = max(m, v)
	}
	if math.IsInf(m, -1) {
		return m
	}
	for _, v := range x {
		sum += math.Exp(v - m)
	}
	return m + math.Log(sum)
}

const testTau = 8

var testStep = AdamWStep{LearningRate: 3e-2, Beta1: 0.9, Beta2: 0.95, Epsilon: 1e-8, WeightDecay: 0.1,
	BiasCorrection1: 1 - 0.9*0.9, BiasCorrection2: 1 - 0.95*0.95, GradientScale: 0.5}

// adamWReference is PyTorch's single-tensor AdamW.
func adamWReference(i int, s [][]float64) {
	p, m, v, g, a := s[0], s[1], s[2], s[3], testStep
	d := g[i] * float64(a.GradientScale)
	b1, b2 := float64(a.Beta1), float64(a.Beta2)
	p[i] -= float64(a.LearningRate) * float64(a.WeightDecay) * p[i]
	m[i] = b1*m[i] + (1-b1)*d
	v[i] = b2*v[i] + (1-b2)*d*d
	p[i] -= float64(a.LearningRate) / float64(a.BiasCorrection1) * m[i] / (math.Sqrt(v[i]/float64(a.BiasCorrection2)) + float64(a.Epsilon))
}

var vectorCases = []vectorCase{
	{name: "Exp", lengths: equal(2), written: 1, bytes: 8, tolerance: 2e-7, aliased: true,
		call: func(s [][]float32) float64 { Exp(s[0], s[1]); return 0 },
		want: each(func(i int, s [][]float64) { s[0][i] = math.Exp(s[1][i]) })},
	{name: "Log", lengths: equal(2), written: 1, bytes: 8, tolerance: 2e-7, aliased: true,
		call: func(s [][]float32) float64 { Log(s[0], s[1]); return 0 },
		want: each(func(i int, s [][]float64) { s[0][i] = math.Log(s[1][i]) })},
	{name: "Sum", lengths: equal(1), bytes: 4, tolerance: 1e-5,
		call: func(s [][]float32) float64 { return float64(Sum(s[0])) },
		want: total(func(i int, s [][]float64) float64 { return s[0][i] })},
	{name: "SumSquares", lengths: equal(1), bytes: 4, tolerance: 1e-14,
		call: func(s [][]float32) float64 { return SumSquares(s[0]) },
		want: total(func(i int, s [][]float64) float64 { return s[0][i] * s[0][i] })},
	{name: "Max", lengths: equal(1), bytes: 4,
		call: func(s [][]float32) float64 { return float64(Max(s[0])) },
		want: func(s [][]float64) float64 {
			m := math.Inf(-1)
			for _, v := range s[0] {
				m = max(m, v)
			}
			return m
		}},
	{name: "Dot", lengths: equal(2), bytes: 8, tolerance: 1e-5,
		call: func(s [][]float32) float64 { return float64(Dot(s[0], s[1])) },
		want: total(func(i int, s [][]float64) float64 { return s[0][i] * s[1][i] })},
	{name: "Axpy", lengths: equal(2), written: 1, bytes: 12, tolerance: 2e-7, aliased: true,
		call: func(s [][]float32) float64 { Axpy(s[0], 0.75, s[1]); return 0 },
		want: each(func(i int, s [][]float64) { s[0][i] += 0.75 * s[1][i] })},
	{name: "Add", lengths: equal(3), written: 1, bytes: 12, tolerance: 1e-7, aliased: true,
		call: func(s [][]float32) float64 { Add(s[0], s[1], s[2]); return 0 },
		want: each(func(i int, s [][]float64) { s[0][i] = s[1][i] + s[2][i] })},
	{name: "AddTo", lengths: equal(2), written: 1, bytes: 12, tolerance: 1e-7, aliased: true,
		call: func(s [][]float32) float64 { AddTo(s[0], s[1]); return 0 },
		want: each(func(i int, s [][]float64) { s[0][i] += s[1][i] })},
	{name: "Scale", lengths: equal(1), written: 1, bytes: 8, tolerance: 1e-7,
		call: func(s [][]float32) float64 { Scale(s[0], 0.3125); return 0 },
		want: each(func(i int, s [][]float64) { s[0][i] *= 0.3125 })},
	{name: "Fill", lengths: equal(1), written: 1, bytes: 4,
		call: func(s [][]float32) float64 { Fill(s[0], -3); return 0 },
		want: each(func(i int, s [][]float64) { s[0][i] = -3 })},
	{name: "SiLU", lengths: equal(2), written: 1, bytes: 8, tolerance: 3e-7, aliased: true,
		call: func(s [][]float32) float64 { SiLU(s[0], s[1]); return 0 },
		want: each(func(i int, s [][]float64) { s[0][i] = s[1][i] * sigmoid(s[1][i]) })},
	{name: "SiLUBackward", lengths: equal(3), written: 1, bytes: 12, tolerance: 5e-7, aliased: true,
		call: func(s [][]float32) float64 { SiLUBackward(s[0], s[1], s[2], false); return 0 },
		want: each(func(i int, s [][]float64) { s[0][i] = s[1][i] * siluSlope(s[2][i]) })},
	{name: "SiLUBackward/add", lengths: equal(3), written: 1, bytes: 16, tolerance: 5e-7, aliased: true,
		call: func(s [][]float32) float64 { SiLUBackward(s[0], s[1], s[2], true); return 0 },
		want: each(func(i int, s [][]float64) { s[0][i] += s[1][i] * siluSlope(s[2][i]) })},
	{name: "SwiGLU", lengths: equal(3), written: 1, bytes: 12, tolerance: 4e-7, aliased: true,
		call: func(s [][]float32) float64 { SwiGLU(s[0], s[1], s[2]); return 0 },
		want: each(func(i int, s [][]float64) { s[0][i] = s[1][i] * sigmoid(s[1][i]) * s[2][i] })},
	{name: "SwiGLUBackward", lengths: equal(5), written: 2, bytes: 20, tolerance: 5e-7,
		call: func(s [][]float32) float64 { SwiGLUBackward(s[0], s[1], s[2], s[3], s[4]); return 0 },
		want: each(func(i int, s [][]float64) {
			dy, gate, up := s[2][i], s[3][i], s[4][i]
			s[0][i], s[1][i] = dy*up*siluSlope(gate), dy*gate*sigmoid(gate)
		})},
	{name: "RMSNorm", lengths: func(n int) []int { return []int{3 * n, 3, 3 * n, n} }, written: 2, bytes: 8, tolerance: 5e-7,
		call: func(s [][]float32) float64 { RMSNorm(s[0], s[2], s[3], 3, len(s[3]), 1e-3, s[1]); return 0 },
		want: func(s [][]float64) float64 {
			n := len(s[3])
			for r := 0; n > 0 && r < 3; r++ {
				var squares float64
				for i := range n {
					squares += s[2][r*n+i] * s[2][r*n+i]
				}
				s[1][r] = 1 / math.Sqrt(squares/float64(n)+float64(float32(1e-3)))
				for i := range n {
					s[0][r*n+i] = s[2][r*n+i] * s[1][r] * s[3][i]
				}
			}
			return 0
		}},
	normBackwardCase("RMSNormBackward", false),
	normBackwardCase("RMSNormBackward/add", true),
	{name: "ExpSum", lengths: equal(2), written: 1, bytes: 8, tolerance: 1e-6, aliased: true,
		call: func(s [][]float32) float64 { return float64(ExpSum(s[0], s[1], 2.5)) },
		want: total(func(i int, s [][]float64) float64 { s[0][i] = math.Exp(s[1][i] - 2.5); return s[0][i] })},
	{name: "LogSumExp", lengths: equal(1), bytes: 4, tolerance: 1e-6,
		call: func(s [][]float32) float64 { return float64(LogSumExp(s[0])) },
		want: func(s [][]float64) float64 { return logSumExp(s[0]) }},
	{name: "SoftmaxRow", lengths: equal(1), written: 1, bytes: 12, tolerance: 1e-6,
		call: func(s [][]float32) float64 { return float64(SoftmaxRow(s[0])) },
		want: func(s [][]float64) float64 {
			lse := logSumExp(s[0])
			for i, v := range s[0] {
				s[0][i] = math.Exp(v - lse)
			}
			return lse
		}},
	{name: "CrossEntropyRow", lengths: func(n int) []int { return []int{n + 1} }, written: 1, bytes: 12, tolerance: 1e-6,
		call: func(s [][]float32) float64 {
			return float64(CrossEntropyRow(s[0], int32(len(s[0])/2), 0.25))
		},
		want: func(s [][]float64) float64 {
			lse, target := logSumExp(s[0]), len(s[0])/2
			loss := lse - s[0][target]
			for i, v := range s[0] {
				s[0][i] = 0.25 * math.Exp(v-lse)
			}
			s[0][target] -= 0.25
			return loss
		}},
	rotateCase("Rotate", false),
	rotateCase("Rotate/inverse", true),
	{name: "AdamW", lengths: equal(4), written: 3, bytes: 28, tolerance: 1e-6,
		prepare: func(s [][]float32) {
			for i, v := range s[2] {
				s[2][i] = v * v // a second moment is not negative
			}
		},
		call: func(s [][]float32) float64 { AdamW(s[0], s[3], s[1], s[2], testStep); return 0 },
		want: each(adamWReference)},
	{name: "GateForward", lengths: equal(3), written: 2, bytes: 12, tolerance: 3e-7,
		call: func(s [][]float32) float64 { GateForward(s[0], s[1], s[2], testTau); return 0 },
		want: each(func(i int, s [][]float64) {
			s[0][i] = (min(s[2][i], 0) - math.Log1p(math.Exp(-math.Abs(s[2][i])))) / testTau
			s[1][i] = -math.Expm1(s[0][i])
		})},
	{name: "GateBackward", lengths: equal(4), written: 1, bytes: 16, tolerance: 5e-7, aliased: true,
		call: func(s [][]float32) float64 { GateBackward(s[0], s[1], s[2], s[3], testTau); return 0 },
		want: each(func(i int, s [][]float64) { s[0][i] = s[1][i] * math.Exp(s[2][i]) * sigmoid(-s[3][i]) / testTau })},
}

func normBackwardCase(name string, add bool) vectorCase {
	return vectorCase{name: name, lengths: func(n int) []int { return []int{2 * n, n, 2 * n, 2 * n, n, 2} }, written: 2, bytes: 20, tolerance: 2e-5,
		call: func(s [][]float32) float64 {
			RMSNormBackward(s[0], s[1], s[2], s[3], s[4], s[5], 2, len(s[1]), add)
			return 0
		},
		want: func(s [][]float64) float64 {
			n := len(s[1])
			dx, dw, dy, x, w, rstd := s[0], s[1], s[2], s[3], s[4], s[5]
			for r := range 2 {
				var mean float64
				for i := range n {
					mean += dy[r*n+i] * w[i] * x[r*n+i] / float64(n)
				}
				for i := range n {
					j := r*n + i
					d := rstd[r] * (dy[j]*w[i] - x[j]*rstd[r]*rstd[r]*mean)
					if add {
						d += dx[j]
					}
					dw[i] += dy[j] * x[j] * rstd[r]
					dx[j] = d
				}
			}
			return 0
		}}
}

func rotateCase(name string, inverse bool) vectorCase {
	return vectorCase{name: name, lengths: func(n int) []int { return []int{2 * n, 2 * n, n, n} }, written: 1, bytes: 12, tolerance: 3e-7, aliased: true,
		call: func(s [][]float32) float64 { Rotate(s[0], s[1], s[2], s[3], inverse); return 0 },
		want: func(s [][]float64) float64 {
			h := len(s[2])
			for i := range h {
				x, y, c, d := s[1][i], s[1][i+h], s[2][i], s[3][i]
				if inverse {
					d = -d
				}
				s[0][i], s[0][i+h] = x*c-y*d, y*c+x*d
			}
			return 0
		}}
}

// eachVectorSet runs f under every instruction set of the machine and leaves the best one in use.
func eachVectorSet(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	t.Cleanup(func() {
		if err := Setup(); err != nil {
			t.Fatal(err)
		}
	})
	for _, name := range Available() {
		if err := Use(name); err != nil {
			t.Fatal(err)
		}
		t.Run(name, f)
	}
}

// testLengths crosses every tail of eight and sixteen lanes, of one and four registers a step.
func testLengths() []int {
	var l []int
	for n := range 150 {
		l = append(l, n)
	}
	return append(l, 255, 256, 257, 1000, 4099)
}

const canary = float32(1.23456e17)

// guarded is a slice of n at an odd offset between canaries, and what checks them.
func guarded(n, offset int) (s []float32, intact func() bool) {
	const edge = 32
	b := make([]float32, n+2*edge+offset)
	for i := range b {
		b[i] = canary
	}
	at := edge + offset
	return b[at : at+n : at+n], func() bool {
		for i, v := range b {
			if (i < at || i >= at+n) && v != canary {
				return false
			}
		}
		return true
	}
}

func randomise(r *rand.Rand, s []float32) {
	for i := range s {
		s[i] = float32(r.NormFloat64())
	}
}

func TestVectorKernels(t *testing.T) {
	eachVectorSet(t, func(t *testing.T) {
		for _, c := range vectorCases {
			t.Run(c.name, func(t *testing.T) {
				for _, n := range testLengths() {
					for _, alias := range []bool{false, true}[:1+b2i(c.aliased)] {
						matchVectorCase(t, c, n, alias)
					}
				}
			})
		}
	})
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

func matchVectorCase(t *testing.T, c vectorCase, n int, alias bool) {
	t.Helper()
	r := rand.New(rand.NewPCG(uint64(n), 7))
	lengths := c.lengths(n)
	got, before, want := make([][]float32, len(lengths)), make([][]float32, len(lengths)), make([][]float64, len(lengths))
	intact := make([]func() bool, len(lengths))
	for i, l := range lengths {
		got[i], intact[i] = guarded(l, (n+i)%5)
		randomise(r, got[i])
	}
	if c.prepare != nil {
		c.prepare(got)
	}
	for i, l := range lengths {
		if alias && i == 1 {
			got[1] = got[0]
		}
		want[i] = make([]float64, l)
		for j, v := range got[i] {
			want[i][j] = float64(v)
		}
		before[i] = append([]float32(nil), got[i]...)
	}
	gotScalar, wantScalar := c.call(got), c.want(want)
	if !close64(gotScalar, wantScalar, c.tolerance) {
		t.Fatalf("n=%d alias=%v: result %g, want %g", n, alias, gotScalar, wantScalar)
	}
	for i := range got {
		if !intact[i]() {
			t.Fatalf("n=%d alias=%v: wrote outside slice %d", n, alias, i)
		}
		if alias && i == 1 {
			continue
		}
		for j, v := range got[i] {
			if i >= c.written && v != before[i][j] {
				t.Fatalf("n=%d: input %d changed at %d", n, i, j)
			}
			if i < c.written && !close64(float64(v), want[i][j], c.tolerance) {
				t.Fatalf("n=%d alias=%v: slice %d[%d] = %g, want %g", n, alias, i, j, v, want[i][j])
			}
		}
	}
}

func close64(got, want, tolerance float64) bool {
	if math.IsNaN(got) || math.IsNaN(want) || math.IsInf(want, 0) {
		return got == want || math.IsNaN(got) && math.IsNaN(want)
	}
	return math.Abs(got-want) <= tolerance*max(1, math.Abs(want))
}

// TestVectorSetsAreComplete fails when an instruction set forgets a kernel.
func TestVectorSetsAreComplete(t *testing.T) {
	eachVectorSet(t, func(t *testing.T) {
		v := reflect.ValueOf(vectors)
		for i := range v.NumField() {
			if v.Field(i).IsNil() {
				t.Errorf("no %s", v.Type().Field(i).Name)
			}
		}
	})
}

func TestVectorKernelsDoNotAllocate(t *testing.T) {
	eachVectorSet(t, func(t *testing.T) {
		for _, c := range vectorCases {
			s := vectorCaseSlices(c, 100)
			if allocations := testing.AllocsPerRun(10, func() { c.call(s) }); allocations != 0 {
				t.Errorf("%s allocates %v times", c.name, allocations)
			}
		}
	})
}

func vectorCaseSlices(c vectorCase, n int) [][]float32 {
	r := rand.New(rand.NewPCG(1, 2))
	var s [][]float32
	for _, l := range c.lengths(n) {
		x := make([]float32, l)
		randomise(r, x)
		s = append(s, x)
	}
	if c.prepare != nil {
		c.prepare(s)
	}
	return s
}

// BenchmarkVector reports the bandwidth of each kernel over rows that stay in the second-level cache.
func BenchmarkVector(b *testing.B) {
	defer func() {
		if err := Setup(); err != nil {
			b.Fatal(err)
		}
	}()
	const n = 4096
	for _, c := range vectorCases {
		for _, name := range Available() {
			if err := Use(name); err != nil {
				b.Fatal(err)
			}
			b.Run(fmt.Sprintf("%s/%s", c.name, name), func(b *testing.B) {
				s := vectorCaseSlices(c, n)
				b.SetBytes(int64(c.bytes * len(s[0])))
				for b.Loop() {
					c.call(s)
				}
			})
		}
	}
}
