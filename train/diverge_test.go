package train

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
)

// TestCourse: what is above the ratio for too long ends it, what comes back or is near zero does not.
func TestCourse(t *testing.T) {
	s := DefaultSettings()
	s.DivergeRatio, s.DivergeSteps = 2, 5
	ends := func(loss func(step int) float64) (int, error) {
		var c course
		for step := range 400 {
			if err := c.see(loss(step), &s); err != nil {
				return step, err
			}
		}
		return -1, nil
	}
	step, err := ends(func(step int) float64 {
		if step < 100 {
			return 1
		}
		return 3
	})
	// smoothed is 3 - 2 .95^n after n steps at 3, above 2 from n = 14 on; the fifth of these is n = 18.
	if step != 100+18-1 || !errors.Is(err, errDiverged) || !strings.Contains(err.Error(), "for 5 steps") || !strings.Contains(err.Error(), "lower learning_rate (0.002)") {
		t.Errorf("step %d: %v", step, err)
	}
	for name, loss := range map[string]func(int) float64{
		"a spike":   func(step int) float64 { return map[bool]float64{true: 20, false: 1}[step == 100] },
		"near zero": func(step int) float64 { return 1e-6 * float64(step) },
		"falling":   func(step int) float64 { return 5 / float64(step+1) },
	} {
		if step, err := ends(loss); err != nil {
			t.Errorf("%s: step %d: %v", name, step, err)
		}
	}
	s.DivergeRatio = 0
	if _, err := ends(func(step int) float64 { return float64(1 + step) }); err != nil {
		t.Errorf("without a ratio: %v", err)
	}
	s.DivergeRatio, s.Steps = 0.5, 10
	if err := s.Resolve(); err == nil || !strings.Contains(err.Error(), "diverge_ratio 0.5") {
		t.Errorf("ratio 0.5: %v", err)
	}
}

// TestDivergingRunStops, whether it was interrupted while the loss was above or not, and keeps the checkpoint before.
func TestDivergingRunStops(t *testing.T) {
	wild := func() Options {
		o := textOptions(newDir(t))
		o.Steps, o.CheckpointEvery, o.Keep, o.ValidateEvery, o.LearningRate, o.Clip, o.Warmup, o.Schedule = 60, 2, 1, 0, 5, 0, 4, Constant
		o.DivergeRatio, o.DivergeSteps = 1.05, 8
		return o
	}
	o := wild()
	want, err := Run(context.Background(), o, nil)
	if !errors.Is(err, errDiverged) || want.Steps < 8 || want.Steps == 60 {
		t.Fatalf("after step %d: %v", want.Steps, err)
	}
	list, _ := Checkpoints(o.Out)
	if len(list) != 2 || !strings.Contains(err.Error(), "the last good checkpoint is "+list[0]) {
		t.Errorf("checkpoints %v: %v", list, err)
	}
	if _, err := os.Stat(list[0]); err != nil {
		t.Error(err)
	}
	again := wild()
	for _, after := range []int{2, want.Steps - 5, want.Steps - 2} {
		interrupted(t, again, after)
		again.Resume = true
	}
	r, second := Run(context.Background(), again, nil)
	if !errors.Is(second, errDiverged) || r.Steps != want.Steps || strings.ReplaceAll(second.Error(), again.Out, o.Out) != err.Error() {
		t.Errorf("interrupted: after step %d: %v; not interrupted: after step %d: %v", r.Steps, second, want.Steps, err)
	}
}
