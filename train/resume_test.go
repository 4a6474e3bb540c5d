package train

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A real process, killed at random moments and told to stop at others, ends with the bits of one left in peace. Two of three
// moments lie where a checkpoint is being written.
func TestKilledRunResumesExactly(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows has no SIGTERM")
	}
	peace, dir := reference(t), newDir(t)
	seed := uint64(time.Now().UnixNano())
	r := rand.New(rand.NewPCG(seed, 0))
	killed, stopped, torn := 0, 0, 0
	signals := []syscall.Signal{syscall.SIGKILL, syscall.SIGKILL, syscall.SIGTERM, syscall.SIGKILL, syscall.SIGTERM, syscall.SIGKILL}
	for start := 0; ; start++ {
		c := exec.Command(os.Args[0])
		c.Env = append(os.Environ(), child+"="+dir)
		var stderr bytes.Buffer
		c.Stderr = &stderr
		stdout, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		lines, moment := bufio.NewScanner(stdout), 1+r.IntN(8)
		for n := 0; lines.Scan(); {
			step, err := strconv.Atoi(lines.Text())
			if err != nil {
				t.Fatalf("the child said %q", lines.Text())
			}
			if n++; start < len(signals) && n >= moment && (start%3 == 0 || step%checkpointEvery == 0) {
				time.Sleep(time.Duration(r.IntN(8000)) * time.Microsecond)
				if err := c.Process.Signal(signals[start]); err != nil {
					t.Fatal(err)
				}
				break
			}
		}
		io.Copy(io.Discard, stdout)
		err = c.Wait()
		var exit *exec.ExitError
		switch errors.As(err, &exit); {
		case err == nil:
		case exit == nil || start >= len(signals):
			t.Fatalf("seed %d: %v: %s", seed, err, stderr.String())
		case signals[start] == syscall.SIGKILL && exit.Sys().(syscall.WaitStatus).Signaled():
			killed++
			if left, _ := filepath.Glob(filepath.Join(dir, "run", checkpointsDir, ".*")); len(left) > 0 {
				torn++
			}
			continue
		case signals[start] == syscall.SIGTERM && exit.ExitCode() == 130:
			stopped++
			if !strings.Contains(stderr.String(), "nha train --resume "+filepath.Join(dir, "run")) {
				t.Errorf("said %q", stderr.String())
			}
			continue
		default:
			t.Fatalf("seed %d: %v: %s", seed, err, stderr.String())
		}
		break // it came to its end
	}
	t.Logf("seed %d: killed %d times (%d in the middle of a checkpoint), stopped %d times", seed, killed, torn, stopped)
	if killed < 2 || stopped < 1 {
		t.Errorf("seed %d: killed %d times, stopped %d times: too few", seed, killed, stopped)
	}
	sameEnd(t, peace, filepath.Join(dir, "run"))
	if left, _ := filepath.Glob(filepath.Join(dir, "run", "*", ".*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// stopAt cancels a run after a step, counted over Step, or when validation begins to report.
type stopAt struct {
	silent
	step   int
	cancel context.CancelFunc
}

func (s stopAt) Step(r Report) {
	if r.Line.Step == s.step {
		s.cancel()
	}
}

func interrupted(t *testing.T, o Options, after int) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	r, err := Run(ctx, o, stopAt{step: after, cancel: cancel})
	if !errors.Is(err, ErrInterrupted) || r.Steps != after {
		t.Fatalf("stopped after step %d: %v", r.Steps, err)
	}
}

// Stopping after every sort of step: plain, logged, validated, with a checkpoint.
func TestInterruptedRunResumesExactly(t *testing.T) {
	peace, dir := reference(t), newDir(t)
	o := textOptions(dir)
	for _, after := range []int{1, 8, 10, 12, 30, 39} {
		interrupted(t, o, after)
		o.Resume = true
	}
	mustRun(t, o)
	sameEnd(t, peace, o.Out)
}

// Cancelled while validating: the step's validation and line come after the resumption.
func TestInterruptedValidation(t *testing.T) {
	peace, dir := reference(t), newDir(t)
	for _, at := range []int{20, runSteps} {
		o := textOptions(dir)
		o.Out += fmt.Sprint(at)
		l, end := begin(t, o)
		ctx, cancel := context.WithCancel(context.Background())
		validate := l.Validate
		l.Validate = func(ctx context.Context) (Validation, error) {
			if l.Trainer.Done() == at {
				cancel()
			}
			return validate(ctx)
		}
		r, err := l.Run(ctx)
		if !errors.Is(err, ErrInterrupted) || r.Steps != at {
			t.Fatalf("stopped after step %d: %v", r.Steps, err)
		}
		end()
		for _, line := range readMetrics(t, o.Out) {
			if line.Step >= at {
				t.Errorf("a line for step %d, which was never validated", line.Step)
			}
		}
		// A second start that is killed before its first checkpoint has written the line already.
		m, err := openMetrics(o.Out, at)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.add(Line{Step: at}); err != nil {
			t.Fatal(err)
		}
		m.file.Close()
		o.Resume = true
		mustRun(t, o)
		sameEnd(t, peace, o.Out)
	}
}

// begin is Run up to its first step.
func begin(t *testing.T, o Options) (*Loop, func()) {
	t.Helper()
	l, end, err := o.begin(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return l, end
}

// The metrics of a killed run lose what lies after its checkpoint, and a torn line.
func TestMetricsAreCutBack(t *testing.T) {
	dir := t.TempDir()
	var text strings.Builder
	for i := 1; i <= 5; i++ {
		line, err := json.Marshal(Line{Step: i, Loss: 1})
		if err != nil {
			t.Fatal(err)
		}
		text.Write(append(line, '\n'))
	}
	path := filepath.Join(dir, metricsFile)
	for _, torn := range []string{"", `{"step": 4, "los`, "\x00\x00\x00"} {
		if err := os.WriteFile(path, []byte(text.String()+torn), 0o644); err != nil {
			t.Fatal(err)
		}
		m, err := openMetrics(dir, 3)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.add(Line{Step: 4}); err != nil {
			t.Fatal(err)
		}
		m.file.Close()
		if l := readMetrics(t, dir); len(l) != 4 || l[3].Step != 4 {
			t.Errorf("%d lines", len(l))
		}
	}
}

// A resumed run must be the run that was started; the error names the key that differs.
func TestResumeRefusesAnotherRun(t *testing.T) {
	dir := newDir(t)
	o := textOptions(dir)
	interrupted(t, o, 5)
	checkpoint := filepath.Join(o.Out, checkpointsDir, "step-00000005")
	before, err := os.ReadFile(filepath.Join(checkpoint, trainerFile))
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "text.txt"))
	if err != nil {
		t.Fatal(err)
	}
	another := filepath.Join(dir, "another.txt")
	if err := os.WriteFile(another, append(text, "and more"...), 0o644); err != nil {
		t.Fatal(err)
	}
	otherTokenizer := t.TempDir()
	for _, c := range []struct {
		change func(*Options)
		want   string
	}{
		{func(o *Options) { o.LearningRate = 1 }, `learning_rate is "1", the run was started with "0.002"`},
		{func(o *Options) { o.HiddenSize = 32 }, `hidden_size is "32"`},
		{func(o *Options) { o.Windows = "8" }, "layer_windows"},
		{func(o *Options) { o.Preset, o.Windows = "transformer", "" }, "is"},
		{func(o *Options) { o.Data = []string{another} }, "data is"},
		{func(o *Options) { o.HeldOut = 0.2 }, "data is"},
		{func(o *Options) { o.Context = 8 }, `context is "8"`},
		{func(o *Options) { o.Batch = 3 }, `batch is "3"`},
		{func(o *Options) { o.Accumulation = 1 }, `accumulation is "1"`},
		{func(o *Options) { o.Seed = 9 }, "seed"},
		{func(o *Options) { o.Steps = 70 }, `steps is "70"`},
		{func(o *Options) { o.LearningRateFactors = map[string]float64{"f_proj": 10} }, `learning_rate_factors is "f_proj=10"`},
		{func(o *Options) { o.Tokenizer = otherTokenizer }, "tokenizer"},
	} {
		changed := textOptions(dir)
		changed.Resume = true
		c.change(&changed)
		if _, err := Run(context.Background(), changed, nil); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("error %v, want one with %q", err, c.want)
		} else if c.want != "tokenizer" && !strings.Contains(err.Error(), "a new run with model "+checkpoint) {
			t.Errorf("error %v does not say what to do", err)
		}
	}
	after, err := os.ReadFile(filepath.Join(checkpoint, trainerFile))
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("the checkpoint was touched (%v)", err)
	}
	// What no parameter depends on may change.
	free := textOptions(dir)
	free.Resume, free.LogEvery, free.ValidateEvery, free.Keep, free.CheckpointEvery = true, 1, 0, 1, 50
	mustRun(t, free)
	list, err := Checkpoints(free.Out)
	if err != nil || len(list) != 1 {
		t.Errorf("checkpoints %v (%v)", list, err)
	}
}

// A run of constant rate may be made longer: as if it had been from the beginning.
func TestLongerRun(t *testing.T) {
	peace, dir := newDir(t), newDir(t)
	long := textOptions(peace)
	long.Schedule, long.Warmup, long.Steps = Constant, 2, 20
	mustRun(t, long)
	o := textOptions(dir)
	o.Schedule, o.Warmup, o.Steps = Constant, 2, 10
	mustRun(t, o)
	o.Resume, o.Steps = true, 20
	mustRun(t, o)
	sameEnd(t, long.Out, o.Out)
	o.Steps = 15
	if _, err := Run(context.Background(), o, nil); err == nil || !strings.Contains(err.Error(), "steps is 15, the run has done 20") {
		t.Errorf("error %v", err)
	}
}

// Damaged checkpoints are errors that name the file.
func TestDamagedCheckpoint(t *testing.T) {
	o := textOptions(newDir(t))
	o.Steps = 8
	interrupted(t, o, 5)
	o.Resume = true
	dir := filepath.Join(o.Out, checkpointsDir, "step-00000005")
	for _, name := range []string{trainerFile, optimizerFile, "model.safetensors", "config.json"} {
		path := filepath.Join(dir, name)
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, damage := range [][]byte{whole[:len(whole)/2], nil} {
			if err := os.WriteFile(path, damage, 0o644); err != nil {
				t.Fatal(err)
			}
			if _, err := Run(context.Background(), o, nil); err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("%s of %d bytes: error %v", name, len(damage), err)
			}
		}
		if err := os.WriteFile(path, whole, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	mustRun(t, o)
}

// The reference computes in float64 and stores float32: its checkpoints hold what rounding would lose.
func TestExactResumeOfAWiderBackend(t *testing.T) {
	peace, dir := newDir(t), newDir(t)
	narrow := func(dir string) Options {
		o := textOptions(dir)
		o.Backend, o.Steps, o.Warmup, o.Accumulation, o.Batch, o.ValidateBatches = "ref", 6, 1, 1, 1, 1
		return o
	}
	mustRun(t, narrow(peace))
	o := narrow(dir)
	interrupted(t, o, 4)
	o.Resume = true
	mustRun(t, o)
	name := filepath.Join("run", checkpointsDir, "step-00000006", optimizerFile)
	x, err := os.ReadFile(filepath.Join(peace, name))
	if err != nil {
		t.Fatal(err)
	}
	y, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil || !bytes.Equal(x, y) {
		t.Errorf("not the same bits (%v)", err)
	}
}

// A run goes on on another backend, and says so.
type notices struct {
	silent
	list *[]string
}

func (n notices) Notice(s string) { *n.list = append(*n.list, s) }

func TestAnotherBackendIsNoticed(t *testing.T) {
	o := textOptions(newDir(t))
	o.Steps, o.Backend = 8, "cpu" // which is another one with other threads
	interrupted(t, o, 4)
	o.Resume, o.Threads = true, 1
	var list []string
	if _, err := Run(context.Background(), o, notices{list: &list}); err != nil {
		t.Fatal(err)
	}
	if len(list) != 1 || !strings.Contains(list[0], "may differ in rounding") {
		t.Errorf("notices %q", list)
	}
}
