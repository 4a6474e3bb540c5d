package train

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"time"
)

// Loop runs a Trainer to the end of its steps in a run directory.
type Loop struct {
	Trainer *Trainer
	Dir     string // must exist

	// Validate measures the model as it is; nil: no validation. It may return the context's error.
	Validate func(context.Context) (Validation, error)
	// SaveTokenizer writes the tokenizer's files into a model directory; nil: there is none.
	SaveTokenizer func(dir string) error
	// Identity is everything beside the state of the Source that makes the result what it is: a run that is resumed under
	// another one is refused, with the name of the key.
	Identity map[string]string
	Reporter Reporter // nil: nobody

	state   trainerState
	metrics *metrics
	saved   int       // step of the last checkpoint
	started time.Time // of this process' part
	before  float64   // seconds of the parts before
	first   int       // step at which this part began
	drawn   time.Time // the curve
}

// redrawCurve is how often the curve is drawn at most: it takes as long as many steps of a small model.
const redrawCurve = 10 * time.Second

// Validation is a model's loss on text held out, in nats per token, and in bits per byte of the text (NaN: unknown).
type Validation struct {
	Loss        Number `json:"loss"`
	BitsPerByte Number `json:"bits_per_byte"`
}

// Result is how a run ended.
type Result struct {
	Dir        string
	Steps      int
	Tokens     int64
	Skipped    int
	Loss       float64    // of the last line of metrics
	Validation Validation // the last one; NaN where there was none
	Elapsed    time.Duration
}

// ErrInterrupted is the error of a run that stopped because its context was cancelled, with everything saved.
var ErrInterrupted = errors.New("interrupted")

// Restore reads the last checkpoint of Dir into the Trainer, whose model has been loaded from it, and its Source. Without
// a checkpoint the run begins. It must come before Run and not twice.
func (l *Loop) Restore() error {
	list, err := Checkpoints(l.Dir)
	if err != nil || len(list) == 0 {
		return err
	}
	dir := list[len(list)-1]
	s, err := readTrainerState(filepath.Join(dir, trainerFile))
	if err != nil {
		return err
	}
	if d := differs(s.Identity, l.Identity); d != "" {
		return fmt.Errorf("cannot resume %s: %s; to train its model on under other settings, start a new run with model %s", l.Dir, d, dir)
	}
	if steps := l.Trainer.settings.Steps; s.Step > steps {
		return fmt.Errorf("cannot resume %s: steps is %d, the run has done %d", l.Dir, steps, s.Step)
	}
	if err := l.Trainer.loadTensors(filepath.Join(dir, optimizerFile)); err != nil {
		return err
	}
	if err := l.Trainer.source.Restore(s.Source); err != nil {
		return fmt.Errorf("cannot resume %s: %w", l.Dir, err)
	}
	if m := l.machine(); s.Machine != m {
		l.reporter().Notice(fmt.Sprintf("the run was on %s and goes on on %s: the result may differ in rounding", s.Machine, m))
	}
	l.state, l.Trainer.progress, l.saved = *s, s.progress, s.Step
	return nil
}

func (l *Loop) machine() string {
	b := l.Trainer.model.Backend()
	return b.Name() + ": " + b.Describe()
}

func (l *Loop) reporter() Reporter {
	if l.Reporter == nil {
		return silent{}
	}
	return l.Reporter
}

// Run trains until the last step, or until ctx is cancelled: then the step at work is finished, everything is saved and the
// error is ErrInterrupted. At the end the model is in Dir itself.
func (l *Loop) Run(ctx context.Context) (Result, error) {
	t := l.Trainer
	last := t.progress.Step
	if l.state.Pending != nil {
		last-- // its line is written again
	}
	var err error
	if l.metrics, err = openMetrics(l.Dir, last); err != nil {
		return Result{}, err
	}
	defer l.metrics.file.Close()
	if err := os.MkdirAll(filepath.Join(l.Dir, checkpointsDir), 0o777); err != nil {
		return Result{}, err
	}
	l.started, l.before, l.first = time.Now(), l.state.Seconds, t.progress.Step
	steps := t.settings.Steps
	for {
		if l.state.Pending != nil && ctx.Err() == nil {
			if err := l.after(ctx, l.state.Pending); err != nil {
				return l.result(), err
			}
		}
		done, s := t.progress.Step, &t.settings
		if ctx.Err() != nil || done > 0 && (done == steps || s.CheckpointEvery > 0 && done%s.CheckpointEvery == 0) {
			if err := l.checkpoint(); err != nil {
				return l.result(), l.failed(fmt.Errorf("checkpoint of step %d: %w", done, err))
			}
		}
		if ctx.Err() != nil {
			return l.result(), fmt.Errorf("%w after step %d of %d: everything is saved in %s", ErrInterrupted, done, steps, l.Dir)
		}
		if done >= steps {
			break
		}
		began := time.Now()
		stats, err := t.Step()
		if err != nil {
			return l.result(), l.failed(err)
		}
		l.state.Interval.add(stats, time.Since(began).Seconds())
		l.state.Pending = &stats
	}
	if err := l.metrics.curve(l.Dir); err != nil {
		return l.result(), err
	}
	return l.result(), l.saveModel(l.Dir)
}

// failed says where the last good state is.
func (l *Loop) failed(err error) error {
	if best := l.state.Best.Step; best > 0 && errors.Is(err, errDiverged) {
		return fmt.Errorf("%w; the last good checkpoint is %s", err, l.path(best))
	}
	if l.saved == 0 {
		return err
	}
	return fmt.Errorf("%w; the last checkpoint is %s", err, l.path(l.saved))
}

// path is the checkpoint of a step.
func (l *Loop) path(step int) string {
	return filepath.Join(l.Dir, checkpointsDir, fmt.Sprintf(stepPattern, step))
}

// after is what follows a step: validation, a line of metrics, a report. When ctx is cancelled in the middle, nothing of it
// has happened.
func (l *Loop) after(ctx context.Context, stats *Stats) error {
	t, s := l.Trainer, &l.Trainer.settings
	validation := Validation{Number(math.NaN()), Number(math.NaN())}
	validated := l.Validate != nil && s.due(stats.Step, s.ValidateEvery)
	if validated {
		var err error
		if validation, err = l.Validate(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("validation after step %d: %w", stats.Step, err)
		}
		l.state.Last = &validation
	}
	logged := validated || s.due(stats.Step, s.LogEvery)
	i := &l.state.Interval
	line := Line{Step: stats.Step, Tokens: t.progress.Tokens, Loss: stats.Loss, ValidationLoss: validation.Loss, BitsPerByte: validation.BitsPerByte,
		LearningRate: stats.LearningRate, GradientNorm: stats.GradientNorm, TokensPerS: Number(float64(i.Tokens) / i.Seconds),
		Skipped: t.progress.Skipped, Elapsed: l.elapsed()}
	if logged {
		line.Loss = Number(i.Loss / float64(i.Predicted)) // NaN when all steps were skipped
		if err := l.metrics.add(line); err != nil {
			return err
		}
		*i = interval{}
	}
	l.state.Pending = nil
	perStep := time.Since(l.started) / time.Duration(max(1, stats.Step-l.first))
	l.reporter().Step(Report{Line: line, Logged: logged, Steps: s.Steps, Memory: t.Bytes(), Remaining: perStep * time.Duration(s.Steps-stats.Step)})
	return nil
}

func (l *Loop) elapsed() float64 { return l.before + time.Since(l.started).Seconds() }

func (l *Loop) result() Result {
	nan := Number(math.NaN())
	r := Result{Dir: l.Dir, Steps: l.Trainer.progress.Step, Tokens: l.Trainer.progress.Tokens, Skipped: l.Trainer.progress.Skipped, Loss: math.NaN(),
		Validation: Validation{nan, nan}, Elapsed: time.Duration(l.elapsed() * float64(time.Second))}
	if n := len(l.metrics.lines); n > 0 {
		r.Loss = float64(l.metrics.lines[n-1].Loss)
	}
	if l.state.Last != nil {
		r.Validation = *l.state.Last
	}
	return r
}

// checkpoint saves the state after the last step, once, and removes checkpoints that are no longer kept. The metrics go to the
// disk first: a resumed run finds every line that the checkpoint counts as written.
func (l *Loop) checkpoint() error {
	t := l.Trainer
	step := t.progress.Step
	if step == l.saved {
		return nil
	}
	if err := l.metrics.file.Sync(); err != nil {
		return err
	}
	if step < t.settings.Steps && time.Since(l.drawn) > redrawCurve { // the last one comes after this
		if err := l.metrics.curve(l.Dir); err != nil {
			return err
		}
		l.drawn = time.Now()
	}
	if t.settings.DivergeRatio > 0 && t.progress.Losses > 0 && (l.state.Best.Step == 0 || t.progress.Smoothed <= l.state.Best.Loss) {
		l.state.Best = best{step, t.progress.Smoothed}
	}
	s := l.state
	s.Version, s.progress, s.Seconds, s.Identity, s.Machine = trainerVersion, t.progress, l.elapsed(), l.Identity, l.machine()
	var err error
	if s.Source, err = t.source.State(); err != nil {
		return err
	}
	if s.Model, err = json.Marshal(t.model.Config); err != nil {
		return err
	}
	err = writeDir(l.path(step), func(dir string) error {
		if err := l.saveModel(dir); err != nil {
			return err
		}
		if err := t.saveTensors(filepath.Join(dir, optimizerFile)); err != nil {
			return err
		}
		return s.write(filepath.Join(dir, trainerFile))
	})
	if err != nil {
		return err
	}
	l.saved = step
	list, err := Checkpoints(l.Dir)
	if err != nil {
		return err
	}
	for _, old := range list[:max(0, len(list)-t.settings.Keep)] {
		if old == l.path(l.state.Best.Step) {
			continue
		}
		if err := removeDir(old); err != nil {
			return fmt.Errorf("remove an old checkpoint: %w", err)
		}
	}
	return nil
}

func (l *Loop) saveModel(dir string) error {
	if l.SaveTokenizer != nil {
		if err := l.SaveTokenizer(dir); err != nil {
			return err
		}
	}
	return l.Trainer.model.Save(dir)
}
