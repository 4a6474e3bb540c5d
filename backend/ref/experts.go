package ref

import (
	"math"
	"slices"

	"nha/backend"
	"nha/tensor"
)

// softmax is exp(x - max) over its sum.
func softmax(x []float64) []float64 {
	p, largest, sum := make([]float64, len(x)), slices.Max(x), 0.0
	for i, v := range x {
		p[i] = math.Exp(v - largest)
		sum += p[i]
	}
	for i := range p {
		p[i] /= sum
	}
	return p
}

// Route sorts every row.
func (Backend) Route(weights, ids, logits tensor.Tensor, normalize bool) {
	k, n := weights.Columns(), logits.Columns()
	for r := range logits.Rows() {
		row, order := logits.F64()[r*n:(r+1)*n], make([]int, n)
		for i := range order {
			order[i] = i
		}
		slices.SortStableFunc(order, func(a, b int) int {
			switch {
			case row[a] > row[b]:
				return -1
			case row[a] < row[b]:
				return 1
			}
			return 0
		})
		p, sum := softmax(row), 1.0
		if normalize {
			sum = 0
			for _, i := range order[:k] {
				sum += p[i]
			}
		}
		for j, i := range order[:k] {
			ids.I32()[r*k+j], weights.F64()[r*k+j] = int32(i), p[i]/sum
		}
	}
}

// RouteBackward: with g = sum_j w_j dw_j, dlogit_i = p_i (dw_i - g) for the softmax p over all, dw_i = 0 where i was not chosen; over the
// chosen ones where they are normalised.
func (Backend) RouteBackward(dlogits backend.Gradient, dweights, weights, ids, logits tensor.Tensor, normalize bool) {
	d, k, n := begin(dlogits), weights.Columns(), logits.Columns()
	for r := range logits.Rows() {
		w, dw, g := weights.F64()[r*k:(r+1)*k], dweights.F64()[r*k:(r+1)*k], 0.0
		for j := range w {
			g += w[j] * dw[j]
		}
		if !normalize {
			for i, p := range softmax(logits.F64()[r*n : (r+1)*n]) {
				d[r*n+i] -= p * g
			}
		}
		for j, i := range ids.I32()[r*k : (r+1)*k] {
			if normalize {
				d[r*n+int(i)] -= w[j] * g
			}
			d[r*n+int(i)] += w[j] * dw[j]
		}
	}
}

func (Backend) Combine(y backend.Gradient, x, weights, places tensor.Tensor) {
	sum, k, n := begin(y), weights.Columns(), x.Columns()
	for i, place := range places.I32() {
		for c := range n {
			sum[i/k*n+c] += weights.F64()[i] * x.F64()[int(place)*n+c]
		}
	}
}

func (Backend) CombineBackward(dx, dweights backend.Gradient, dy, x, weights, places tensor.Tensor) {
	d, dw, k, n := begin(dx), begin(dweights), weights.Columns(), x.Columns()
	for i, place := range places.I32() {
		for c := range n {
			g := dy.F64()[i/k*n+c]
			d[int(place)*n+c] += weights.F64()[i] * g
			dw[i] += g * x.F64()[int(place)*n+c]
		}
	}
}
