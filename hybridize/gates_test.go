package hybridize

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

func TestKeyRows(t *testing.T) {
	k := []float32{1, 10, 2, 20, 3, 30, 4, 40} // one head of 4 rows, hidden 2
	for slots, want := range map[int][]float32{
		4: k,
		2: {1.5, 15, 3.5, 35},
		8: {1, 10, 1, 10, 2, 20, 2, 20, 3, 30, 3, 30, 4, 40, 4, 40},
		3: {1, 10, 2, 20, 3.5, 35},
	} {
		if got := keyRows(k, 1, 4, slots, 2); !slices.Equal(got, want) {
			t.Errorf("%d slots: %v, want %v", slots, got, want)
		}
	}
	two := append(slices.Clone(k), 5, 50, 6, 60, 7, 70, 8, 80)
	if got := keyRows(two, 2, 4, 2, 2); !slices.Equal(got, []float32{1.5, 15, 3.5, 35, 5.5, 55, 7.5, 75}) {
		t.Errorf("two heads: %v", got)
	}
}

// TestSpread: at the mean input the gate logit of a slot is its time scale, whatever the keys.
func TestSpread(t *testing.T) {
	const heads, headDim, slots, hidden = 2, 8, 4, 16
	r := rand.New(rand.NewPCG(1, 2))
	k, mean := make([]float32, heads*headDim*hidden), make([]float32, hidden)
	for i := range k {
		k[i] = float32(r.NormFloat64())
	}
	for i := range mean {
		mean[i] = float32(r.NormFloat64())
	}
	rows := gates(GateSpread, k, mean, heads, headDim, slots, hidden, 0, 0)
	for i := range heads * slots {
		z := 0.0
		for j, m := range mean {
			z += float64(rows[i*hidden+j]) * float64(m)
		}
		if want := []float64{-2, 1, 4, 7}[i%slots]; math.Abs(z-want) > 1e-5 {
			t.Errorf("slot %d: gate logit %v at the mean input, want %v", i, z, want)
		}
	}
	keys := keyRows(k, heads, headDim, slots, hidden)
	if slices.Equal(keys, rows) || !slices.Equal(keys, gates(GateKeys, k, mean, heads, headDim, slots, hidden, 0, 0)) {
		t.Error("keys alone")
	}
	a, b := gates(GateRandom, k, mean, heads, headDim, slots, hidden, 7, 0), gates(GateRandom, k, mean, heads, headDim, slots, hidden, 7, 1)
	if slices.Equal(a, b) || len(a) != len(rows) {
		t.Error("random gates of two layers are the same")
	}
}
