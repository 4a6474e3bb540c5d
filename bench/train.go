package bench

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"nha/backend"
	"nha/model"
	"nha/train"
)

// Train measures steps of training on random tokens: forward, backward, clipping, AdamW.
type Train struct {
	Models []string // presets
	Size   ModelSize
	Timing
	Recompute, Moments string                 // as in train.Settings
	Profile            func([]backend.OpTime) // where set, and where the backend can, told how one step more divides
	peak               Shape                  // of the product that is the peak; tests take a smaller one
}

// TrainResult is one model. MFU is 6 N tokens/s over the published peak of the machine's products where the backend knows it,
// else over the best product of 2048 cubed in the same process; N is all parameters, attention's own products are not counted.
// PeakBytes is the growth of resident memory that training brings (gradients, moments, activations): its peak less what it was before
// the model was made, less the parameters; on a device, what the trainer holds there. FirstStepS is the time from nothing to the end of the first step.
type TrainResult struct {
	Backend         string  `json:"backend"`
	Model           string  `json:"model"`
	Parameters      int     `json:"parameters"`
	Batch           int     `json:"batch"`
	Context         int     `json:"context"`
	TokensPerSecond float64 `json:"tokens_per_s"`
	StepMS          float64 `json:"step_ms"`
	MFU             float64 `json:"mfu"`
	PeakBytes       int     `json:"peak_bytes"`
	FirstStepS      float64 `json:"first_step_s"`
	PeakGFLOPS      float64 `json:"peak_gflops"`
}

// Check refuses models and batches that are none.
func (o *Train) Check() error {
	if len(o.Models) == 0 {
		return fmt.Errorf("model: give at least one preset")
	}
	for _, name := range o.Models {
		if _, err := o.Size.config(name); err != nil {
			return err
		}
	}
	for _, err := range []error{positive("batch", []int{o.Size.Batch}, 1), positive("context", []int{o.Size.Context}, 1),
		fits("the batch", product(o.Size.Batch, o.Size.Context, o.Size.HiddenSize, o.Size.Layers)), o.Timing.Check()} {
		if err != nil {
			return err
		}
	}
	return nil
}

// Run measures every model.
func (o *Train) Run(ctx context.Context, b backend.Backend, emit Emit) error {
	gflops := 0.0
	for _, name := range o.Models {
		row, err := o.measure(ctx, b, name)
		if err != nil {
			return err
		}
		if r, ok := b.(backend.Rated); ok {
			gflops = r.Peak() / 1e9
		}
		if gflops == 0 { // after a training, whose memory it would blur
			if gflops, err = peak(ctx, b, cmp.Or(o.peak, peakShape), o.Timing); err != nil {
				return err
			}
		}
		row.PeakGFLOPS, row.MFU = gflops, 6*float64(row.Parameters)*row.TokensPerSecond/(gflops*1e9)
		if err := emit(row); err != nil {
			return err
		}
	}
	return nil
}

func (o *Train) measure(ctx context.Context, b backend.Backend, name string) (TrainResult, error) {
	settle()
	before, _, measured := resident()
	start := time.Now()
	c, err := o.Size.config(name)
	if err != nil {
		return TrainResult{}, err
	}
	m, err := model.New(c, b, model.Init{Seed: 1})
	if err != nil {
		return TrainResult{}, err
	}
	defer m.Close()
	settings := train.DefaultSettings()
	settings.Steps, settings.Schedule, settings.Warmup = 1<<30, train.Constant, 0
	settings.Recompute, settings.Moments = o.Recompute, o.Moments
	source := train.NewAhead(&randomSource{vocabulary: c.VocabSize, batch: o.Size.Batch, context: o.Size.Context, r: rand.New(rand.NewPCG(1, 1))})
	defer source.Close()
	t, err := train.NewTrainer(m, settings, source)
	if err != nil {
		return TrainResult{}, err
	}
	defer t.Close()
	settle()
	if _, err := t.Step(); err != nil {
		return TrainResult{}, err
	}
	first := time.Since(start).Seconds()
	var failure error
	seconds, err := o.median(ctx, func() {
		if _, err := t.Step(); err != nil {
			failure = err
		}
	})
	if err != nil || failure != nil {
		return TrainResult{}, fmt.Errorf("%s: %w", name, errors.Join(failure, err))
	}
	if p, ok := b.(backend.Profiler); ok && o.Profile != nil {
		o.Profile(p.Profile(func() { _, failure = t.Step() }))
	}
	if failure != nil {
		return TrainResult{}, fmt.Errorf("%s: %w", name, failure)
	}
	parameters, tokens := c.Account(1).Parameters, o.Size.Batch*o.Size.Context
	data, _ := m.Flat()
	grown := t.Bytes() - data.Len()*data.DType.Size()
	if measured && data.Address() == 0 { // the backend's memory is this process's
		_, high, _ := resident()
		grown = high - before - data.Len()*data.DType.Size()
	}
	return TrainResult{Backend: b.Name(), Model: name, Parameters: parameters, Batch: o.Size.Batch, Context: o.Size.Context,
		TokensPerSecond: float64(tokens) / seconds, StepMS: seconds * 1e3, PeakBytes: grown, FirstStepS: first}, nil
}

// randomSource is batches of random tokens, each of which is to be predicted from those before it.
type randomSource struct {
	vocabulary, batch, context int
	r                          *rand.Rand
}

func (s *randomSource) Next(b *model.Batch) error {
	b.Tokens, b.Targets, b.Lengths = b.Tokens[:0], b.Targets[:0], b.Lengths[:0]
	for range s.batch {
		b.Lengths = append(b.Lengths, s.context)
		next := s.r.Int32N(int32(s.vocabulary))
		for range s.context {
			b.Tokens = append(b.Tokens, next)
			next = s.r.Int32N(int32(s.vocabulary))
			b.Targets = append(b.Targets, next)
		}
	}
	return nil
}

// State and Restore are no part of a measurement: it never stops to go on.
func (s *randomSource) State() (json.RawMessage, error) {
	return nil, fmt.Errorf("random tokens have no state")
}
func (s *randomSource) Restore(json.RawMessage) error {
	return fmt.Errorf("random tokens have no state")
}
