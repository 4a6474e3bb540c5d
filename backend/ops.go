package backend

import (
	"fmt"

	"nha/attention"
	"nha/tensor"
)

// The functions below check shapes and types once and run the op. A mismatch is a bug of the calling room, not of a user:
// what comes from users (configurations, files, token ids) is checked where it enters.

func require(ok bool, op string, tensors ...tensor.Tensor) {
	if !ok {
		s := ""
		for _, t := range tensors {
			s += fmt.Sprintf(" %v%v", t.DType, t.Shape)
		}
		panic("backend: " + op + ": shapes do not fit:" + s)
	}
}

// MatMul is the op matmul: c = A B (+ bias), or c += A B (+ bias) when c.Add.
func MatMul(b Backend, op Op, c Gradient, x, y, bias tensor.Tensor) {
	m, k, n := x.Rows(), x.Columns(), y.Columns()
	inner := y.Rows()
	switch op {
	case NT:
		n, inner = y.Rows(), y.Columns()
	case TN:
		m, k = k, m
	}
	require(c.Rows() == m && c.Columns() == n && inner == k && (!bias.Present() || bias.Len() == n), "matmul "+op.String(), c.Tensor, x, y, bias)
	if c.Len() > 0 {
		b.MatMul(op, c, x, y, bias)
	}
}

// Embed is the op embed.
func Embed(b Backend, y, table, ids tensor.Tensor) {
	require(y.Rows() == ids.Len() && y.Columns() == table.Columns() && ids.DType == tensor.I32, "embed", y, table, ids)
	b.Embed(y, table, ids)
}

// EmbedBackward is the gradient of embed.
func EmbedBackward(b Backend, dtable Gradient, dy, ids tensor.Tensor) {
	require(dy.Rows() == ids.Len() && dy.Columns() == dtable.Columns() && ids.DType == tensor.I32, "embed backward", dtable.Tensor, dy, ids)
	b.EmbedBackward(dtable, dy, ids)
}

// SumRows is the op sum_rows.
func SumRows(b Backend, dst Gradient, x tensor.Tensor) {
	require(dst.Len() == x.Columns(), "sum_rows", dst.Tensor, x)
	b.SumRows(dst, x)
}

// RMSNorm is the op rms_norm; x is read as rows of len(weight), whatever its shape.
func RMSNorm(b Backend, y, rstd, x, weight tensor.Tensor, epsilon float64) {
	require(y.Len() == x.Len() && rstd.Len()*weight.Len() == x.Len(), "rms_norm", y, rstd, x, weight)
	b.RMSNorm(y, rstd, x, weight, epsilon)
}

// RMSNormBackward is the gradient of rms_norm; an absent dx or dweight is not computed.
func RMSNormBackward(b Backend, dx, dweight Gradient, dy, x, weight, rstd tensor.Tensor) {
	require(dy.Len() == x.Len() && rstd.Len()*weight.Len() == x.Len() && (!dx.Present() || dx.Len() == x.Len()) &&
		(!dweight.Present() || dweight.Len() == weight.Len()), "rms_norm backward", dx.Tensor, dweight.Tensor, dy, x, weight, rstd)
	b.RMSNormBackward(dx, dweight, dy, x, weight, rstd)
}

// Add is the op add.
func Add(b Backend, y, p, q tensor.Tensor) {
	require(y.Len() == p.Len() && y.Len() == q.Len(), "add", y, p, q)
	b.Add(y, p, q)
}

// SiLU is the op silu.
func SiLU(b Backend, y, x tensor.Tensor) {
	require(y.Len() == x.Len(), "silu", y, x)
	b.SiLU(y, x)
}

// SiLUBackward is the gradient of silu.
func SiLUBackward(b Backend, dx Gradient, dy, x tensor.Tensor) {
	require(dx.Len() == x.Len() && dy.Len() == x.Len(), "silu backward", dx.Tensor, dy, x)
	b.SiLUBackward(dx, dy, x)
}

// SwiGLU is the op swiglu.
func SwiGLU(b Backend, y, gate, up tensor.Tensor) {
	require(y.Len() == gate.Len() && y.Len() == up.Len(), "swiglu", y, gate, up)
	b.SwiGLU(y, gate, up)
}

// SwiGLUBackward is the gradient of swiglu; both gradients are computed.
func SwiGLUBackward(b Backend, dgate, dup Gradient, dy, gate, up tensor.Tensor) {
	require(dgate.Len() == dy.Len() && dup.Len() == dy.Len() && gate.Len() == dy.Len() && up.Len() == dy.Len(), "swiglu backward",
		dgate.Tensor, dup.Tensor, dy, gate, up)
	b.SwiGLUBackward(dgate, dup, dy, gate, up)
}

// NHA is the op nha (SPEC 1): forward over a packed batch.
func NHA(b Backend, c *attention.Call) {
	requireCall("nha", c.Check())
	b.NHA(c)
}

// NHABackward is the gradient of nha (SPEC 1.3). O and LSE of the call are those that NHA wrote; initial states are as they were.
func NHABackward(b Backend, c *attention.Call, g *attention.Gradients) {
	requireCall("nha backward", c.Check())
	requireCall("nha backward", g.Check(c))
	b.NHABackward(c, g)
}

func requireCall(op string, err error) {
	if err != nil {
		panic("backend: " + op + ": " + err.Error())
	}
}

// CrossEntropy is the op cross_entropy.
func CrossEntropy(b Backend, loss, logits, targets tensor.Tensor, scale float64) {
	require(loss.Len() == logits.Rows() && targets.Len() == logits.Rows() && targets.DType == tensor.I32, "cross_entropy", loss, logits, targets)
	b.CrossEntropy(loss, logits, targets, scale)
}

// Distill is the op distill.
func Distill(b Backend, nll, kl, logits, teacher, targets tensor.Tensor, nllScale, klScale float64) {
	n := logits.Rows()
	require(nll.Len() == n && kl.Len() == n && teacher.Shape == logits.Shape && targets.Len() == n && targets.DType == tensor.I32, "distill", nll, kl, logits, teacher, targets)
	b.Distill(nll, kl, logits, teacher, targets, nllScale, klScale)
}

// DistillTop is the op distill_top. The ids of a row differ from one another.
func DistillTop(b Backend, nll, kl, logits, logq, ids, targets tensor.Tensor, nllScale, klScale float64) {
	n := logits.Rows()
	require(nll.Len() == n && kl.Len() == n && logq.Rows() == n && logq.Columns() < logits.Columns() && ids.Len() == logq.Len() && ids.DType == tensor.I32 &&
		targets.Len() == n && targets.DType == tensor.I32, "distill_top", nll, kl, logits, logq, ids, targets)
	b.DistillTop(nll, kl, logits, logq, ids, targets, nllScale, klScale)
}

// SquaredError is the op squared_error.
func SquaredError(b Backend, loss tensor.Tensor, dy Gradient, y, target tensor.Tensor, weight, scale float64) {
	require(loss.Len() == y.Rows() && dy.Len() == y.Len() && target.Len() == y.Len(), "squared_error", loss, dy.Tensor, y, target)
	b.SquaredError(loss, dy, y, target, weight, scale)
}

// ApplyAdamW is the op adamw.
func ApplyAdamW(b Backend, p, g, m, v tensor.Tensor, s AdamW) {
	require(g.Len() == p.Len() && m.Len() == p.Len() && v.Len() == p.Len() && (!s.Rounded.Present() || s.Rounded.Len() == p.Len()) && s.Step > 0,
		"adamw", p, g, m, v, s.Rounded)
	b.AdamW(p, g, m, v, s)
}
