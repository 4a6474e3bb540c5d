package optest

import (
	"fmt"

	"nha/attention"
	"nha/backend"
	"nha/tensor"
)

// Cases is the table: every op of backend.Table at sizes around the edges where kernels go wrong.
func Cases() []*Case {
	var list []*Case
	for _, s := range []struct{ m, n, k int }{{1, 1, 1}, {1, 37, 19}, {5, 8, 3}, {16, 16, 16}, {33, 65, 47}, {130, 70, 300}, {7, 513, 64}} {
		for _, op := range []backend.Op{backend.NN, backend.NT, backend.TN} {
			list = append(list, matmul(op, s.m, s.n, s.k, false), matmul(op, s.m, s.n, s.k, true))
		}
	}
	for _, t := range quantTypes {
		n, _ := t.Block()
		for _, s := range []struct{ m, n, k int }{{1, 37, 3 * n}, {5, 70, 2 * n}, {8, 3, n}, {9, 37, 2 * n}, {33, 65, 3 * n}, {130, 70, 2 * n}} {
			list = append(list, quantMatmul(t, s.m, s.n, s.k))
		}
		list = append(list, quantEmbed(t, 5, 2*n))
	}
	for _, s := range []struct{ rows, n int }{{1, 1}, {3, 7}, {5, 64}, {129, 33}, {2, 1000}, {300, 48}} {
		list = append(list, rmsNorm(s.rows, s.n, 0, 1), rmsNorm(s.rows, s.n, 1), embed(s.rows, s.n), sumRows(s.rows, s.n), crossEntropy(s.rows, s.n+1),
			distill(s.rows, s.n+1), distillTop(s.rows, s.n+1, 1), distillTop(s.rows, s.n+9, 8), squaredError(s.rows, s.n))
	}
	for _, n := range []int{1, 15, 64, 1003, 20000} {
		list = append(list, add(n), silu(n), swiglu(n), sums(n), adamw(n))
	}
	for _, s := range []struct {
		lengths []int
		c       attention.Config
	}{
		{[]int{70}, attention.Config{QueryHeads: 2, KVHeads: 2, KeyDim: 16, ValueDim: 16, Slots: 8, Window: 0}},
		{[]int{1, 40, 129}, attention.Config{QueryHeads: 4, KVHeads: 2, KeyDim: 32, ValueDim: 32, Slots: 16, Window: 16}},
		{[]int{200}, attention.Config{QueryHeads: 2, KVHeads: 1, KeyDim: 64, ValueDim: 64, Slots: 64, Window: 32}},
		{[]int{90, 33}, attention.Config{QueryHeads: 3, KVHeads: 1, KeyDim: 24, ValueDim: 40, Slots: 7, Window: 13, EmptySlots: attention.Mask}},
		{[]int{150}, attention.Config{QueryHeads: 2, KVHeads: 2, KeyDim: 64, ValueDim: 64, Window: attention.Full}},
		{[]int{150}, attention.Config{QueryHeads: 2, KVHeads: 2, KeyDim: 128, ValueDim: 128, Window: 64}},
		{[]int{130}, attention.Config{QueryHeads: 2, KVHeads: 2, KeyDim: 32, ValueDim: 32, Slots: 8, Window: attention.Full}},
	} {
		list = append(list, nha(s.lengths, s.c))
	}
	for _, s := range []struct{ rows, experts, k int }{{1, 1, 1}, {3, 8, 2}, {70, 33, 8}, {130, 128, 8}, {2, 5, 5}} {
		list = append(list, route(s.rows, s.experts, s.k, false), route(s.rows, s.experts, s.k, true), combine(s.rows, s.k, s.experts+24))
	}
	return list
}

func matmul(op backend.Op, m, n, k int, withBias bool) *Case {
	a, b := tensor.Of(m, k), tensor.Of(k, n)
	switch op {
	case backend.NT:
		b = tensor.Of(n, k)
	case backend.TN:
		a = tensor.Of(k, m)
	}
	c := &Case{Op: "matmul", Name: fmt.Sprintf("%v-%dx%dx%d", op, m, n, k), Inputs: []Input{{Name: "a", Shape: a}, {Name: "b", Shape: b}},
		Outputs: []Output{{Name: "c", Shape: tensor.Of(m, n)}, {Name: "c added", Shape: tensor.Of(m, n)}}, Wants: []int{0, 1}, Picks: 8}
	if withBias {
		c.Name += "-bias"
		c.Inputs = append(c.Inputs, Input{Name: "bias", Shape: tensor.Of(n)})
		c.Wants = append(c.Wants, 2)
	}
	bias := func(in []tensor.Tensor) tensor.Tensor {
		if withBias {
			return in[2]
		}
		return tensor.Tensor{}
	}
	c.Forward = func(be backend.Backend, in, out []tensor.Tensor) {
		backend.MatMul(be, op, backend.Gradient{Tensor: out[0]}, in[0], in[1], bias(in))
		be.Copy(out[1], out[0])
		backend.MatMul(be, op, backend.Gradient{Tensor: out[1], Add: true}, in[0], in[1], bias(in))
	}
	c.Backward = func(be backend.Backend, in, _, dout []tensor.Tensor, din []backend.Gradient) {
		none, d := tensor.Tensor{}, dout[0]
		switch op {
		case backend.NN:
			backend.MatMul(be, backend.NT, din[0], d, in[1], none)
			backend.MatMul(be, backend.TN, din[1], in[0], d, none)
		case backend.NT:
			backend.MatMul(be, backend.NN, din[0], d, in[1], none)
			backend.MatMul(be, backend.TN, din[1], d, in[0], none)
		case backend.TN:
			backend.MatMul(be, backend.NT, din[0], in[1], d, none)
			backend.MatMul(be, backend.NN, din[1], in[0], d, none)
		}
		if withBias {
			backend.SumRows(be, din[2], d)
		}
	}
	return c
}

// rmsNorm wants the gradients of the inputs that it is told.
func rmsNorm(rows, n int, wants ...int) *Case {
	epsilon := 1e-2
	if n == 1 { // x rstd is 1 less epsilon rstd^2 / 2 there, of which float32 keeps too little when epsilon is small
		epsilon = 1
	}
	return &Case{Op: "rms_norm", Name: fmt.Sprintf("%dx%d-%d", rows, n, len(wants)),
		Inputs:  []Input{{Name: "x", Shape: tensor.Of(rows, n), Std: 2}, {Name: "weight", Shape: tensor.Of(n), Mean: 1, Std: 0.3}},
		Outputs: []Output{{Name: "y", Shape: tensor.Of(rows, n)}, {Name: "rstd", Shape: tensor.Of(rows), Wide: true}}, Wants: wants,
		Forward: func(b backend.Backend, in, out []tensor.Tensor) {
			backend.RMSNorm(b, out[0], out[1], in[0], in[1], epsilon)
		},
		Backward: func(b backend.Backend, in, out, dout []tensor.Tensor, din []backend.Gradient) {
			backend.RMSNormBackward(b, din[0], din[1], dout[0], in[0], in[1], out[1])
		}}
}

func embed(rows, n int) *Case {
	const vocabulary = 11
	return &Case{Op: "embed", Name: fmt.Sprintf("%dx%d", rows, n),
		Inputs:  []Input{{Name: "table", Shape: tensor.Of(vocabulary, n)}, {Name: "ids", Shape: tensor.Of(rows), Ids: vocabulary}},
		Outputs: []Output{{Name: "y", Shape: tensor.Of(rows, n)}}, Wants: []int{0},
		Forward: func(b backend.Backend, in, out []tensor.Tensor) { backend.Embed(b, out[0], in[0], in[1]) },
		Backward: func(b backend.Backend, in, _, dout []tensor.Tensor, din []backend.Gradient) {
			backend.EmbedBackward(b, din[0], dout[0], in[1])
		}}
}

func sumRows(rows, n int) *Case {
	return &Case{Op: "sum_rows", Name: fmt.Sprintf("%dx%d", rows, n), Inputs: []Input{{Name: "x", Shape: tensor.Of(rows, n)}},
		Outputs: []Output{{Name: "y", Shape: tensor.Of(n)}},
		Forward: func(b backend.Backend, in, out []tensor.Tensor) {
			backend.SumRows(b, backend.Gradient{Tensor: out[0]}, in[0])
		}}
}

// crossEntropy: the op leaves the gradient in place of the logits, so forward and backward are the same call on a copy.
func crossEntropy(rows, n int) *Case {
	const scale = 0.37
	return &Case{Op: "cross_entropy", Name: fmt.Sprintf("%dx%d", rows, n),
		Inputs:  []Input{{Name: "logits", Shape: tensor.Of(rows, n), Std: 5}, {Name: "targets", Shape: tensor.Of(rows), Ids: n, Negative: true}},
		Outputs: []Output{{Name: "loss", Shape: tensor.Of(rows)}, {Name: "gradient", Shape: tensor.Of(rows, n)}}, Wants: []int{0}, Constant: scale, OnlyWrites: true,
		Forward: func(b backend.Backend, in, out []tensor.Tensor) {
			b.Copy(out[1], in[0])
			backend.CrossEntropy(b, out[0], out[1], in[1], scale)
		},
		Backward: func(b backend.Backend, in, out, _ []tensor.Tensor, din []backend.Gradient) {
			b.Copy(din[0].Tensor, out[1])
		}}
}

func add(n int) *Case {
	s := tensor.Of(n)
	return &Case{Op: "add", Name: fmt.Sprint(n), Inputs: []Input{{Name: "a", Shape: s}, {Name: "b", Shape: s}}, Outputs: []Output{{Name: "y", Shape: s}, {Name: "in place", Shape: s}},
		Forward: func(b backend.Backend, in, out []tensor.Tensor) {
			backend.Add(b, out[0], in[0], in[1])
			b.Copy(out[1], in[0])
			backend.Add(b, out[1], out[1], in[1])
		}}
}

func silu(n int) *Case {
	s := tensor.Of(n)
	return &Case{Op: "silu", Name: fmt.Sprint(n), Inputs: []Input{{Name: "x", Shape: s, Std: 4}}, Outputs: []Output{{Name: "y", Shape: s}}, Wants: []int{0},
		Forward: func(b backend.Backend, in, out []tensor.Tensor) { backend.SiLU(b, out[0], in[0]) },
		Backward: func(b backend.Backend, in, _, dout []tensor.Tensor, din []backend.Gradient) {
			backend.SiLUBackward(b, din[0], dout[0], in[0])
		}}
}

func swiglu(n int) *Case {
	s := tensor.Of(n)
	return &Case{Op: "swiglu", Name: fmt.Sprint(n), Inputs: []Input{{Name: "gate", Shape: s, Std: 4}, {Name: "up", Shape: s}},
		Outputs: []Output{{Name: "y", Shape: s}}, Wants: []int{0, 1},
		Forward: func(b backend.Backend, in, out []tensor.Tensor) { backend.SwiGLU(b, out[0], in[0], in[1]) },
		Backward: func(b backend.Backend, in, _, dout []tensor.Tensor, din []backend.Gradient) {
			backend.SwiGLUBackward(b, din[0], din[1], dout[0], in[0], in[1])
		}}
}

// sums is sum and sum_squares, whose results are numbers on the host.
func sums(n int) *Case {
	return &Case{Op: "sum_squares", Name: fmt.Sprint(n), Inputs: []Input{{Name: "x", Shape: tensor.Of(n), Mean: 0.5}}, Outputs: []Output{{Name: "sums", Shape: tensor.Of(2)}},
		Forward: func(b backend.Backend, in, out []tensor.Tensor) {
			b.Write(out[0], tensor.FromF64([]float64{b.Sum(in[0]), b.SumSquares(in[0])}, 2))
		}}
}

func adamw(n int) *Case {
	s := tensor.Of(n)
	return &Case{Op: "adamw", Name: fmt.Sprint(n),
		Inputs:  []Input{{Name: "p", Shape: s, Wide: true}, {Name: "g", Shape: s}},
		Outputs: []Output{{Name: "p", Shape: s, Wide: true}, {Name: "m", Shape: s, Wide: true}, {Name: "v", Shape: s, Wide: true}},
		Forward: func(b backend.Backend, in, out []tensor.Tensor) {
			b.Copy(out[0], in[0])
			b.Zero(out[1])
			b.Zero(out[2])
			for step := 1; step <= 3; step++ {
				backend.ApplyAdamW(b, out[0], in[1], out[1], out[2], backend.AdamW{LearningRate: 0.01, Beta1: 0.9, Beta2: 0.95, Epsilon: 1e-8,
					WeightDecay: 0.1, GradientScale: 0.5, Step: step})
			}
		}}
}

// nha is the operator from empty states; states carried in are the business of package attentiontest.
func nha(lengths []int, c attention.Config) *Case {
	c.Scale, c.GateNormalizer, c.Rope = 1/float64(c.KeyDim), 8, attention.NewRope(c.KeyDim, 10000)
	n := 0
	for _, l := range lengths {
		n += l
	}
	w := fmt.Sprint(c.Window)
	if c.Window == attention.Full {
		w = "full"
	}
	q := tensor.Of(n, c.QueryHeads*c.KeyDim)
	k := &Case{Op: "nha", Name: fmt.Sprintf("N%d-Hq%d-H%d-K%d-V%d-M%d-W%s-%v", n, c.QueryHeads, c.KVHeads, c.KeyDim, c.ValueDim, c.Slots, w, c.EmptySlots),
		Inputs:  []Input{{Name: "q", Shape: q, Std: 2}, {Name: "k", Shape: tensor.Of(n, c.KVHeads*c.KeyDim), Std: 2}, {Name: "v", Shape: tensor.Of(n, c.KVHeads*c.ValueDim)}},
		Outputs: []Output{{Name: "o", Shape: tensor.Of(n, c.QueryHeads*c.ValueDim)}, {Name: "lse", Shape: tensor.Of(n, c.QueryHeads)}, {Name: "share", Shape: tensor.Of(n, c.QueryHeads)}},
		Wants:   []int{0, 1, 2}, OnlyWrites: true, Picks: 6}
	if c.Slots > 0 {
		k.Inputs = append(k.Inputs, Input{Name: "z", Shape: tensor.Of(n, c.KVHeads*c.Slots), Std: 3})
		k.Wants = append(k.Wants, 3)
	}
	call := func(in, out []tensor.Tensor) *attention.Call {
		a := &attention.Call{Config: &c, Lengths: lengths, Q: in[0], K: in[1], V: in[2], O: out[0], LSE: out[1], Share: out[2]}
		if c.Slots > 0 {
			a.Z = in[3]
		}
		return a
	}
	k.Forward = func(b backend.Backend, in, out []tensor.Tensor) { backend.NHA(b, call(in, out)) }
	k.Backward = func(b backend.Backend, in, out, dout []tensor.Tensor, din []backend.Gradient) {
		g := &attention.Gradients{DO: dout[0], DQ: din[0].Tensor, DK: din[1].Tensor, DV: din[2].Tensor}
		if c.Slots > 0 {
			g.DZ = din[3].Tensor
		}
		backend.NHABackward(b, call(in, out), g)
	}
	return k
}
