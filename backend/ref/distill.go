package ref

import (
	"math"

	"nha/backend"
	"nha/tensor"
)

// logSoftmax is x - log sum exp(x).
func logSoftmax(x []float64) []float64 {
	largest, sum := math.Inf(-1), 0.0
	for _, v := range x {
		largest = max(largest, v)
	}
	for _, v := range x {
		sum += math.Exp(v - largest)
	}
	y := make([]float64, len(x))
	for i, v := range x {
		y[i] = v - largest - math.Log(sum)
	}
	return y
}

func (Backend) Distill(nll, kl, logits, teacher, targets tensor.Tensor, nllScale, klScale float64) {
	n := logits.Columns()
	for r, target := range targets.I32() {
		row := logits.F64()[r*n : (r+1)*n]
		nll.F64()[r], kl.F64()[r] = 0, 0
		if target < 0 {
			clear(row)
			continue
		}
		logp, logq := logSoftmax(row), logSoftmax(teacher.F64()[r*n:(r+1)*n])
		nll.F64()[r] = -logp[target]
		for i := range row {
			p, q := math.Exp(logp[i]), math.Exp(logq[i])
			kl.F64()[r] += q * (logq[i] - logp[i])
			row[i] = nllScale*p + klScale*(p-q)
		}
		row[target] -= nllScale
	}
}

func (Backend) DistillTop(nll, kl, logits, logq, ids, targets tensor.Tensor, nllScale, klScale float64) {
	n, k := logits.Columns(), logq.Columns()
	for r, target := range targets.I32() {
		row := logits.F64()[r*n : (r+1)*n]
		nll.F64()[r], kl.F64()[r] = 0, 0
		if target < 0 {
			clear(row)
			continue
		}
		logp := logSoftmax(row)
		listed := map[int32]float64{}
		restP, restQ := 0.0, 1.0
		for i, id := range ids.I32()[r*k : (r+1)*k] {
			l := logq.F64()[r*k+i]
			listed[id] = l
			restQ -= math.Exp(l)
			kl.F64()[r] += math.Exp(l) * (l - logp[id])
		}
		for i, l := range logp {
			if _, ok := listed[int32(i)]; !ok {
				restP += math.Exp(l)
			}
		}
		restQ = max(restQ, 0)
		if restQ > 0 {
			kl.F64()[r] += restQ * math.Log(restQ/restP)
		}
		nll.F64()[r] = -logp[target]
		for i := range row {
			p := math.Exp(logp[i])
			q := p * restQ / restP
			if l, ok := listed[int32(i)]; ok {
				q = math.Exp(l)
			}
			row[i] = nllScale*p + klScale*(p-q)
		}
		row[target] -= nllScale
	}
}

func (Backend) SquaredError(loss tensor.Tensor, dy backend.Gradient, y, target tensor.Tensor, weight, scale float64) {
	n, g := y.Columns(), begin(dy)
	clear(loss.F64())
	for i, v := range y.F64() {
		e := v - target.F64()[i]
		loss.F64()[i/n] += weight * e * e
		g[i] += 2 * scale * weight * e
	}
}
