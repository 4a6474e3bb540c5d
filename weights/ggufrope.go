package weights

import (
	"errors"
	"fmt"
	"math"

	"nha/tensor"
)

// Llama 3's rotary scaling. A GGUF file keeps what it comes to, a divisor f_i of every frequency theta^(-2i/D), Hugging Face
// the rule: with the wavelength l = 2 pi theta^(2i/D), context N, factors F, L (low) and H (high)
//
//	f = 1         for l < N/H
//	f = F         for l > N/L
//	1/f = (1-s)/F + s,   s = (N/l - L) / (H - L)   between
//
// llama3 finds the rule from the divisors. N, L and H count in ratios alone, and L is 1 in every published model; between the bounds
// s is a straight line in 1/l, which gives N and H. The rule found must give all divisors again.

// llama3 is the "rope_scaling" of the file's divisors; nil when all are 1.
func (g *GGUF) llama3(theta float64, headDim int) (map[string]any, error) {
	t := g.view(g.factors)
	if t.DType != tensor.F32 || t.Shape != tensor.Of(headDim/2) {
		return nil, fmt.Errorf("is %v %v, want F32 [%d]", t.DType, t.Shape, headDim/2)
	}
	divisors := t.F32()
	wavelengths := make([]float64, len(divisors))
	most := 1.0
	for i, f := range divisors {
		if !(f >= 1) || math.IsInf(float64(f), 0) {
			return nil, fmt.Errorf("divisor %d is %v: must be at least 1", i, f)
		}
		most = max(most, float64(f))
		wavelengths[i] = 2 * math.Pi * math.Pow(theta, 2*float64(i)/float64(headDim))
	}
	if most == 1 {
		return nil, nil
	}
	rule := llama3Rule{factor: most}
	for _, guess := range guessRules(divisors, wavelengths, most) {
		rule.context, rule.high = guess.context, guess.high
		if rule.gives(divisors, wavelengths) {
			return map[string]any{"rope_type": "llama3", "factor": rule.factor, "low_freq_factor": 1.0, "high_freq_factor": rule.high,
				"original_max_position_embeddings": int(rule.context)}, nil
		}
	}
	return nil, errors.New("its divisors do not follow llama3's rule: this rotary embedding is not supported")
}

// llama3Rule has L = 1.
type llama3Rule struct{ factor, high, context float64 }

func (r llama3Rule) gives(divisors []float32, wavelengths []float64) bool {
	if !(r.high > 1) || !(r.context >= 1) || r.context > 1<<30 {
		return false
	}
	for i, l := range wavelengths {
		f := 1.0
		switch s := (r.context/l - 1) / (r.high - 1); {
		case l > r.context:
			f = r.factor
		case l >= r.context/r.high:
			f = 1 / ((1-s)/r.factor + s)
		}
		if math.Abs(f-float64(divisors[i])) > 2e-6*f { // the files' are computed in float32
			return false
		}
	}
	return true
}

// guessRules are the rules to try. Two divisors between the bounds determine H and N; with fewer, a small model, H is what
// every published model has, 4, and whatever N gives the same divisors is the same function.
func guessRules(divisors []float32, wavelengths []float64, factor float64) []llama3Rule {
	const usual = 4
	var x, s []float64       // 1/l and s of the divisors between
	below, above := 0.0, 0.0 // the longest wavelength with divisor 1, the shortest with F
	for i, f := range divisors {
		switch {
		case f == 1:
			below = wavelengths[i]
		case float64(f) == factor:
			if above == 0 {
				above = wavelengths[i]
			}
		default:
			x, s = append(x, 1/wavelengths[i]), append(s, (1/float64(f)-1/factor)/(1-1/factor))
		}
	}
	rule := func(high, context float64) llama3Rule {
		return llama3Rule{high: math.Round(high*1000) / 1000, context: math.Round(context)}
	}
	switch n := len(x) - 1; {
	case n < 0:
		return []llama3Rule{rule(usual, math.Sqrt(usual*below*above))}
	case n == 0:
		return []llama3Rule{rule(usual, (1+s[0]*(usual-1))/x[0])}
	default: // s = (N/l - 1) / (H - 1) = slope/l + at
		slope := (s[n] - s[0]) / (x[n] - x[0])
		high := 1 - 1/(s[0]-slope*x[0])
		return []llama3Rule{rule(high, slope*(high-1)), rule(usual, (1+s[0]*(usual-1))/x[0])}
	}
}
