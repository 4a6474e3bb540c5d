package attentiontest

import (
	"math"
	"math/rand/v2"

	"nha/attention"
	"nha/tensor"
)

// gates is how gate logits are drawn: mean and standard deviation.
type gates struct{ mean, deviation float64 }

var (
	softGates   = gates{0, 2}
	strongGates = gates{8, 0.5}  // memories of 10^4 tokens
	hardGates   = gates{-60, 1}  // forgets all but the last token
	wildGates   = gates{-10, 40} // from one to the other within a token
)

// problem is the inputs of a call: random numbers that the operator's element type holds exactly.
type problem struct {
	config     *attention.Config
	lengths    []int
	q, k, v, z tensor.Tensor
	do         tensor.Tensor
	initial    []*attention.State // nil: every sequence starts empty
	dFinal     []*attention.State // nil: 0
	wantStates bool
}

// newProblem draws a problem for sequences that start at the given positions (nil: all empty).
func newProblem(seed uint64, d tensor.DType, c *attention.Config, lengths, positions []int, z gates) *problem {
	rng := rand.New(rand.NewPCG(seed, 1))
	n := 0
	for _, l := range lengths {
		n += l
	}
	p := &problem{config: c, lengths: lengths, wantStates: true}
	p.q = random(rng, d, 0, 1, n, c.QueryHeads*c.KeyDim)
	p.k = random(rng, d, 0, 1, n, c.KVHeads*c.KeyDim)
	p.v = random(rng, d, 0, 1, n, c.KVHeads*c.ValueDim)
	p.do = random(rng, d, 0, 1, n, c.QueryHeads*c.ValueDim)
	if c.Slots > 0 {
		p.z = random(rng, d, z.mean, z.deviation, n, c.KVHeads*c.Slots)
	}
	for i, l := range lengths {
		if positions != nil {
			p.initial = append(p.initial, randomState(rng, d, c, positions[i], z))
			l += positions[i]
		}
		p.dFinal = append(p.dFinal, randomGradient(rng, d, c, l))
	}
	return p
}

func random(rng *rand.Rand, d tensor.DType, mean, deviation float64, dims ...int) tensor.Tensor {
	t := tensor.New(tensor.F64, tensor.Of(dims...))
	fill(rng, d, t, mean, deviation)
	return t
}

// fill draws normal numbers and rounds them to type d.
func fill(rng *rand.Rand, d tensor.DType, t tensor.Tensor, mean, deviation float64) {
	if !t.Present() {
		return
	}
	rounded := tensor.New(d, t.Shape)
	for i := range t.Len() {
		rounded.SetValue(i, mean+deviation*rng.NormFloat64())
	}
	tensor.Convert(t, rounded)
}

// randomState is a state that tokens could have left: slots are empty until the first token has entered them.
func randomState(rng *rand.Rand, d tensor.DType, c *attention.Config, position int, z gates) *attention.State {
	s := randomGradient(rng, d, c, position)
	if position < c.Window && c.Slots > 0 {
		clear(s.SlotKeys.F64())
		clear(s.SlotValues.F64())
	}
	if s.LogGates.Present() {
		fill(rng, d, s.LogGates, z.mean, z.deviation)
		log := s.LogGates.F64()
		for i, logit := range log {
			log[i] = float64(float32((min(logit, 0) - math.Log1p(math.Exp(-math.Abs(logit)))) / c.GateNormalizer))
		}
	}
	return s
}

// randomGradient is the gradient of a state at a position. Its ring starts in some row in the middle.
func randomGradient(rng *rand.Rand, d tensor.DType, c *attention.Config, position int) *attention.State {
	s := attention.NewState(c, tensor.F64)
	s.Reserve(c, position)
	s.Position, s.Count = position, min(c.Window, position)
	if s.Capacity() > 0 {
		s.Start = rng.IntN(s.Capacity())
	}
	for _, t := range []tensor.Tensor{s.SlotKeys, s.SlotValues, s.Keys, s.Values, s.LogGates} {
		fill(rng, d, t, 0, 1)
	}
	return s
}

// call is the problem as a call in element type d, with room for every result: NaN, and states of something else, which have to
// be overwritten.
func (p *problem) call(d tensor.DType) (*attention.Call, *attention.Gradients) {
	like := func(t tensor.Tensor) tensor.Tensor {
		if !t.Present() {
			return t
		}
		return tensor.New(d, t.Shape)
	}
	result := func(t tensor.Tensor) tensor.Tensor {
		t = like(t)
		if t.Present() {
			for i := range t.Len() {
				t.SetValue(i, nan)
			}
		}
		return t
	}
	other := func(i int) *attention.State {
		rng := rand.New(rand.NewPCG(uint64(i), 2))
		return randomGradient(rng, d, p.config, 1+rng.IntN(100)).ConvertTo(d)
	}
	input := func(t tensor.Tensor) tensor.Tensor {
		x := like(t)
		if t.Present() {
			tensor.Convert(x, t)
		}
		return x
	}
	n, hq := p.q.Dim(0), p.config.QueryHeads
	c := &attention.Call{
		Config: p.config, Lengths: p.lengths,
		Q: input(p.q), K: input(p.k), V: input(p.v), Z: input(p.z),
		O: result(p.do), LSE: result(tensor.New(d, tensor.Of(n, hq))), Share: result(tensor.New(d, tensor.Of(n, hq))),
	}
	g := &attention.Gradients{DO: input(p.do), DQ: result(p.q), DK: result(p.k), DV: result(p.v), DZ: result(p.z)}
	if !p.wantStates {
		return c, g
	}
	for i := range p.lengths {
		c.Final = append(c.Final, other(i))
		if p.initial != nil {
			c.Initial = append(c.Initial, p.initial[i].ConvertTo(d))
			g.DInitial = append(g.DInitial, other(i))
		}
		g.DFinal = append(g.DFinal, p.dFinal[i].ConvertTo(d))
	}
	return c, g
}

// part is tokens [from, to) of a call of one sequence, results going to their place; states are left to the caller.
func part(c *attention.Call, g *attention.Gradients, from, to int) (*attention.Call, *attention.Gradients) {
	cut := func(t tensor.Tensor) tensor.Tensor {
		if !t.Present() {
			return t
		}
		return t.Narrow(from, to)
	}
	return &attention.Call{
			Config: c.Config, Lengths: []int{to - from}, Q: cut(c.Q), K: cut(c.K), V: cut(c.V), Z: cut(c.Z),
			O: cut(c.O), LSE: cut(c.LSE), Share: cut(c.Share),
		}, &attention.Gradients{
			DO: cut(g.DO), DQ: cut(g.DQ), DK: cut(g.DK), DV: cut(g.DV), DZ: cut(g.DZ),
		}
}

// sequence is sequence i of the problem alone.
func (p *problem) sequence(i int) *problem {
	from := 0
	for _, l := range p.lengths[:i] {
		from += l
	}
	to := from + p.lengths[i]
	cut := func(t tensor.Tensor) tensor.Tensor {
		if !t.Present() {
			return t
		}
		return t.Narrow(from, to)
	}
	s := &problem{
		config: p.config, lengths: p.lengths[i : i+1], q: cut(p.q), k: cut(p.k), v: cut(p.v), z: cut(p.z), do: cut(p.do),
		dFinal: p.dFinal[i : i+1], wantStates: p.wantStates,
	}
	if p.initial != nil {
		s.initial = p.initial[i : i+1]
	}
	return s
}

var nan = math.NaN()

// addTo and setTo change a float64 tensor in place; an absent one has nothing to change.
func addTo(t tensor.Tensor, x float64) {
	if t.Present() {
		for i := range t.F64() {
			t.F64()[i] += x
		}
	}
}

func setTo(t tensor.Tensor, x float64) {
	if t.Present() {
		for i := range t.F64() {
			t.F64()[i] = x
		}
	}
}
