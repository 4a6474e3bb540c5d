package cuda

import (
	"nha/backend"
	"nha/tensor"
)

const distillThreads = 512

// distillation is a kernel of distill.cu for losses and kept log-probabilities of some types; listed is how many words of distill_top a thread keeps.
func (b *Backend) distillation(entry string, loss, logq tensor.DType, v, listed int) *kernel {
	return b.d.kernel("distill.cu", entry, b.real, typeOf("LOSS", loss), typeOf("LOGQ", logq), number("VEC", v), number("LISTED", listed))
}

// Distill is nll and kl against a teacher; the losses may be F32 whatever the backend's type.
func (b *Backend) Distill(nll, kl, logits, teacher, targets tensor.Tensor, nllScale, klScale float64) {
	b.op("distill", nll, kl, logits, teacher, targets)
	n := logits.Columns()
	b.d.launch(b.distillation("distill", nll.DType, tensor.F32, wide(n, logits, teacher), 1), grid{nll.Len(), 1, 1}, distillThreads, 0,
		pointer(nll), pointer(kl), pointer(logits), pointer(teacher), pointer(targets), integer(n), f32(nllScale), f32(klScale))
}

// DistillTop is Distill against the listed words of a teacher, whose log-probabilities may be F32 whatever the backend's type.
func (b *Backend) DistillTop(nll, kl, logits, logq, ids, targets tensor.Tensor, nllScale, klScale float64) {
	b.op("distill_top", nll, kl, logits, logq, ids, targets)
	n, k := logits.Columns(), logq.Columns()
	b.d.launch(b.distillation("distill_top", nll.DType, logq.DType, wide(n, logits), blocks(k, distillThreads)), grid{nll.Len(), 1, 1}, distillThreads, 0,
		pointer(nll), pointer(kl), pointer(logits), pointer(logq), pointer(ids), pointer(targets), integer(n), integer(k), f32(nllScale), f32(klScale))
}

// SquaredError is the squared distance of rows and its gradient.
func (b *Backend) SquaredError(loss tensor.Tensor, dy backend.Gradient, y, target tensor.Tensor, weight, scale float64) {
	b.op("squared_error", loss, dy.Tensor, y, target)
	n := y.Columns()
	b.d.launch(b.distillation("squared_error", loss.DType, tensor.F32, wide(n, dy.Tensor, y, target), 1), grid{loss.Len(), 1, 1}, 256, 0,
		pointer(loss), pointer(dy.Tensor), pointer(y), pointer(target), integer(n), f32(weight), f32(scale), truth(dy.Add))
}
