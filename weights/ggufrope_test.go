package weights

import (
	"maps"
	"math"
	"testing"

	"nha/tensor"
)

// divisors are a rule's, in float32 as llama.cpp's conversion computes them.
func divisors(theta float64, headDim int, factor, low, high, context float64) []float32 {
	list := make([]float32, headDim/2)
	for i := range list {
		frequency := 1 / float32(math.Pow(theta, 2*float64(i)/float64(headDim)))
		wavelength := 2 * math.Pi / float64(frequency)
		smooth := min(1, max(0, (context/wavelength-low)/(high-low)))
		list[i] = float32(1 / ((1-smooth)/factor + smooth))
	}
	return list
}

func ropeFile(list []float32) *GGUF {
	t := tensor.FromF32(list, len(list))
	return &GGUF{data: t.Bytes(), factors: entry{dtype: tensor.F32, shape: t.Shape, to: len(t.Bytes())}}
}

// TestLlama3: the rules of the published models, and of tiny ones, are found again from the divisors alone.
func TestLlama3(t *testing.T) {
	for _, c := range []struct {
		name                       string
		theta                      float64
		headDim                    int
		factor, low, high, context float64
	}{
		{"Llama 3.1", 500000, 128, 8, 1, 4, 8192}, {"Llama 3.2 1B", 500000, 64, 32, 1, 4, 8192}, {"high 8", 500000, 128, 16, 1, 8, 4096},
		{"low 2, which is the same as 1 with half of the rest", 500000, 128, 8, 2, 8, 8192}, {"one divisor between", 500000, 16, 8, 1, 4, 64},
		{"none between", 500000, 8, 8, 1, 4, 64},
	} {
		got, err := ropeFile(divisors(c.theta, c.headDim, c.factor, c.low, c.high, c.context)).llama3(c.theta, c.headDim)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		want := map[string]any{"rope_type": "llama3", "factor": c.factor, "low_freq_factor": 1.0, "high_freq_factor": c.high / c.low, "original_max_position_embeddings": int(c.context / c.low)}
		if c.name == "none between" { // any context that parts them alike will do
			want["original_max_position_embeddings"] = got["original_max_position_embeddings"]
		}
		if !maps.Equal(got, want) {
			t.Errorf("%s: %v, want %v", c.name, got, want)
		}
	}
	ones := []float32{1, 1, 1, 1}
	if got, err := ropeFile(ones).llama3(10000, 8); got != nil || err != nil {
		t.Errorf("divisors of 1: %v, %v", got, err)
	}
	for name, list := range map[string][]float32{"a wave": {1, 2, 1, 8}, "below one": {1, 0.5, 2, 2}, "not a number": {1, float32(math.NaN()), 2, 2}, "too few": {1, 2}} {
		if got, err := ropeFile(list).llama3(10000, 8); err == nil {
			t.Errorf("%s: %v", name, got)
		}
	}
}
