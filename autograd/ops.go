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

// Embed is rows of table [vocabulary, D] by ids [N] (I32): [N, D].
func (t *Tape) Embed(table, ids *Value) *Value {
	y := t.value(tensor.Of(ids.Len(), table.Columns()))
	backend.Embed(t.b, y.Tensor, table.Tensor, ids.Tensor)
	t.record(embedBackward, y, table, ids)
	return y
}

func embedBackward(t *Tape, r *record) {
	backend.EmbedBackward(t.b, t.gradient(r.in[0]), r.out.Gradient, r.in[1].Tensor)
}

// Linear is x W^T + bias + residual for x [N, in], weight [out, in], bias [out] or nil, residual [N, out] or nil: [N, out].
func (t *Tape) Linear(x, weight, bias, residual *Value) *Value {
	y := t.value(tensor.Of(x.Rows(), weight.Rows()))
	var b tensor.Tensor
	if bias != nil {
		b = bias.Tensor
	}
	if residual != nil {
		t.b.Copy(y.Tensor, residual.Tensor)
	}
	backend.MatMul(t.b, backend.NT, backend.Gradient{Tensor: y.Tensor, Add: residual != nil}, x.Tensor, weight.Tensor, b)
	t.record(linearBackward, y, x, weight, bias, residual)
	return y
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
	r.again, r.epsilon = rmsNorm, epsilon
	r.rstd = t.scratch(r, 0, t.b.DType(), tensor.Of(x.Len()/weight.Len()))
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
	backend.Add(t.b, y.Tensor, a.Tensor, b.Tensor)
	t.record(addBackward, y, a, b)
	return y
}

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
	r.again = silu
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
	r.again = swiglu
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
	r.call = attention.Call{Config: c, Lengths: lengths, Q: q.Tensor, K: k.Tensor, V: v.Tensor, O: o.Tensor}
	r.call.LSE = t.scratch(r, 0, t.b.DType(), tensor.Of(n, c.QueryHeads))
	if z != nil {
		r.call.Z = z.Tensor
	}
	if share {
		r.call.Share = w.Tensor
	}
	if flow != nil {
		r.call.Initial, r.call.Final = flow.Initial, flow.Final
	}
	backend.NHA(t.b, &r.call)
	t.finish(r)
	return o, w
}

func nhaBackward(t *Tape, r *record) {
	r.call.Q, r.call.K, r.call.V = r.in[0].Tensor, r.in[1].Tensor, r.in[2].Tensor // computed again, perhaps
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

// lossRows is how many rows of logits exist at a time.
const lossRows = 512

// CrossEntropy is the sum over tokens of scale * -log softmax(hidden weight^T)[target], for hidden [N, D], weight
// [vocabulary, D] and targets [N] (I32, negative: ignored). The logits of the whole batch never exist: chunks of rows are
// computed, and when recording their gradients are formed at once, so Backward may start right after. It returns the unscaled
// sum of the losses.
func (t *Tape) CrossEntropy(hidden, weight, targets *Value, scale float64) float64 {
	n, vocabulary := hidden.Rows(), weight.Rows()
	r := t.record(func(*Tape, *record) {}, t.node(), hidden, weight)
	rows := min(n, lossRows)
	logits := t.scratch(r, 0, t.b.DType(), tensor.Of(rows, vocabulary))
	loss := t.scratch(r, 1, t.b.DType(), tensor.Of(n))
	learn := r.backward != nil
	var dhidden, dweight backend.Gradient
	if learn {
		dhidden, dweight = t.gradient(hidden), t.gradient(weight)
	}
	for from := 0; from < n; from += rows {
		to := min(n, from+rows)
		h, l := hidden.Narrow(from, to), logits.Narrow(0, to-from)
		backend.MatMul(t.b, backend.NT, backend.Gradient{Tensor: l}, h, weight.Tensor, tensor.Tensor{})
		backend.CrossEntropy(t.b, loss.Narrow(from, to), l, targets.Narrow(from, to), scale)
		if dhidden.Present() {
			backend.MatMul(t.b, backend.NN, backend.Gradient{Tensor: dhidden.Narrow(from, to), Add: dhidden.Add}, l, weight.Tensor, tensor.Tensor{})
		}
		if dweight.Present() {
			backend.MatMul(t.b, backend.TN, backend.Gradient{Tensor: dweight.Tensor, Add: dweight.Add || from > 0}, l, h, tensor.Tensor{})
		}
	}
	sum := t.b.Sum(loss)
	t.releaseSaved(r)
	return sum
}
