package kernel

import "math"

// Losses of one row against a teacher, p = softmax(logits), q = softmax(teacher):
//
//	nll = -log p[target],   kl = sum q (log q - log p),   dx = a (p - onehot(target)) + b (p - q)
//
// Differences of logits are taken before sums, so that a divergence near 0 keeps its digits.

// DistillRow replaces logits by dx and returns both losses. scratch has the row's length. A negative target: zeros and 0.
func DistillRow(logits, teacher, scratch []float32, target int32, a, b float32) (nll, kl float32) {
	if target < 0 {
		vectors.fill(logits, 0)
		return 0, 0
	}
	m, mt := vectors.max(logits), vectors.max(teacher)
	own := float64(logits[target] - m)
	sumQ := float64(vectors.expSum(scratch, teacher, mt))
	shift := mt - m
	cross := 0.0 // sum q (teacher - logits), both relative to their maxima
	for i, e := range scratch {
		cross += float64(e) * float64(teacher[i]-logits[i]-shift)
	}
	others, sumP := expOthers(logits, target, m, own)
	kl = float32(cross/sumQ + math.Log(sumP/sumQ))
	p, q := (float64(a)+float64(b))/sumP, float64(b)/sumQ
	vectors.scale(logits, float32(p))
	for i, e := range scratch {
		logits[i] -= float32(q) * e
	}
	// a (p - 1) + b (p - q) at the target, whose p - 1 is -others / sum
	logits[target] = float32(-float64(a)*others/sumP + float64(b)*(math.Exp(own)/sumP-float64(scratch[target])/sumQ))
	return nllOf(own, others, sumP), kl
}

// DistillTopRow is DistillRow where the teacher is known by the log-probabilities of the words ids alone; the rest of its
// probability lies on the other words in the student's proportions.
func DistillTopRow(logits, logq []float32, ids []int32, target int32, a, b float32) (nll, kl float32) {
	if target < 0 {
		vectors.fill(logits, 0)
		return 0, 0
	}
	m := vectors.max(logits)
	own := float64(logits[target] - m)
	restQ, cross := 1.0, 0.0 // cross: sum q (log q - logit)
	for i, id := range ids {
		q := math.Exp(float64(logq[i]))
		restQ -= q
		cross += q * (float64(logq[i]) - float64(logits[id]-m))
	}
	restQ = max(restQ, 0)
	others, sum := expOthers(logits, target, m, own)
	var room [128]float32
	listed := room[:0]
	restP := math.Exp(own)
	for _, id := range ids {
		listed = append(listed, logits[id])
		logits[id] = 0
		if id == target {
			restP = 0
		}
	}
	restP = max(restP+float64(vectors.sum(logits)), 1e-30)
	ratio := restQ / restP * sum // q over p of every word that is not listed
	divergence := cross + (1-restQ)*math.Log(sum)
	if restQ > 0 {
		divergence += restQ * math.Log(ratio)
	}
	toTarget := float64(b) * math.Exp(own) / sum * (1 - ratio)
	vectors.scale(logits, float32((float64(a)+float64(b)*(1-ratio))/sum))
	for i, id := range ids {
		q := math.Exp(float64(logq[i]))
		logits[id] = float32((float64(a)+float64(b))*float64(listed[i])/sum - float64(b)*q)
		if id == target {
			toTarget = float64(b) * (math.Exp(own)/sum - q)
		}
	}
	logits[target] = float32(toTarget - float64(a)*others/sum)
	return nllOf(own, others, sum), float32(divergence)
}

// expOthers replaces the row by exp(x - m), with 0 at the target, whose logit less m is own; it returns the sum without and with the target.
func expOthers(logits []float32, target int32, m float32, own float64) (others, sum float64) {
	logits[target] = negativeInfinity
	others = float64(vectors.expSum(logits, logits, m))
	return others, others + math.Exp(own)
}

// nllOf is log(sum) - own, exact where the target has nearly all of the sum.
func nllOf(own, others, sum float64) float32 {
	if e := math.Exp(own); e > others {
		return float32(math.Log1p(others / e))
	}
	return float32(math.Log(sum) - own)
}

// SquaredErrorRow returns weight sum (y - target)^2 and adds or writes the gradient of scale times that to dy.
func SquaredErrorRow(dy, y, target []float32, weight, scale float32, add bool) float32 {
	sum := 0.0
	dy, target = dy[:len(y)], target[:len(y)]
	for i, v := range y {
		e := v - target[i]
		sum += float64(e) * float64(e)
		if g := 2 * scale * weight * e; add {
			dy[i] += g
		} else {
			dy[i] = g
		}
	}
	return float32(float64(weight) * sum)
}
