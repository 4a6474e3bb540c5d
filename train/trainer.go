package train

import (
	"encoding/json"
	"fmt"
	"math"

	"nha/autograd"
	"nha/backend"
	"nha/model"
	"nha/tensor"
)

// Source gives the batches of a training run. It is asked for one after the other, never from two goroutines.
type Source interface {
	// Next fills b: Tokens, Lengths and Targets, reusing their memory where it is large enough. b is the same few batches in
	// turn; they must not share memory. An error ends the run.
	Next(b *model.Batch) error
	// State is everything that Restore needs, on a fresh Source of the same kind, to go on exactly from here.
	State() (json.RawMessage, error)
	Restore(json.RawMessage) error
}

// Objective is what training makes small, for one batch: losses whose sum, over the tokens with a target, is the loss. When the tape
// records, the gradient of scale times that sum is ready for Backward. A model's own is the next token's negative log-likelihood.
type Objective func(t *autograd.Tape, b *model.Batch, scale float64) []*autograd.Value

// Trainer does optimiser steps on a model.
type Trainer struct {
	model     *model.Model
	objective Objective
	settings  Settings
	source    Source
	tape      *autograd.Tape
	optimizer *optimizer
	batches   []model.Batch      // of one step
	losses    tensor.Tensor      // of the step
	own       [1]*autograd.Value // scratch of the model's own objective
	progress  progress
	compiled  bool

	// Compiling is told, before the first step, how many of the kernels that had to be compiled are done; nil: nobody.
	Compiling func(done, total int)
}

// progress is how far a Trainer has come.
type progress struct {
	Step    int   `json:"step"`    // steps done, those skipped among them
	Tokens  int64 `json:"tokens"`  // read, in all steps
	Skipped int   `json:"skipped"` // steps without an update
	InARow  int   `json:"in_a_row"`
	course
}

// Stats is what a step found. Loss (nats per token) and GradientNorm (before clipping) may be NaN or infinite: then the step
// was skipped.
type Stats struct {
	Step         int    `json:"step"`
	Tokens       int    `json:"tokens"`    // of this step
	Predicted    int    `json:"predicted"` // of them, tokens with a target
	Loss         Number `json:"loss"`
	GradientNorm Number `json:"gradient_norm"`
	LearningRate Number `json:"learning_rate"`
	Skipped      bool   `json:"skipped"`
}

// Number is a float64 that JSON holds exactly; what is not finite is null there, and null reads as NaN.
type Number float64

// MarshalJSON writes the shortest digits that read back as the same number, or null.
func (n Number) MarshalJSON() ([]byte, error) {
	if !finite(float64(n)) {
		return []byte("null"), nil
	}
	return json.Marshal(float64(n))
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (n *Number) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		*n = Number(math.NaN())
		return nil
	}
	return json.Unmarshal(b, (*float64)(n))
}

func finite(x float64) bool { return !math.IsNaN(x) && !math.IsInf(x, 0) }

// NewTrainer trains m, which must have gradients, on the batches of source. The model stays the caller's.
func NewTrainer(m *model.Model, s Settings, source Source) (*Trainer, error) {
	if err := s.Resolve(); err != nil {
		return nil, err
	}
	o, err := newOptimizer(m, &s)
	if err != nil {
		return nil, err
	}
	t := &Trainer{model: m, settings: s, source: source, tape: autograd.New(m.Backend()), optimizer: o, batches: make([]model.Batch, s.Accumulation)}
	t.tape.SetRecompute(s.recompute(m))
	t.objective = func(tape *autograd.Tape, b *model.Batch, scale float64) []*autograd.Value {
		t.own[0], _ = m.Losses(tape, b, scale)
		return t.own[:]
	}
	return t, nil
}

// SetObjective replaces the model's own loss.
func (t *Trainer) SetObjective(o Objective) { t.objective = o }

// Close gives the memory of activations and moments back.
func (t *Trainer) Close() {
	t.tape.Close()
	t.optimizer.close()
	if t.losses.Present() {
		t.model.Backend().Free(t.losses)
	}
}

// Settings are the resolved ones.
func (t *Trainer) Settings() Settings { return t.settings }

// Model is what is being trained.
func (t *Trainer) Model() *model.Model { return t.model }

// Tape is the trainer's tape, which between steps may be used for evaluation (it must be recording and reset afterwards).
func (t *Trainer) Tape() *autograd.Tape { return t.tape }

// Done is the number of steps done.
func (t *Trainer) Done() int { return t.progress.Step }

// Bytes is the memory of the backend in use: parameters, gradients, moments, activations.
func (t *Trainer) Bytes() int { return t.optimizer.bytes() + t.tape.Bytes() }

// Step does one optimiser step. A step whose loss or gradient is not finite leaves the parameters and moments as they were;
// too many of them in a row are an error, as are a loss that diverges, a source that fails and a batch that does not fit the model.
func (t *Trainer) Step() (Stats, error) {
	s := Stats{Step: t.progress.Step + 1}
	s.LearningRate = Number(t.settings.Rate(s.Step))
	if err := t.fetch(&s); err != nil {
		return s, fmt.Errorf("step %d: %w", s.Step, err)
	}
	if err := t.compile(&s); err != nil {
		return s, err
	}
	n := t.gradient(&s)
	// A device has been given all its work up to here; now the host waits, once a step.
	sum := t.model.Backend().Sum(t.losses.Narrow(0, n))
	loss, norm := sum/float64(s.Predicted), math.Sqrt(t.optimizer.squaredNorm())
	s.Loss, s.GradientNorm, s.Skipped = Number(loss), Number(norm), !finite(loss) || !finite(norm)

	p := &t.progress
	p.Step, p.Tokens, p.InARow = s.Step, p.Tokens+int64(s.Tokens), p.InARow+1
	if s.Skipped {
		p.Skipped++
		if p.InARow >= t.settings.MaxSkipped {
			return s, fmt.Errorf("step %d: %d steps in a row without a finite loss and gradient (loss %v, gradient norm %v): lower learning_rate (%v) or clip (%v), or lengthen warmup (%d)",
				s.Step, p.InARow, loss, norm, t.settings.LearningRate, t.settings.Clip, t.settings.Warmup)
		}
		return s, nil
	}
	p.InARow = 0
	if err := p.see(loss, &t.settings); err != nil {
		return s, fmt.Errorf("step %d: %w", s.Step, err)
	}
	scale := 1.0
	if clip := t.settings.Clip; clip > 0 && norm > clip {
		scale = clip / norm
	}
	t.optimizer.apply(p.Step-p.Skipped, float64(s.LearningRate), scale)
	return s, nil
}

// gradient is forward and backward of all the step's batches; their losses come side by side, so many.
func (t *Trainer) gradient(s *Stats) int {
	b := t.model.Backend()
	t.optimizer.begin()
	at := 0
	for i := range t.batches {
		t.tape.Reset()
		losses := t.objective(t.tape, &t.batches[i], 1/float64(s.Predicted))
		t.tape.Backward()
		for _, l := range losses {
			t.room(at+l.Len(), l.DType)
			b.Copy(t.losses.Narrow(at, at+l.Len()), l.Tensor)
			at += l.Len()
		}
	}
	t.tape.Reset()
	return at
}

// room makes the buffer of losses hold so many, and keeps what it holds.
func (t *Trainer) room(n int, d tensor.DType) {
	if t.losses.Len() >= n {
		return
	}
	b, old := t.model.Backend(), t.losses
	t.losses = b.Alloc(d, tensor.Of(max(n, 2*old.Len())))
	if old.Present() {
		b.Copy(t.losses.Narrow(0, old.Len()), old)
		b.Free(old)
	}
}

// compile has a backend that compiles kernels compile those of a step together, before the first. Nothing is computed.
func (t *Trainer) compile(s *Stats) error {
	c, ok := t.model.Backend().(backend.Compiler)
	if !ok || t.compiled {
		return nil
	}
	t.compiled = true
	return c.Compile(func() {
		n := t.gradient(s)
		t.model.Backend().Sum(t.losses.Narrow(0, n))
		t.optimizer.squaredNorm()
		t.optimizer.apply(1, 0, 0)
	}, t.Compiling)
}

// fetch gets the step's batches first, because the scale of each one's loss is the number of targets in all of them.
func (t *Trainer) fetch(s *Stats) error {
	for i := range t.batches {
		b := &t.batches[i]
		if err := t.source.Next(b); err != nil {
			return err
		}
		if err := t.model.Check(b); err != nil {
			return err
		}
		if len(b.Targets) == 0 {
			return fmt.Errorf("a batch without targets")
		}
		s.Tokens += len(b.Tokens)
		for _, id := range b.Targets {
			if id >= 0 {
				s.Predicted++
			}
		}
	}
	if s.Predicted == 0 {
		return fmt.Errorf("no token of the batch is to be predicted: are the documents single tokens?")
	}
	return nil
}
