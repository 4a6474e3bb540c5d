package kernel

import (
	"math"
	"testing"
)

// ulps is the distance of got from want in units of the last place of want in float32; denormals have the unit of the
// smallest normal number.
func ulps(got float32, want float64) float64 {
	if float64(got) == want || math.IsNaN(float64(got)) && math.IsNaN(want) {
		return 0
	}
	if rounded := float32(want); math.IsInf(float64(rounded), 0) || math.IsInf(float64(got), 0) {
		if rounded == got {
			return 0
		}
		return math.Inf(1)
	}
	_, e := math.Frexp(want)
	unit := math.Ldexp(1, max(e-24, -149))
	return math.Abs(float64(got)-want) / unit
}

// sweep walks every float32 bit pattern by a stride that is odd and prime, both signs, infinities and NaNs, in rows.
func sweep(t *testing.T, stride uint32, visit func(x []float32)) {
	t.Helper()
	row := make([]float32, 0, 4096)
	for b := uint64(0); b < 1<<32; b += uint64(stride) {
		row = append(row, math.Float32frombits(uint32(b)))
		if len(row) == cap(row) {
			visit(row)
			row = row[:0]
		}
	}
	row = append(row, 0, float32(math.Copysign(0, -1)), 1, -1, negativeInfinity, -negativeInfinity, float32(math.NaN()),
		math.MaxFloat32, -math.MaxFloat32, math.SmallestNonzeroFloat32, 0x1p-126, 88.72283, 88.72284, -103.97208, -103.97209, -87.33655, 0.99999994, 1.0000001)
	visit(row)
}

func testAccuracy(t *testing.T, kernel func(dst, x []float32), reference func(float64) float64, bound float64) {
	stride := uint32(1009)
	if testing.Short() {
		stride = 104729
	}
	eachVectorSet(t, func(t *testing.T) {
		got := make([]float32, 4096+32)
		worst, at := 0.0, float32(0)
		sweep(t, stride, func(x []float32) {
			kernel(got, x)
			for i, v := range x {
				if d := ulps(got[i], reference(float64(v))); d > worst {
					worst, at = d, v
				}
			}
		})
		t.Logf("worst %.3f ulp at %g (%#08x)", worst, at, math.Float32bits(at))
		if worst > bound {
			t.Errorf("%.3f ulp at %g, more than %g", worst, at, bound)
		}
	})
}

func TestExpWithinTwoUlp(t *testing.T) { testAccuracy(t, Exp, math.Exp, 2) }

func TestLogWithinTwoUlp(t *testing.T) { testAccuracy(t, Log, math.Log, 2) }
