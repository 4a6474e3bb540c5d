package train

import (
	"fmt"
	"math"
	"strings"

	"nha/autograd"
	"nha/model"
)

// Settings are what the loop needs to know, whatever the model and the data. The tag resume:"free" marks what may change from
// one start of a run to the next because no parameter depends on it.
type Settings struct {
	Steps               int                `toml:"steps" help:"optimiser steps; 0: from tokens, or 1000"`
	Accumulation        int                `toml:"accumulation" help:"batches whose gradients are added up in one step"`
	LearningRate        float64            `toml:"learning_rate" help:"peak learning rate"`
	Schedule            string             `toml:"schedule" help:"learning rate after the warm-up: cosine, wsd (constant, then linear decay) or constant"`
	Warmup              int                `toml:"warmup" help:"steps of linear warm-up; -1: a tenth of the steps, at most 100"`
	MinimumRatio        float64            `toml:"minimum_ratio" help:"learning rate at the end of cosine and wsd, as a part of the peak"`
	DecayFraction       float64            `toml:"decay_fraction" help:"part of the steps over which wsd decays"`
	Beta1               float64            `toml:"beta1" help:"AdamW's decay of the mean gradient"`
	Beta2               float64            `toml:"beta2" help:"AdamW's decay of the mean squared gradient"`
	Epsilon             float64            `toml:"epsilon" help:"AdamW's epsilon"`
	WeightDecay         float64            `toml:"weight_decay" help:"AdamW's decoupled weight decay, on matrices only"`
	Moments             string             `toml:"moments" help:"type of AdamW's moments: float32, or on a card bfloat16, in half the memory"`
	Clip                float64            `toml:"clip" help:"largest norm of the whole gradient; 0: no limit"`
	LearningRateFactors map[string]float64 `toml:"learning_rate_factors" help:"factors on the learning rate of the tensors whose name contains a pattern: f_proj=10"`
	Recompute           string             `toml:"recompute" resume:"free" help:"what backward computes again instead of keeping it: none, activations, blocks; empty: none on a card, activations elsewhere"`
	MaxSkipped          int                `toml:"max_skipped" resume:"free" help:"stop after so many steps in a row without a finite loss and gradient"`
	DivergeRatio        float64            `toml:"diverge_ratio" resume:"free" help:"stop when the smoothed loss stays above so many times its lowest; 0: go on"`
	DivergeSteps        int                `toml:"diverge_steps" resume:"free" help:"steps in a row that diverge_ratio waits"`
	ValidateEvery       int                `toml:"validate_every" resume:"free" help:"steps between validations; 0: at the end only"`
	CheckpointEvery     int                `toml:"checkpoint_every" resume:"free" help:"steps between checkpoints; 0: at the end only"`
	Keep                int                `toml:"keep" resume:"free" help:"checkpoints to keep, the last ones"`
	LogEvery            int                `toml:"log_every" resume:"free" help:"steps between lines of metrics.jsonl"`
}

// The schedules.
const (
	Cosine   = "cosine"
	WSD      = "wsd"
	Constant = "constant"
)

// The types of moments.
const (
	Float32  = "float32"
	BFloat16 = "bfloat16"
)

// recomputes are the values of Recompute.
var recomputes = map[string]autograd.Recompute{"none": autograd.RecomputeNothing, "activations": autograd.RecomputeActivations, "blocks": autograd.RecomputeBlocks}

// recompute is Recompute for a model: a card has the memory, and its steps are bound by it moving.
func (s *Settings) recompute(m *model.Model) autograd.Recompute {
	if r, ok := recomputes[s.Recompute]; ok {
		return r
	}
	if data, _ := m.Flat(); data.Address() != 0 {
		return autograd.RecomputeNothing
	}
	return autograd.RecomputeActivations
}

// DefaultSettings suit models of up to some tens of millions of parameters.
func DefaultSettings() Settings {
	return Settings{Accumulation: 1, LearningRate: 2e-3, Schedule: Cosine, Warmup: -1, MinimumRatio: 0.1, DecayFraction: 0.2, Beta1: 0.9,
		Beta2: 0.95, Epsilon: 1e-8, WeightDecay: 0.1, Moments: Float32, Clip: 1, MaxSkipped: 10, DivergeSteps: 100, ValidateEvery: 100, CheckpointEvery: 100, Keep: 2, LogEvery: 10}
}

// Resolve fills in what follows from the rest and checks the whole; its errors name the key.
func (s *Settings) Resolve() error {
	if s.Warmup == -1 {
		s.Warmup = min(100, s.Steps/10)
	}
	for _, k := range []struct {
		key            string
		value, minimum int
	}{{"steps", s.Steps, 1}, {"accumulation", s.Accumulation, 1}, {"warmup", s.Warmup, 0}, {"max_skipped", s.MaxSkipped, 1}, {"diverge_steps", s.DivergeSteps, 1},
		{"validate_every", s.ValidateEvery, 0}, {"checkpoint_every", s.CheckpointEvery, 0}, {"keep", s.Keep, 1}, {"log_every", s.LogEvery, 1}} {
		if k.value < k.minimum {
			return fmt.Errorf("%s %d: must be at least %d", k.key, k.value, k.minimum)
		}
	}
	for _, k := range []struct {
		key   string
		value float64
		ok    bool
		want  string
	}{
		{"learning_rate", s.LearningRate, s.LearningRate > 0, "positive"},
		{"minimum_ratio", s.MinimumRatio, s.MinimumRatio >= 0 && s.MinimumRatio <= 1, "between 0 and 1"},
		{"decay_fraction", s.DecayFraction, s.DecayFraction > 0 && s.DecayFraction <= 1, "above 0 and at most 1"},
		{"beta1", s.Beta1, s.Beta1 >= 0 && s.Beta1 < 1, "at least 0 and below 1"},
		{"beta2", s.Beta2, s.Beta2 >= 0 && s.Beta2 < 1, "at least 0 and below 1"},
		{"epsilon", s.Epsilon, s.Epsilon > 0, "positive"},
		{"weight_decay", s.WeightDecay, s.WeightDecay >= 0, "0 or more"},
		{"clip", s.Clip, s.Clip >= 0, "0 (no limit) or more"},
		{"diverge_ratio", s.DivergeRatio, s.DivergeRatio == 0 || s.DivergeRatio > 1, "0 (go on) or above 1"},
	} {
		if !k.ok || math.IsInf(k.value, 0) {
			return fmt.Errorf("%s %v: must be %s", k.key, k.value, k.want)
		}
	}
	switch s.Moments {
	case "":
		s.Moments = Float32
	case Float32:
	case BFloat16:
		if s.Beta2 > 0.99 {
			return fmt.Errorf("beta2 %v: with moments %s at most 0.99, since 8 bits do not see the smaller changes", s.Beta2, BFloat16)
		}
	default:
		return fmt.Errorf("unknown moments %q: use %s or %s", s.Moments, Float32, BFloat16)
	}
	if _, ok := recomputes[s.Recompute]; !ok && s.Recompute != "" {
		return fmt.Errorf("unknown recompute %q: use none, activations or blocks", s.Recompute)
	}
	for pattern, factor := range s.LearningRateFactors {
		if !(factor >= 0) || math.IsInf(factor, 0) {
			return fmt.Errorf("learning_rate_factors %q = %v: must be 0 (frozen) or more", pattern, factor)
		}
	}
	if s.Warmup > s.Steps {
		return fmt.Errorf("warmup %d: longer than the %d steps of the run", s.Warmup, s.Steps)
	}
	switch s.Schedule {
	case Cosine, Constant:
	case WSD:
		if decay := s.decaySteps(); s.Warmup+decay > s.Steps {
			return fmt.Errorf("warmup %d and decay_fraction %v (%d steps) do not fit into %d steps", s.Warmup, s.DecayFraction, decay, s.Steps)
		}
	default:
		return fmt.Errorf("unknown schedule %q: use %s", s.Schedule, strings.Join([]string{Cosine, WSD, Constant}, ", "))
	}
	return nil
}

func (s *Settings) decaySteps() int { return max(1, int(math.Round(s.DecayFraction*float64(s.Steps)))) }

// Rate is the learning rate of a step, counted from 1: a linear warm-up that reaches the peak at step Warmup, then
//
//	cosine    down to MinimumRatio at the last step along half a cosine
//	wsd       the peak, and a straight line down to MinimumRatio over the last DecayFraction of the steps
//	constant  the peak
func (s *Settings) Rate(step int) float64 {
	if step <= s.Warmup {
		return s.LearningRate * float64(step) / float64(s.Warmup)
	}
	left := 1.0
	switch s.Schedule {
	case Cosine:
		left = (1 + math.Cos(math.Pi*float64(step-s.Warmup)/float64(s.Steps-s.Warmup))) / 2
	case WSD:
		left = min(1, float64(s.Steps-step)/float64(s.decaySteps()))
	}
	return s.LearningRate * (s.MinimumRatio + (1-s.MinimumRatio)*left)
}

// due reports whether something done every n steps, and at the end, is due after step.
func (s *Settings) due(step, n int) bool { return step == s.Steps || n > 0 && step%n == 0 }
