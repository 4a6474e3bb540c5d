package kernel

import (
	"math"
	"math/rand/v2"
	"testing"
)

var (
	inf = float32(math.Inf(1))
	nan = float32(math.NaN())
)

// TestVectorTwins holds every instruction set against generic Go: 1e-6 of the largest element of each slice written, and
// of the scalar result.
func TestVectorTwins(t *testing.T) {
	run := func(c vectorCase, n int) ([][]float32, float64) {
		s := vectorCaseSlices(c, n)
		result := c.call(s)
		return s[:c.written], result
	}
	eachVectorSet(t, func(t *testing.T) {
		name := Active()
		for _, c := range vectorCases {
			for _, n := range []int{1, 7, 64, 1003} {
				got, gotResult := run(c, n)
				if err := Use("generic"); err != nil {
					t.Fatal(err)
				}
				want, wantResult := run(c, n)
				if err := Use(name); err != nil {
					t.Fatal(err)
				}
				if !close64(gotResult, wantResult, 1e-6) {
					t.Errorf("%s n=%d: result %g, generic %g", c.name, n, gotResult, wantResult)
				}
				for i := range want {
					largest := 0.0
					for _, v := range want[i] {
						if v == v {
							largest = max(largest, math.Abs(float64(v)))
						}
					}
					for j, v := range want[i] {
						if g := got[i][j]; (v == v || g == g) && !(math.Abs(float64(g)-float64(v)) <= 1e-6*largest) {
							t.Fatalf("%s n=%d: slice %d[%d] = %g, generic %g", c.name, n, i, j, g, v)
						}
					}
				}
			}
		}
	})
}

// TestGateAccuracy asks for log a and s to a relative 1e-6 wherever they are normal numbers, over logits of every size.
func TestGateAccuracy(t *testing.T) {
	var z []float32
	for x := float32(1e-8); x <= 1e4; x *= 1.003 {
		z = append(z, x, -x)
	}
	for x := float32(-120); x <= 120; x += 0.0137 {
		z = append(z, x)
	}
	eachVectorSet(t, func(t *testing.T) {
		logA, s, dz, dA := make([]float32, len(z)), make([]float32, len(z)), make([]float32, len(z)), make([]float32, len(z))
		Fill(dA, 1)
		for _, tau := range []float32{1, 8, 16, 5.5} {
			GateForward(logA, s, z, tau)
			GateBackward(dz, dA, logA, z, tau)
			for i, v := range z {
				x := float64(v)
				wantLogA := (min(x, 0) - math.Log1p(math.Exp(-math.Abs(x)))) / float64(tau)
				wantS := -math.Expm1(wantLogA)
				// a = exp(log a) carries the rounding of log a.
				wantDz := math.Exp(float64(logA[i])) * math.Exp(min(-x, 0)) / (1 + math.Exp(-math.Abs(x))) / float64(tau)
				for _, c := range []struct {
					name      string
					got       float32
					want, tol float64
				}{{"log a", logA[i], wantLogA, 1e-6}, {"s", s[i], wantS, 1e-6}, {"dz", dz[i], wantDz, 1e-6}} {
					if math.Abs(float64(c.got)-c.want) > c.tol*math.Abs(c.want)+0x1p-126 {
						t.Fatalf("z=%g tau=%g: %s = %g, want %g", v, tau, c.name, c.got, c.want)
					}
				}
			}
		}
		z30 := []float32{30}
		GateForward(logA[:1], s[:1], z30, 8)
		if want := math.Exp(-30) / 8; math.Abs(float64(s[0])/want-1) > 1e-6 {
			t.Errorf("s(30) = %g, want %g", s[0], want)
		}
	})
}

// TestActivationsAtExtremes: finite logits give finite results, and a NaN is not swallowed.
func TestActivationsAtExtremes(t *testing.T) {
	x := []float32{0, 1e4, -1e4, 88, -88, 103, -103, 3e38, -3e38, 1e-40, -1e-40}
	eachVectorSet(t, func(t *testing.T) {
		y, ones := make([]float32, len(x)), make([]float32, len(x))
		Fill(ones, 1)
		SiLU(y, x)
		for i, v := range x {
			if want := float64(v) * sigmoid(float64(v)); math.Abs(float64(y[i])-want) > 1e-6*math.Abs(want)+2e-34*max(1, math.Abs(float64(v))) {
				t.Errorf("silu(%g) = %g, want %g", v, y[i], want)
			}
		}
		SiLUBackward(y, ones, x, false)
		for i, v := range x {
			if want := siluSlope(float64(v)); !(math.Abs(float64(y[i])-want) <= 1e-6+2e-34*math.Abs(float64(v))) {
				t.Errorf("silu'(%g) = %g, want %g", v, y[i], want)
			}
		}
		for at := range 19 {
			in, out, more := make([]float32, 19), make([]float32, 19), make([]float32, 19)
			in[at] = nan
			for name, f := range map[string]func(){
				"Exp": func() { Exp(out, in) }, "Log": func() { Log(out, in) }, "SiLU": func() { SiLU(out, in) },
				"SwiGLU":      func() { SwiGLU(out, in, in) },
				"ExpSum":      func() { out[at] = ExpSum(out, in, 0) },
				"SoftmaxRow":  func() { copy(out, in); out[at] = SoftmaxRow(out) },
				"GateForward": func() { GateForward(out, more, in, 8); out[at] += more[at] - more[at] },
				"Sum":         func() { out[at] = Sum(in) },
				"LogSumExp":   func() { out[at] = LogSumExp(in) },
			} {
				f()
				if out[at] == out[at] {
					t.Errorf("%s at %d gives %g for NaN", name, at, out[at])
				}
			}
		}
	})
}

func TestSoftmaxEdges(t *testing.T) {
	eachVectorSet(t, func(t *testing.T) {
		for n := 0; n < 40; n++ {
			masked := make([]float32, n)
			Fill(masked, -inf)
			if l := LogSumExp(masked); l != -inf {
				t.Errorf("n=%d: log-sum-exp of a masked row is %g", n, l)
			}
			if l := SoftmaxRow(masked); l != -inf {
				t.Errorf("n=%d: softmax of a masked row returns %g", n, l)
			}
			for _, p := range masked {
				if p != 0 {
					t.Errorf("n=%d: a masked row has probability %g", n, p)
				}
			}
			if m := Max(masked[:0]); m != -inf {
				t.Errorf("maximum of nothing is %g", m)
			}
			if n == 0 {
				continue
			}
			// Negative rows: a masked lane past the end must not count as a 0.
			negative := make([]float32, n)
			for i := range negative {
				negative[i] = -500 - float32(i)
			}
			if m := Max(negative); m != -500 {
				t.Errorf("n=%d: maximum %g, want -500", n, m)
			}
			large := []float32{1e4, 1e4 - 1, -1e4, -inf}
			if l, want := LogSumExp(large), 1e4+math.Log1p(math.Exp(-1)); math.Abs(float64(l)-want) > 1e-3 {
				t.Errorf("log-sum-exp %g, want %g", l, want)
			}
		}
		logits := []float32{5, -3, 80, -200, -inf}
		if loss := CrossEntropyRow(append([]float32(nil), logits...), 3, 1); math.Abs(float64(loss)-280) > 1e-4 {
			t.Errorf("loss %g, want 280", loss)
		}
		if loss := CrossEntropyRow(logits, -1, 1); loss != 0 || Max(logits) != 0 || Sum(logits) != 0 {
			t.Errorf("an ignored target gives loss %g, gradient %v", loss, logits)
		}
	})
}

// TestSumSquaresKeepsSmallTerms: float32 accumulation would lose every term after the first.
func TestSumSquaresKeepsSmallTerms(t *testing.T) {
	x := make([]float32, 1<<16)
	Fill(x, 1)
	x[0] = 1 << 14
	eachVectorSet(t, func(t *testing.T) {
		if got, want := SumSquares(x), float64(1<<28+len(x)-1); got != want {
			t.Errorf("got %v, want %v", got, want)
		}
	})
}

// TestRotateInverse: turning and turning back is the identity, for every even length.
func TestRotateInverse(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	eachVectorSet(t, func(t *testing.T) {
		for k := 0; k <= 160; k += 2 {
			x, cos, sin := make([]float32, k), make([]float32, k/2), make([]float32, k/2)
			randomise(r, x)
			for i := range cos {
				s, c := math.Sincos(r.Float64() * 7)
				cos[i], sin[i] = float32(c), float32(s)
			}
			y := append([]float32(nil), x...)
			Rotate(y, y, cos, sin, false)
			Rotate(y, y, cos, sin, true)
			for i := range x {
				if math.Abs(float64(x[i]-y[i])) > 2e-6 {
					t.Fatalf("K=%d: %g comes back as %g", k, x[i], y[i])
				}
			}
		}
	})
}

// TestVectorKernelsInPlace: outputs that the documentation lets be inputs give what separate ones give.
func TestVectorKernelsInPlace(t *testing.T) {
	const n = 77
	r := rand.New(rand.NewPCG(5, 6))
	fresh := func() []float32 { x := make([]float32, n); randomise(r, x); return x }
	dy, gate, up, w, zeros := fresh(), fresh(), fresh(), fresh(), make([]float32, n)
	rstd := []float32{0.7}
	clone := func(x []float32) []float32 { return append([]float32(nil), x...) }
	same := func(t *testing.T, name string, got, want []float32) {
		for i := range want {
			if got[i] != want[i] {
				t.Fatalf("%s: [%d] is %g in place, %g apart", name, i, got[i], want[i])
			}
		}
	}
	eachVectorSet(t, func(t *testing.T) {
		a, b := clone(zeros), clone(zeros)
		SwiGLUBackward(a, b, dy, gate, up)
		c, d := clone(gate), clone(up)
		SwiGLUBackward(c, d, dy, c, d)
		same(t, "dgate over gate", c, a)
		same(t, "dup over up", d, b)

		a, b = clone(zeros), clone(zeros)
		RMSNormBackward(a, b, dy, gate, w, rstd, 1, n, false)
		c, d = clone(dy), clone(zeros)
		RMSNormBackward(c, d, c, gate, w, rstd, 1, n, false)
		same(t, "dx over dy", c, a)
		same(t, "dw", d, b)

		a, b = clone(zeros), clone(zeros)
		GateForward(a, b, gate, 8)
		c, d = clone(gate), clone(gate)
		GateForward(c, clone(zeros), c, 8)
		GateForward(clone(zeros), d, d, 8)
		same(t, "log a over z", c, a)
		same(t, "s over z", d, b)
	})
}
