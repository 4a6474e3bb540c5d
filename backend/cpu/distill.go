package cpu

import (
	"nha/backend"
	"nha/backend/cpu/kernel"
	"nha/tensor"
)

// distillTask runs the losses against a teacher over a range of rows.
type distillTask struct {
	kind              distillKind
	parts, rows, n, k int
	nll, kl, logits   []float32
	teacher, dy, y    []float32
	ids, targets      []int32
	nllScale, scale   float32
	add               bool
	scratch           [][]float32
}

type distillKind uint8

const (
	distillFull distillKind = iota
	distillTop
	squaredError
)

// Do is part i.
func (t *distillTask) Do(_, i int) {
	n, k := t.n, t.k
	for r := t.rows * i / t.parts; r < t.rows*(i+1)/t.parts; r++ {
		switch t.kind {
		case distillFull:
			t.nll[r], t.kl[r] = kernel.DistillRow(t.logits[r*n:(r+1)*n], t.teacher[r*n:(r+1)*n], t.scratch[i], t.targets[r], t.nllScale, t.scale)
		case distillTop:
			t.nll[r], t.kl[r] = kernel.DistillTopRow(t.logits[r*n:(r+1)*n], t.teacher[r*k:(r+1)*k], t.ids[r*k:(r+1)*k], t.targets[r], t.nllScale, t.scale)
		case squaredError:
			t.nll[r] = kernel.SquaredErrorRow(t.dy[r*n:(r+1)*n], t.y[r*n:(r+1)*n], t.teacher[r*n:(r+1)*n], t.nllScale, t.scale, t.add)
		}
	}
}

func (b *Backend) distill(t distillTask) {
	t.parts = b.partsFor(t.rows * t.n)
	b.distilling = t
	b.pool.Run(t.parts, &b.distilling)
	b.distilling = distillTask{}
}

func (b *Backend) Distill(nll, kl, logits, teacher, targets tensor.Tensor, nllScale, klScale float64) {
	b.distill(distillTask{kind: distillFull, rows: nll.Len(), n: logits.Columns(), nll: nll.F32(), kl: kl.F32(), logits: logits.F32(), teacher: teacher.F32(),
		targets: targets.I32(), nllScale: float32(nllScale), scale: float32(klScale), scratch: b.partials(logits.Columns())})
}

func (b *Backend) DistillTop(nll, kl, logits, logq, ids, targets tensor.Tensor, nllScale, klScale float64) {
	b.distill(distillTask{kind: distillTop, rows: nll.Len(), n: logits.Columns(), k: logq.Columns(), nll: nll.F32(), kl: kl.F32(), logits: logits.F32(), teacher: logq.F32(),
		ids: ids.I32(), targets: targets.I32(), nllScale: float32(nllScale), scale: float32(klScale)})
}

func (b *Backend) SquaredError(loss tensor.Tensor, dy backend.Gradient, y, target tensor.Tensor, weight, scale float64) {
	b.distill(distillTask{kind: squaredError, rows: loss.Len(), n: y.Columns(), nll: loss.F32(), dy: dy.F32(), y: y.F32(), teacher: target.F32(), nllScale: float32(weight), scale: float32(scale), add: dy.Add})
}
