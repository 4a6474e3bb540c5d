package nn

import (
	"nha/autograd"
	"nha/tensor"
)

// Experts is a mixture of SwiGLUs (Shazeer and others 2017): a router's softmax chooses k of them for every token, whose outputs are added
// with its weights. Only chosen experts are computed, each on all its tokens at once.
type Experts struct {
	router            Linear
	gates, ups, downs []*autograd.Value
	k                 int
	normalize         bool
}

// NewExperts makes a mixture of experts without biases. Of every token k are computed; normalize divides their weights by the sum.
func NewExperts(router Linear, experts []SwiGLU, k int, normalize bool) *Experts {
	m := &Experts{router: router, k: k, normalize: normalize}
	for _, e := range experts {
		m.gates, m.ups, m.downs = append(m.gates, e.Gate.Weight), append(m.ups, e.Up.Weight), append(m.downs, e.Down.Weight)
	}
	return m
}

// AddTo is residual + mixture(x), [N, hidden].
func (m *Experts) AddTo(t *autograd.Tape, residual, x *autograd.Value) *autograd.Value {
	weights, ids := t.Route(m.router.Forward(t, x), m.k, m.normalize)
	rows, places, counts := m.sort(t, ids)
	gathered := t.Embed(x, rows)
	h := t.SwiGLU(t.LinearEach(gathered, m.gates, counts), t.LinearEach(gathered, m.ups, counts))
	return t.Combine(residual, t.LinearEach(h, m.downs, counts), weights, places)
}

// sort brings the choices ids [N, k] into the experts' order: the token of every row, where each choice went, and how many rows each
// expert has.
func (m *Experts) sort(t *autograd.Tape, ids *autograd.Value) (rows, places *autograd.Value, counts []int) {
	chosen := tensor.New(tensor.I32, ids.Shape)
	t.Backend().Read(chosen, ids.Tensor)
	counts = make([]int, len(m.gates))
	for _, e := range chosen.I32() {
		counts[e]++
	}
	next, total := make([]int32, len(counts)), int32(0)
	for e, n := range counts {
		next[e] = total
		total += int32(n)
	}
	order := make([]int32, total)
	for i, e := range chosen.I32() {
		order[next[e]] = int32(i / m.k)
		chosen.I32()[i] = next[e]
		next[e]++
	}
	return t.Input(tensor.FromI32(order, len(order))), t.Input(chosen), counts
}
