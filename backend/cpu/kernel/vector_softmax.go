package kernel

import "math"

// Softmax, log-sum-exp and cross-entropy of one row, shifted by its maximum m:
//
//	lse = m + log sum exp(x - m),   p = exp(x - m) / sum exp(x - m),   loss = lse - x[target],   dx = p - onehot(target)

// ExpSum writes exp(x - shift) to dst, over len(x), and returns the sum of what it wrote.
func ExpSum(dst, x []float32, shift float32) float32 { return vectors.expSum(dst[:len(x)], x, shift) }

// LogSumExp is log sum exp(x): -Inf for an empty or wholly masked (-Inf) row.
func LogSumExp(x []float32) float32 {
	m := vectors.max(x)
	if masked(x, m) {
		return negativeInfinity
	}
	return m + float32(math.Log(float64(vectors.sumExp(x, m))))
}

// SoftmaxRow turns the logits x into probabilities in place and returns their log-sum-exp. A wholly masked (-Inf) row becomes
// zeros, with -Inf.
func SoftmaxRow(x []float32) float32 {
	m := vectors.max(x)
	if masked(x, m) {
		vectors.fill(x, 0)
		return negativeInfinity
	}
	sum := vectors.expSum(x, x, m)
	vectors.scale(x, 1/sum)
	return m + float32(math.Log(float64(sum)))
}

// CrossEntropyRow replaces logits by scale (softmax(logits) - onehot(target)), the gradient of scale times the loss, and returns
// the loss -log p[target]. A negative target is one to ignore: zeros, loss 0.
//
// The target stands apart from the sum of the others: where p[target] is near 1, lse - x[target] and p - 1 would cancel, while
// loss = log1p(others / e^x[target]) and p - 1 = -others / sum keep their digits.
func CrossEntropyRow(logits []float32, target int32, scale float32) (loss float32) {
	if target < 0 {
		vectors.fill(logits, 0)
		return 0
	}
	m := vectors.max(logits)
	picked := float64(logits[target] - m)
	logits[target] = negativeInfinity
	others := vectors.expSum(logits, logits, m)
	own := math.Exp(picked)
	sum := float64(others) + own
	vectors.scale(logits, float32(float64(scale)/sum))
	logits[target] = float32(-float64(scale) * float64(others) / sum)
	if own > float64(others) {
		return float32(math.Log1p(float64(others) / own))
	}
	return float32(math.Log(sum) - picked)
}

// masked tells a row of nothing but -Inf from one with a NaN, whose maximum m is -Inf too.
func masked(x []float32, m float32) bool {
	if m != negativeInfinity {
		return false
	}
	sum := vectors.sum(x)
	return sum == sum
}

func expSumGeneric(dst, x []float32, shift float32) float32 {
	var s [4]float32
	dst = dst[:len(x)]
	for i, v := range x {
		e := exp32(v - shift)
		dst[i] = e
		s[i&3] += e
	}
	return (s[0] + s[1]) + (s[2] + s[3])
}

func sumExpGeneric(x []float32, shift float32) float32 {
	var s [4]float32
	for i, v := range x {
		s[i&3] += exp32(v - shift)
	}
	return (s[0] + s[1]) + (s[2] + s[3])
}
