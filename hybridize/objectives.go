package hybridize

import (
	"nha/attention"
	"nha/autograd"
	"nha/model"
	"nha/tensor"
	"nha/train"
)

// transfer is the objective of attention transfer: with y what a layer's attention adds to the residual stream, on the base's own residual
// stream before that layer,
//
//	loss = mean over layers and tokens of |y_student - y_base|^2 / E |y_base|^2
//
// so that every layer counts alike and no layer waits for the one below. Full layers are the base's and take no part.
type transfer struct {
	student, base *model.Model
	tape          *autograd.Tape // the base's
	layers        []int
	weights       []float64 // by layer: 1 / (layers E |y_base|^2)
	losses        []*autograd.Value
}

func newTransfer(student, base *model.Model, c *calibration) *transfer {
	s := &transfer{student: student, base: base, tape: autograd.New(base.Backend()), weights: make([]float64, len(c.squares))}
	s.tape.Record(false)
	for i, w := range student.Config.LayerWindows {
		if w != attention.Full {
			s.layers = append(s.layers, i)
		}
	}
	for _, i := range s.layers {
		s.weights[i] = 1 / (float64(len(s.layers)) * c.squares[i])
	}
	return s
}

func (s *transfer) objective(t *autograd.Tape, b *model.Batch, scale float64) []*autograd.Value {
	s.tape.Reset()
	s.losses = s.losses[:0]
	// The trainer divides by the tokens with a target; all tokens count here.
	share := float64(predicted(b)) / float64(len(b.Tokens))
	walk(s.tape, s.base, b, func(layer int, x, y *autograd.Value) {
		if s.weights[layer] == 0 {
			return
		}
		mark := t.Mark()
		own := s.student.Attention(t, layer, b, autograd.Parameter(x.Tensor, tensor.Tensor{}), nil)
		t.Keep(mark, own)
		s.losses = append(s.losses, t.SquaredError(own, y.Tensor, share*s.weights[layer], scale))
	}, nil)
	return s.losses
}

// errors is the relative error of every layer over a batch, |y_student - y_base|^2 / E |y_base|^2; 0 in full layers.
func (s *transfer) errors(t *autograd.Tape, b *model.Batch) []float64 {
	recording := t.Recording()
	t.Record(false)
	defer func() { t.Reset(); t.Record(recording) }()
	t.Reset()
	list := make([]float64, len(s.weights))
	losses := s.objective(t, b, 0)
	for i, layer := range s.layers {
		list[layer] = t.Sum(losses[i]) * float64(len(s.layers)) / float64(predicted(b))
	}
	return list
}

func (s *transfer) close() { s.tape.Close() }

// distill is the objective KL(base || student) + mix times the next-token loss; what it reports is the divergence alone.
type distill struct {
	student, base *model.Model
	tape          *autograd.Tape // the base's; nil where the base's words come from kept
	kept          *keptTeacher
	mix           float64
	losses        [1]*autograd.Value
}

func newDistill(student, base *model.Model, mix float64) *distill {
	d := &distill{student: student, base: base, tape: autograd.New(base.Backend()), mix: mix}
	d.tape.Record(false)
	return d
}

func (d *distill) objective(t *autograd.Tape, b *model.Batch, scale float64) []*autograd.Value {
	var teacher autograd.Teacher
	if d.kept != nil {
		teacher = d.kept.teacher(t, b)
	} else {
		d.tape.Reset()
		teacher = d.base.Teach(d.tape, b)
	}
	_, d.losses[0] = d.student.Distill(t, b, teacher, d.mix*scale, scale)
	return d.losses[:]
}

// divergence is the mean KL(base || student) and the student's next-token loss over a batch, per token with a target.
func (d *distill) divergence(t *autograd.Tape, b *model.Batch) (kl, nll float64) {
	recording := t.Recording()
	t.Record(false)
	defer func() { t.Reset(); t.Record(recording) }()
	t.Reset()
	d.tape.Reset()
	n, k := d.student.Distill(t, b, d.base.Teach(d.tape, b), 0, 0)
	return t.Sum(k) / float64(predicted(b)), t.Sum(n) / float64(predicted(b))
}

// predicted is the number of tokens with a target.
func predicted(b *model.Batch) (n int) {
	for _, id := range b.Targets {
		if id >= 0 {
			n++
		}
	}
	return n
}

func (d *distill) close() { d.tape.Close() }

var (
	_ train.Objective = (*transfer)(nil).objective
	_ train.Objective = (*distill)(nil).objective
)
