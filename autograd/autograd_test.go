package autograd

import (
	"math"
	"math/rand/v2"
	"testing"

	"nha/attention"
	"nha/backend"
	"nha/backend/cpu"
	"nha/backend/ref"
	"nha/tensor"
)

func random(r *rand.Rand, dims ...int) tensor.Tensor {
	t := tensor.New(tensor.F64, tensor.Of(dims...))
	for i := range t.F64() {
		t.F64()[i] = r.NormFloat64()
	}
	return t
}

// network is a graph that uses every op, values several times, a residual and a dropped activation.
type network struct {
	parameters []*Value // embedding, norm, wq, wk, wv, wz, bias, wo, gate, up, head
	config     attention.Config
	ids        tensor.Tensor
	targets    tensor.Tensor
	lengths    []int
}

func newNetwork(b backend.Backend) *network {
	r := rand.New(rand.NewPCG(1, 2))
	n := &network{lengths: []int{5, 8}, ids: tensor.New(tensor.I32, tensor.Of(13)), targets: tensor.New(tensor.I32, tensor.Of(13))}
	n.config = attention.Config{QueryHeads: 2, KVHeads: 1, KeyDim: 4, ValueDim: 4, Slots: 3, Window: 2, Scale: 0.5, GateNormalizer: 8, Rope: attention.NewRope(4, 100)}
	for i := range 13 {
		n.ids.I32()[i], n.targets.I32()[i] = r.Int32N(7), r.Int32N(8)-1
	}
	for _, dims := range [][]int{{7, 6}, {6}, {8, 6}, {4, 6}, {4, 6}, {3, 6}, {3}, {6, 8}, {6, 6}, {6, 6}, {7, 6}} {
		data, gradient := b.Alloc(b.DType(), tensor.Of(dims...)), b.Alloc(b.DType(), tensor.Of(dims...))
		b.Write(data, random(r, dims...))
		n.parameters = append(n.parameters, Parameter(data, gradient))
	}
	return n
}

func (n *network) loss(t *Tape) float64 {
	return n.head(t, n.blocks(t, t.Embed(n.parameters[0], t.Input(n.ids))))
}

// deep is loss with the blocks four times.
func (n *network) deep(t *Tape) float64 {
	x := t.Embed(n.parameters[0], t.Input(n.ids))
	for range 4 {
		x = n.blocks(t, x)
	}
	return n.head(t, x)
}

func (n *network) head(t *Tape, x *Value) float64 {
	return t.Sum(t.CrossEntropy(x, n.parameters[10], t.Input(n.targets), 0.25))
}

// blocks is a block of attention and one of SwiGLU.
func (n *network) blocks(t *Tape, x *Value) *Value {
	p := n.parameters
	mark := t.Mark()
	h := t.RMSNorm(x, p[1], 1e-5)
	v := t.SiLU(t.Linear(h, p[4], nil, nil))
	o, _ := t.NHA(&n.config, n.lengths, t.Linear(h, p[2], nil, nil), t.Linear(h, p[3], nil, nil), v, t.Linear(h, p[5], p[6], nil), false, nil)
	y := t.Linear(t.SiLU(o), p[7], nil, x)
	t.Keep(mark, y)
	mark = t.Mark()
	z := t.Add(t.SwiGLU(t.Linear(y, p[8], nil, nil), t.Linear(y, p[9], nil, x)), y)
	t.Keep(mark, z)
	return z
}

// TestGradients holds every parameter's gradient against central differences, through ops, residuals and dropped activations.
func TestGradients(t *testing.T) {
	b := ref.Backend{}
	n, tape := newNetwork(b), New(b)
	n.loss(tape)
	tape.Backward()
	tape.Reset()
	tape.Record(false)
	for i, p := range n.parameters {
		for j := range p.Len() {
			const h = 1e-6
			at := p.Tensor.F64()[j]
			p.Tensor.F64()[j] = at + h
			up := n.loss(tape)
			tape.Reset()
			p.Tensor.F64()[j] = at - h
			down := n.loss(tape)
			tape.Reset()
			p.Tensor.F64()[j] = at
			if want, got := 0.25*(up-down)/(2*h), p.Gradient.F64()[j]; math.Abs(want-got) > 1e-6*(1+math.Abs(want)) {
				t.Fatalf("parameter %d element %d: gradient %v, difference %v", i, j, got, want)
			}
		}
	}
}

// TestAccumulation: a second backward without ClearGradient adds, with it writes.
func TestAccumulation(t *testing.T) {
	b := ref.Backend{}
	n, tape := newNetwork(b), New(b)
	run := func() float64 {
		tape.Reset()
		n.loss(tape)
		tape.Backward()
		return n.parameters[7].Gradient.F64()[3]
	}
	once := run()
	if twice := run(); math.Abs(twice-2*once) > 1e-12 {
		t.Errorf("added: %v after %v", twice, once)
	}
	for _, p := range n.parameters {
		p.ClearGradient()
	}
	if again := run(); again != once {
		t.Errorf("written: %v, first %v", again, once)
	}
}

// TestRecompute: whatever is computed again, gradients are the same bits, and the more, the less memory a deep network takes.
func TestRecompute(t *testing.T) {
	b, err := cpu.Open(2)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	var want []byte
	var last int
	for i, mode := range []Recompute{RecomputeNothing, RecomputeActivations, RecomputeBlocks} {
		n, tape := newNetwork(b), New(b)
		tape.SetRecompute(mode)
		for range 3 { // the second finds memory that holds something else
			tape.Reset()
			n.deep(tape)
			tape.Backward()
		}
		var got []byte
		for _, p := range n.parameters {
			got = append(got, p.Gradient.Bytes()...)
		}
		if i == 0 {
			want = got
		} else if string(got) != string(want) {
			t.Errorf("mode %d: other gradients than with everything kept", mode)
		} else if tape.Bytes() >= last {
			t.Errorf("mode %d: %d bytes, %d with less computed again", mode, tape.Bytes(), last)
		}
		last = tape.Bytes()
		tape.Close()
	}
}

// TestStateGradients: gradients flow from final states to initial ones and to the inputs.
func TestStateGradients(t *testing.T) {
	b := ref.Backend{}
	r := rand.New(rand.NewPCG(3, 4))
	c := &attention.Config{QueryHeads: 1, KVHeads: 1, KeyDim: 2, ValueDim: 2, Slots: 2, Window: 2, Scale: 1, GateNormalizer: 8}
	leaf := func(dims ...int) *Value {
		return Parameter(random(r, dims...), tensor.New(tensor.F64, tensor.Of(dims...)))
	}
	q, k, v, z := leaf(5, 2), leaf(5, 2), leaf(5, 2), leaf(5, 2)
	state := func() []*attention.State { return []*attention.State{attention.NewState(c, tensor.F64)} }
	flow := &StateFlow{Final: state(), DFinal: state()}
	warm := New(b)
	warm.NHA(c, []int{5}, q, k, v, z, false, &StateFlow{Final: flow.DFinal}) // any numbers of the right shape
	flow.Initial = []*attention.State{flow.DFinal[0].Clone()}
	flow.DFinal[0].Position, flow.DInitial = 10, state()
	run := func() float64 {
		tape := New(b)
		tape.NHA(c, []int{5}, q, k, v, z, false, flow)
		sum := 0.0
		for i, g := range flow.DFinal[0].SlotKeys.F64() {
			sum += g * flow.Final[0].SlotKeys.F64()[i]
		}
		for i, g := range flow.DFinal[0].SlotValues.F64() {
			sum += g * flow.Final[0].SlotValues.F64()[i]
		}
		return sum
	}
	clear(flow.DFinal[0].Keys.F64())
	clear(flow.DFinal[0].Values.F64())
	clear(flow.DFinal[0].LogGates.F64())
	tape := New(b)
	tape.NHA(c, []int{5}, q, k, v, z, false, flow)
	tape.Backward()
	for name, x := range map[string]struct{ data, gradient tensor.Tensor }{
		"slot keys": {flow.Initial[0].SlotKeys, flow.DInitial[0].SlotKeys}, "slot values": {flow.Initial[0].SlotValues, flow.DInitial[0].SlotValues},
		"k": {k.Tensor, k.Gradient}, "v": {v.Tensor, v.Gradient}, "z": {z.Tensor, z.Gradient},
	} {
		for i := range x.data.Len() {
			const h = 1e-6
			at := x.data.F64()[i]
			x.data.F64()[i] = at + h
			up := run()
			x.data.F64()[i] = at - h
			down := run()
			x.data.F64()[i] = at
			if want := (up - down) / (2 * h); math.Abs(want-x.gradient.F64()[i]) > 1e-7 {
				t.Errorf("%s %d: gradient %v, difference %v", name, i, x.gradient.F64()[i], want)
			}
		}
	}
}

// TestMemoryIsReused: the second step takes no memory and allocates nothing.
func TestMemoryIsReused(t *testing.T) {
	b, err := cpu.Open(2)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	n, tape := newNetwork(b), New(b)
	step := func() {
		tape.Reset()
		for _, p := range n.parameters {
			p.ClearGradient()
		}
		n.loss(tape)
		tape.Backward()
	}
	step()
	before := tape.Bytes()
	step()
	if allocations := testing.AllocsPerRun(20, step); allocations > 0 {
		t.Errorf("%v allocations a step", allocations)
	}
	if tape.Bytes() != before {
		t.Errorf("%d bytes after the first step, %d later", before, tape.Bytes())
	}
	tape.Close()
	if tape.Bytes() != 0 {
		t.Errorf("%d bytes after Close", tape.Bytes())
	}
}
