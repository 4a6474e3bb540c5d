package model

import (
	"nha/autograd"
	"nha/tensor"
)

// Teach is what a student is compared with, for the tokens of a batch that has passed Check. The tape must not record; the result is valid
// until its Reset.
func (m *Model) Teach(t *autograd.Tape, b *Batch) autograd.Teacher {
	return autograd.Teacher{Hidden: m.Hidden(t, b).Tensor, Head: m.head.Tensor}
}

// Distill is Losses with the divergence from a teacher beside the negative log-likelihood (autograd.Tape.Distill): [N] each, 0 where there is no
// target. The gradients are those of nllScale and klScale times their sums.
func (m *Model) Distill(t *autograd.Tape, b *Batch, teacher autograd.Teacher, nllScale, klScale float64) (nll, kl *autograd.Value) {
	hidden := m.Hidden(t, b)
	return t.Distill(hidden, m.head, t.Input(tensor.FromI32(b.Targets, len(b.Targets))), teacher, nllScale, klScale)
}
