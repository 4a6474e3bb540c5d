package autograd

import (
	"nha/attention"
	"nha/backend"
	"nha/tensor"
)

// Input is host data brought to the backend; no gradient flows to it.
func (t *Tape) Input(host tensor.Tensor) *Value {
	v := t.node()
	d := t.b.DType()
	if !host.DType.Float() {
		d = host.DType
	}
	v.Tensor, v.block = t.arena.alloc(d, host.Shape)
	t.b.Write(v.Tensor, host)
	return v
}

// InputWide is Input with float32's digits also where the backend computes in 16 bits.
func (t *Tape) InputWide(host tensor.Tensor) *Value {
	v := t.of(t.statistic(), host.Shape)
	t.b.Write(v.Tensor, host)
	return v
}

// Embed is rows of table [vocabulary, D] by ids [N] (I32): [N, D].
func (t *Tape) Embed(table, ids *Value) *Value {
	y := t.value(tensor.Of(ids.Len(), table.Columns()))
	r := t.record(embedBackward, y, table, ids)
	r.again = embed
	embed(t, r)
	return y
}

func embed(t *Tape, r *record) { backend.Embed(t.b, r.out.Tensor, r.in[0].Tensor, r.in[1].Tensor) }

func embedBackward(t *Tape, r *record) {
	backend.EmbedBackward(t.b, t.gradient(r.in[0]), r.out.Gradient, r.in[1].Tensor)
}

// Linear is x W^T + bias + residual for x [N, in], weight [out, in], bias [out] or nil, residual [N, out] or nil: [N, out].
func (t *Tape) Linear(x, weight, bias, residual *Value) *Value {
	y := t.value(tensor.Of(x.Rows(), weight.Rows()))
	r := t.record(linearBackward, y, x, weight, bias, residual)
	r.again = linear
	linear(t, r)
	return y
}

func linear(t *Tape, r *record) {
	var bias tensor.Tensor
	if r.in[2] != nil {
		bias = r.in[2].Tensor
	}
	if residual := r.in[3]; residual != nil {
		backend.MatMulResidual(t.b, backend.NT, r.out.Tensor, r.in[0].Tensor, r.in[1].Tensor, bias, residual.Tensor)
	} else {
		backend.MatMul(t.b, backend.NT, backend.Gradient{Tensor: r.out.Tensor}, r.in[0].Tensor, r.in[1].Tensor, bias)
	}
}

func linearBackward(t *Tape, r *record) {
	x, weight, bias, residual, dy := r.in[0], r.in[1], r.in[2], r.in[3], r.out.Gradient
	if g := t.gradient(weight); g.Present() {
		backend.MatMul(t.b, backend.TN, g, dy, x.Tensor, tensor.Tensor{})
	}
	if g := t.gradient(bias); g.Present() {
		backend.SumRows(t.b, g, dy)
	}
	if g := t.gradient(x); g.Present() {
		backend.MatMul(t.b, backend.NN, g, dy, weight.Tensor, tensor.Tensor{})
	}
	t.pass(residual, r.out)
}

// RMSNorm is x / sqrt(mean(x^2) + epsilon) * weight over rows of len(weight), of x's shape.
func (t *Tape) RMSNorm(x, weight *Value, epsilon float64) *Value {
	y := t.value(x.Shape)
	r := t.record(rmsNormBackward, y, x, weight)
	r.again, r.cheap, r.epsilon = rmsNorm, true, epsilon
	r.rstd = t.scratch(r, 0, t.statistic(), tensor.Of(x.Len()/weight.Len()))
	rmsNorm(t, r)
	t.finish(r)
	return y
}

func rmsNorm(t *Tape, r *record) {
	backend.RMSNorm(t.b, r.out.Tensor, r.rstd, r.in[0].Tensor, r.in[1].Tensor, r.epsilon)
}

func rmsNormBackward(t *Tape, r *record) {
	backend.RMSNormBackward(t.b, t.gradient(r.in[0]), t.gradient(r.in[1]), r.out.Gradient, r.in[0].Tensor, r.in[1].Tensor, r.rstd)
}

// Rows is rows [from, to) of x, the same memory. No gradient flows through it.
func (t *Tape) Rows(x *Value, from, to int) *Value {
	y := t.node()
	y.Tensor = x.Narrow(from, to)
	return y
}

// Add is a + b, elementwise.
func (t *Tape) Add(a, b *Value) *Value {
	y := t.value(a.Shape)
	r := t.record(addBackward, y, a, b)
	r.again = add
	add(t, r)
	return y
}

func add(t *Tape, r *record) { backend.Add(t.b, r.out.Tensor, r.in[0].Tensor, r.in[1].Tensor) }

func addBackward(t *Tape, r *record) {
	if g := t.gradient(r.in[1]); g.Present() {
		if g.Add {
			backend.Add(t.b, g.Tensor, g.Tensor, r.out.Gradient)
		} else {
			t.b.Copy(g.Tensor, r.out.Gradient)
		}
	}
	t.pass(r.in[0], r.out)
}

// SiLU is x sigmoid(x).
func (t *Tape) SiLU(x *Value) *Value {
	y := t.value(x.Shape)
	r := t.record(siluBackward, y, x)
	r.again, r.cheap = silu, true
	silu(t, r)
	return y
}

func silu(t *Tape, r *record) { backend.SiLU(t.b, r.out.Tensor, r.in[0].Tensor) }

func siluBackward(t *Tape, r *record) {
	backend.SiLUBackward(t.b, t.gradient(r.in[0]), r.out.Gradient, r.in[0].Tensor)
}

// SwiGLU is silu(gate) * up.
func (t *Tape) SwiGLU(gate, up *Value) *Value {
	y := t.value(gate.Shape)
	r := t.record(swigluBackward, y, gate, up)
	r.again, r.cheap = swiglu, true
	swiglu(t, r)
	return y
}

func swiglu(t *Tape, r *record) {
	backend.SwiGLU(t.b, r.out.Tensor, r.in[0].Tensor, r.in[1].Tensor)
}

// swigluBackward computes both gradients; one that nobody wants goes to scratch.
func swigluBackward(t *Tape, r *record) {
	var g [2]backend.Gradient
	for i := range g {
		if g[i] = t.gradient(r.in[i]); !g[i].Present() {
			g[i].Tensor = t.scratch(r, i, t.b.DType(), r.out.Shape)
		}
	}
	backend.SwiGLUBackward(t.b, g[0], g[1], r.out.Gradient, r.in[0].Tensor, r.in[1].Tensor)
}

// StateFlow is the states of an nha op with their gradients, one entry a sequence. Any list may be nil. Backward reads
// DFinal and writes DInitial; it needs Initial as it was, so Final must be other memory when recording.
type StateFlow struct {
	Initial, Final   []*attention.State
	DFinal, DInitial []*attention.State
}

func (f *StateFlow) arrives() bool { return f != nil && f.DFinal != nil }

// NHA is the operator (SPEC 1) over a packed batch of sequences: q [N, Hq*K], k [N, H*K], v [N, H*V], z [N, H*M] (nil where
// M = 0), unrotated. It returns the outputs [N, Hq*V] and, where share is set, the slot shares [N, Hq]. The configuration,
// lengths and flow (nil: from empty states, final ones not wanted) must stay as they are until Backward.
func (t *Tape) NHA(c *attention.Config, lengths []int, q, k, v, z *Value, share bool, flow *StateFlow) (o, w *Value) {
	n := q.Rows()
	o = t.value(tensor.Of(n, c.QueryHeads*c.ValueDim))
	if share {
		w = t.value(tensor.Of(n, c.QueryHeads))
	}
	r := t.record(nhaBackward, o, q, k, v, z)
	r.flows = flow
	r.call = attention.Call{Config: c, Lengths: lengths}
	r.call.LSE = t.scratch(r, 0, t.b.DType(), tensor.Of(n, c.QueryHeads))
	if flow != nil {
		r.call.Initial, r.call.Final = flow.Initial, flow.Final
	} else {
		r.again = nha // states may have moved on by then, so an op with some keeps its output
	}
	if share {
		r.call.Share = w.Tensor
	}
	nha(t, r)
	r.call.Share = tensor.Tensor{}
	t.finish(r)
	return o, w
}

// nha computes o and the log-sum-exp, from where the tensors are now: some may have been dropped and computed again.
func nha(t *Tape, r *record) {
	r.call.Q, r.call.K, r.call.V, r.call.O = r.in[0].Tensor, r.in[1].Tensor, r.in[2].Tensor, r.out.Tensor
	if z := r.in[3]; z != nil {
		r.call.Z = z.Tensor
	}
	backend.NHA(t.b, &r.call)
}

func nhaBackward(t *Tape, r *record) {
	t.restore(r.out)
	r.call.Q, r.call.K, r.call.V, r.call.O = r.in[0].Tensor, r.in[1].Tensor, r.in[2].Tensor, r.out.Tensor
	if z := r.in[3]; z != nil {
		r.call.Z = z.Tensor
	}
	g := &t.gradients
	*g = attention.Gradients{DO: r.out.Gradient}
	if !g.DO.Present() {
		g.DO = t.scratch(r, 1, t.b.DType(), r.out.Shape)
		t.b.Zero(g.DO)
	}
	if r.flows != nil {
		g.DFinal, g.DInitial = r.flows.DFinal, r.flows.DInitial
	}
	into := [4]*tensor.Tensor{&g.DQ, &g.DK, &g.DV, &g.DZ}
	var spare [4]tensor.Tensor // the op writes; what must be added or is not wanted goes here first
	for i, x := range r.in[:4] {
		if x == nil {
			continue
		}
		if x.wants && !x.leaf && !x.Gradient.Present() {
			*into[i] = t.gradient(x).Tensor
		} else {
			*into[i], spare[i] = t.arena.alloc(x.DType, x.Shape)
		}
	}
	backend.NHABackward(t.b, &r.call, g)
	for i, block := range spare {
		if !block.Present() {
			continue
		}
		if d := t.gradient(r.in[i]); d.Add {
			backend.Add(t.b, d.Tensor, d.Tensor, *into[i])
		} else if d.Present() {
			t.b.Copy(d.Tensor, *into[i])
		}
		t.arena.release(block)
	}
}

// CrossEntropy is the losses [N] of the tokens, -log softmax(hidden weight^T)[target], for hidden [N, D], weight [vocabulary, D]
// and targets [N] (I32, negative: ignored, loss 0). The logits of the whole batch never exist: chunks of rows are computed, and
// when recording the gradients of scale times the losses' sum are formed at once, so Backward may start right after. The losses
// stay until Reset; Sum waits for them, so ask after Backward.
func (t *Tape) CrossEntropy(hidden, weight, targets *Value, scale float64) *Value {
	losses := t.of(t.statistic(), tensor.Of(hidden.Rows()))
	t.throughHead(hidden, weight, func(from, to int, logits tensor.Tensor) {
		backend.CrossEntropy(t.b, losses.Narrow(from, to), logits, targets.Narrow(from, to), scale)
	})
	return losses
}

// Sum is the sum of v's elements. On a device it waits until v is there.
func (t *Tape) Sum(v *Value) float64 { return t.b.Sum(v.Tensor) }
