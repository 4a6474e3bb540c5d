package autograd

import (
	"nha/backend"
	"nha/tensor"
)

// lossRows is how many rows of logits exist at a time: what a processor's caches hold of some thousand words, or on a device
// enough to fill it.
const (
	lossRows       = 512
	deviceLossRows = 8192
)

// throughHead computes logits = hidden weight^T by chunks of rows; loss leaves the gradient of rows [from, to) in their place. When
// recording, the gradients of hidden and weight follow at once.
func (t *Tape) throughHead(hidden, weight *Value, loss func(from, to int, logits tensor.Tensor)) {
	n, vocabulary := hidden.Rows(), weight.Rows()
	r := t.record(func(*Tape, *record) {}, t.node(), hidden, weight)
	rows := min(n, lossRows)
	if hidden.Address() != 0 {
		rows = min(n, deviceLossRows)
	}
	logits := t.scratch(r, 0, t.b.DType(), tensor.Of(rows, vocabulary))
	var dhidden, dweight backend.Gradient
	if r.backward != nil {
		dhidden, dweight = t.gradient(hidden), t.gradient(weight)
	}
	for from := 0; from < n; from += rows {
		to := min(n, from+rows)
		h, l := hidden.Narrow(from, to), logits.Narrow(0, to-from)
		backend.MatMul(t.b, backend.NT, backend.Gradient{Tensor: l}, h, weight.Tensor, tensor.Tensor{})
		loss(from, to, l)
		if dhidden.Present() {
			backend.MatMul(t.b, backend.NN, backend.Gradient{Tensor: dhidden.Narrow(from, to), Add: dhidden.Add}, l, weight.Tensor, tensor.Tensor{})
		}
		if dweight.Present() {
			backend.MatMul(t.b, backend.TN, backend.Gradient{Tensor: dweight.Tensor, Add: dweight.Add || from > 0}, l, h, tensor.Tensor{})
		}
	}
	t.releaseSaved(r)
}

// Teacher is what a student is compared with: another model's hidden states and head, or what is kept of its predictions.
type Teacher struct {
	Hidden, Head  tensor.Tensor // [N, D'], [vocabulary, D']
	LogProbs, IDs tensor.Tensor // instead: [N, k] log-probabilities of k words, [N, k] I32
}

// Distill is, for every token, the cross-entropy and the divergence KL(teacher || student) (backend.Distillation); the gradients are those of
// nllScale and klScale times their sums. Otherwise it is as CrossEntropy.
func (t *Tape) Distill(hidden, weight, targets *Value, teacher Teacher, nllScale, klScale float64) (nll, kl *Value) {
	n := hidden.Rows()
	nll, kl = t.of(t.statistic(), tensor.Of(n)), t.of(t.statistic(), tensor.Of(n))
	var theirs *Value
	t.throughHead(hidden, weight, func(from, to int, logits tensor.Tensor) {
		if teacher.IDs.Present() {
			backend.DistillTop(t.b, nll.Narrow(from, to), kl.Narrow(from, to), logits, teacher.LogProbs.Narrow(from, to), teacher.IDs.Narrow(from, to),
				targets.Narrow(from, to), nllScale, klScale)
			return
		}
		if theirs == nil {
			theirs = t.value(logits.Shape)
		}
		l := theirs.Narrow(0, to-from)
		backend.MatMul(t.b, backend.NT, backend.Gradient{Tensor: l}, teacher.Hidden.Narrow(from, to), teacher.Head, tensor.Tensor{})
		backend.Distill(t.b, nll.Narrow(from, to), kl.Narrow(from, to), logits, l, targets.Narrow(from, to), nllScale, klScale)
	})
	if theirs != nil {
		t.release(theirs)
	}
	return nll, kl
}

// SquaredError is weight sum_j (y[r,j] - target[r,j])^2 for every row; the gradient is that of scale times their sum, formed at once.
func (t *Tape) SquaredError(y *Value, target tensor.Tensor, weight, scale float64) *Value {
	losses := t.of(t.statistic(), tensor.Of(y.Rows()))
	r := t.record(func(*Tape, *record) {}, t.node(), y)
	dy := t.gradient(y)
	if !dy.Present() {
		dy = backend.Gradient{Tensor: t.scratch(r, 0, y.DType, y.Shape)}
	}
	backend.SquaredError(t.b, losses.Tensor, dy, y.Tensor, target, weight, scale)
	t.releaseSaved(r)
	return losses
}
