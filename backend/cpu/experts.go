package cpu

import (
	"math"

	"nha/backend"
	"nha/backend/cpu/kernel"
	"nha/tensor"
)

// expertTask is one op of a mixture of experts over a range of tokens.
type expertTask struct {
	kind                 expertKind
	parts, rows          int
	k, n                 int // experts of a token; columns
	normalize, add, also bool
	ids                  []int32
	a, b, c, d, e        []float32
}

type expertKind uint8

const (
	expertRoute expertKind = iota
	expertRouteBackward
	expertCombine
	expertCombineBackward
)

// Do is part i of the tokens.
func (t *expertTask) Do(_, i int) {
	for r := t.rows * i / t.parts; r < t.rows*(i+1)/t.parts; r++ {
		from, to := r*t.k, (r+1)*t.k
		switch ids := t.ids[from:to]; t.kind {
		case expertRoute:
			route(t.a[from:to], ids, t.b[r*t.n:(r+1)*t.n], t.normalize)
		case expertRouteBackward:
			routeBackward(t.a[r*t.n:(r+1)*t.n], t.b[from:to], t.c[from:to], ids, t.d[r*t.n:(r+1)*t.n], t.normalize, t.add)
		case expertCombine:
			y := t.a[r*t.n : (r+1)*t.n]
			if !t.add {
				clear(y)
			}
			for j, place := range ids {
				kernel.Axpy(y, t.c[from+j], t.b[int(place)*t.n:(int(place)+1)*t.n])
			}
		case expertCombineBackward:
			dy := t.c[r*t.n : (r+1)*t.n]
			for j, place := range ids {
				x, y := int(place)*t.n, (int(place)+1)*t.n
				if !t.add {
					clear(t.a[x:y])
				}
				kernel.Axpy(t.a[x:y], t.e[from+j], dy)
				if !t.also {
					t.b[from+j] = 0
				}
				t.b[from+j] += kernel.Dot(dy, t.d[x:y])
			}
		}
	}
}

// route takes the largest logit, then the largest of those that come after it in order, and so on. A row with NaN, which is after
// nothing, gets experts all the same.
func route(weights []float32, ids []int32, logits []float32, normalize bool) {
	last := -1
	for j := range ids {
		best := -1
		for i, v := range logits {
			after := last < 0 || v < logits[last] || v == logits[last] && i > last
			if after && (best < 0 || v > logits[best]) {
				best = i
			}
		}
		if best < 0 {
			best = j
		}
		ids[j], last = int32(best), best
	}
	largest, sum := logits[ids[0]], 0.0
	for j, i := range ids {
		e := math.Exp(float64(logits[i] - largest))
		weights[j] = float32(e)
		sum += e
	}
	if !normalize {
		sum = 0
		for _, v := range logits {
			sum += math.Exp(float64(v - largest))
		}
	}
	kernel.Scale(weights, float32(1/sum))
}

func routeBackward(dlogits, dweights, weights []float32, ids []int32, logits []float32, normalize, add bool) {
	g := kernel.Dot(weights, dweights)
	if !add {
		clear(dlogits)
	}
	if !normalize {
		largest, sum := logits[ids[0]], 0.0
		for _, v := range logits {
			sum += math.Exp(float64(v - largest))
		}
		for i, v := range logits {
			dlogits[i] -= float32(math.Exp(float64(v-largest))/sum) * g
		}
	}
	for j, i := range ids {
		if normalize {
			dlogits[i] -= weights[j] * g
		}
		dlogits[i] += weights[j] * dweights[j]
	}
}

func (b *Backend) runExperts(t expertTask, work int) {
	t.parts = b.partsFor(t.rows * work)
	b.experts = t
	b.pool.Run(t.parts, &b.experts)
	b.experts = expertTask{}
}

func (b *Backend) Route(weights, ids, logits tensor.Tensor, normalize bool) {
	k, n := weights.Columns(), logits.Columns()
	b.runExperts(expertTask{kind: expertRoute, rows: logits.Rows(), k: k, n: n, normalize: normalize, ids: ids.I32(), a: weights.F32(), b: logits.F32()}, k*n)
}

func (b *Backend) RouteBackward(dlogits backend.Gradient, dweights, weights, ids, logits tensor.Tensor, normalize bool) {
	k, n := weights.Columns(), logits.Columns()
	b.runExperts(expertTask{kind: expertRouteBackward, rows: logits.Rows(), k: k, n: n, normalize: normalize, add: dlogits.Add, ids: ids.I32(), a: dlogits.F32(),
		b: dweights.F32(), c: weights.F32(), d: logits.F32()}, 4*n)
}

func (b *Backend) Combine(y backend.Gradient, x, weights, places tensor.Tensor) {
	k, n := weights.Columns(), x.Columns()
	b.runExperts(expertTask{kind: expertCombine, rows: y.Rows(), k: k, n: n, add: y.Add, ids: places.I32(), a: y.F32(), b: x.F32(), c: weights.F32()}, k*n)
}

// CombineBackward: every row of x belongs to one token, so tokens may go side by side.
func (b *Backend) CombineBackward(dx, dweights backend.Gradient, dy, x, weights, places tensor.Tensor) {
	k, n := weights.Columns(), x.Columns()
	b.runExperts(expertTask{kind: expertCombineBackward, rows: dy.Rows(), k: k, n: n, add: dx.Add, also: dweights.Add, ids: places.I32(), a: dx.F32(), b: dweights.F32(),
		c: dy.F32(), d: x.F32(), e: weights.F32()}, k*n)
}
