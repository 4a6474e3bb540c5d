package train

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"image/png"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"nha/model"
)

// child is the variable that makes the test binary a training run: the directory of the run.
const child = "NHA_TRAIN_TEST_RUN"

func TestMain(m *testing.M) {
	dir := os.Getenv(child)
	if dir == "" {
		code := m.Run()
		os.RemoveAll(referenceDir)
		os.Exit(code)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	o, err := ResumeOptions(filepath.Join(dir, "run"))
	if err != nil {
		o = textOptions(dir)
	}
	_, err = Run(ctx, o, steps{})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	if errors.Is(err, ErrInterrupted) {
		os.Exit(130)
	}
	if err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

// steps is the Reporter of a child: a line for every step.
type steps struct{ silent }

func (steps) Step(r Report) { fmt.Println(r.Line.Step) }

const (
	runSteps        = 40
	checkpointEvery = 6
)

// textOptions is a run of a tiny model over a text in dir, which writes checkpoints all the time.
func textOptions(dir string) Options {
	o := DefaultOptions()
	o.Out, o.Data, o.Cache = filepath.Join(dir, "run"), []string{filepath.Join(dir, "text.txt")}, filepath.Join(dir, "cache")
	o.HiddenSize, o.Layers, o.Heads, o.Slots, o.IntermediateSize, o.Windows = 16, 1, 2, 4, 32, "4"
	o.Context, o.Batch, o.Accumulation, o.HeldOut, o.ValidateBatches = 16, 2, 2, 0.1, 3
	o.Steps, o.ValidateEvery, o.CheckpointEvery, o.LogEvery, o.Threads = runSteps, 10, checkpointEvery, 4, 2
	o.Backend = cmp.Or(os.Getenv("NHA_BACKEND"), "cpu") // a card's runs are stopped and resumed by the same tests
	return o
}

// newDir is a directory with a text in it.
func newDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(memory(), "nha-train-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return fill(t, dir)
}

// memory is a file system in memory where there is one, "" elsewhere: forcing hundreds of small files to a busy disk takes
// longer than all the rest of these tests.
func memory() string {
	if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() {
		return "/dev/shm"
	}
	return ""
}

func fill(t *testing.T, dir string) string {
	t.Helper()
	r := rand.New(rand.NewPCG(1, 2))
	words := []string{"the", "window", "slot", "remembers", "forgets", "a", "token", "that", "leaves", "softmax", "\n"}
	var b strings.Builder
	for b.Len() < 20_000 {
		b.WriteString(words[r.IntN(len(words))] + " ")
	}
	if err := os.WriteFile(filepath.Join(dir, "text.txt"), []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

var referenceDir string

// reference is the run directory of textOptions left in peace, made once.
func reference(t *testing.T) string {
	t.Helper()
	if referenceDir == "" {
		dir, err := os.MkdirTemp(memory(), "nha-train-")
		if err != nil {
			t.Fatal(err)
		}
		referenceDir = dir
		mustRun(t, textOptions(fill(t, dir)))
	}
	return filepath.Join(referenceDir, "run")
}

func mustRun(t *testing.T, o Options) Result {
	t.Helper()
	r, err := Run(context.Background(), o, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// sameEnd fails unless two run directories ended with the same model, moments and metrics (times apart).
func sameEnd(t *testing.T, a, b string) {
	t.Helper()
	list, err := Checkpoints(a)
	if err != nil || len(list) != 2 {
		t.Fatalf("checkpoints %v (%v), want the last 2", list, err)
	}
	last := filepath.Join(checkpointsDir, filepath.Base(list[1]))
	for _, name := range []string{"model.safetensors", "config.json", "tokenizer.json", "generation_config.json", filepath.Join(last, "model.safetensors"), filepath.Join(last, optimizerFile)} {
		x, err := os.ReadFile(filepath.Join(a, name))
		if err != nil {
			t.Fatal(err)
		}
		y, err := os.ReadFile(filepath.Join(b, name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(x, y) {
			t.Errorf("%s differs", name)
		}
	}
	x, y := readMetrics(t, a), readMetrics(t, b)
	if len(x) != len(y) {
		t.Fatalf("%d and %d lines of metrics", len(x), len(y))
	}
	for i := range x {
		for _, l := range []*Line{&x[i], &y[i]} {
			l.TokensPerS, l.Elapsed = 0, 0
		}
		if g, w := fmt.Sprint(x[i]), fmt.Sprint(y[i]); g != w {
			t.Errorf("metrics: %s and %s", g, w)
		}
	}
	for _, dir := range []string{a, b} {
		list, err := Checkpoints(dir)
		if err != nil || len(list) != 2 {
			t.Errorf("checkpoints %v (%v), want the last 2", list, err)
		}
	}
}

func readMetrics(t *testing.T, dir string) []Line {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, metricsFile))
	if err != nil {
		t.Fatal(err)
	}
	var list []Line
	for _, line := range strings.Split(strings.TrimSuffix(string(text), "\n"), "\n") {
		var l Line
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		list = append(list, l)
	}
	return list
}

// A whole run leaves what it promises, and learns.
func TestRun(t *testing.T) {
	dir := newDir(t)
	o := textOptions(dir)
	var out bytes.Buffer
	r, err := Run(context.Background(), o, &Text{W: &out})
	if err != nil {
		t.Fatal(err)
	}
	if r.Steps != runSteps || r.Tokens != runSteps*64 || r.Skipped != 0 || !(r.Validation.Loss < 5) || !(r.Validation.BitsPerByte > 1) {
		t.Errorf("%+v", r)
	}
	lines := readMetrics(t, o.Out)
	if first, last := lines[0], lines[len(lines)-1]; first.Step != 4 || last.Step != runSteps || last.Loss >= first.Loss-0.5 || !(last.ValidationLoss > 0) || last.Tokens != r.Tokens {
		t.Errorf("metrics from %+v to %+v", first, last)
	}
	// In bytes, bits per byte are the loss but for the end-of-text token.
	if ratio := float64(r.Validation.BitsPerByte) / float64(r.Validation.Loss) * 0.6931; ratio < 0.98 || ratio > 1.02 {
		t.Errorf("loss %v, bits per byte %v", r.Validation.Loss, r.Validation.BitsPerByte)
	}
	if f, err := os.Open(filepath.Join(o.Out, "loss.png")); err != nil {
		t.Error(err)
	} else if _, err := png.Decode(f); err != nil {
		t.Error(err)
	} else {
		f.Close()
	}
	for _, name := range []string{"loss.svg", "run.toml", "tokenizer.json"} {
		if _, err := os.Stat(filepath.Join(o.Out, name)); err != nil {
			t.Error(err)
		}
	}
	if n := strings.Count(out.String(), "\n"); n != len(lines) || !strings.Contains(out.String(), "bits/byte") {
		t.Errorf("%d lines of progress, %d of metrics:\n%s", n, len(lines), out.String())
	}
	b := open(t, "cpu")
	for _, from := range []string{o.Out, filepath.Join(o.Out, checkpointsDir, "step-00000036")} {
		m, err := model.Load(from, b, model.LoadOptions{})
		if err != nil {
			t.Error(err)
			continue
		}
		m.Close()
	}

	// The same again is the same; another seed is not.
	sameEnd(t, o.Out, reference(t))
	other := textOptions(newDir(t))
	other.Seed = 2
	mustRun(t, other)
	x, _ := os.ReadFile(filepath.Join(o.Out, "model.safetensors"))
	y, _ := os.ReadFile(filepath.Join(other.Out, "model.safetensors"))
	if bytes.Equal(x, y) {
		t.Error("another seed gave the same model")
	}

	// A run that is over has nothing left to do, and stays the same.
	o.Resume = true
	if r := mustRun(t, o); r.Steps != runSteps || !(r.Validation.Loss > 0) {
		t.Errorf("%+v", r)
	}
	sameEnd(t, o.Out, reference(t))

	// Nor is it overwritten.
	o.Resume = false
	if _, err := Run(context.Background(), o, nil); err == nil || !strings.Contains(err.Error(), "--resume "+o.Out) {
		t.Errorf("error %v", err)
	}
}

// A checkpoint that cannot be written leaves the one before, nothing half-written, and an error that names it.
func TestCheckpointFailure(t *testing.T) {
	o := textOptions(newDir(t))
	l, end := begin(t, o)
	defer end()
	full, save := errors.New("no space left on device"), l.SaveTokenizer
	l.SaveTokenizer = func(dir string) error {
		if l.Trainer.Done() < 12 {
			return save(dir)
		}
		return fmt.Errorf("write %s: %w", filepath.Join(dir, "tokenizer.json"), full)
	}
	_, err := l.Run(context.Background())
	if err == nil || !strings.Contains(err.Error(), "checkpoint of step 12") || !strings.Contains(err.Error(), "no space left") ||
		!strings.Contains(err.Error(), "the last checkpoint is "+filepath.Join(o.Out, checkpointsDir, "step-00000006")) || strings.Contains(err.Error(), temporary) {
		t.Errorf("error %v", err)
	}
	entries, err := os.ReadDir(filepath.Join(o.Out, checkpointsDir))
	if err != nil || len(entries) != 1 || entries[0].Name() != "step-00000006" {
		t.Errorf("checkpoints: %v (%v)", entries, err)
	}
}

// What cannot be used as a run directory, or holds no run, is refused before anything is read or written.
func TestOutErrors(t *testing.T) {
	dir := newDir(t)
	o := textOptions(dir)
	o.Out = filepath.Join(dir, "text.txt", "run") // a file is in the way
	if _, err := Run(context.Background(), o, nil); err == nil || !strings.Contains(err.Error(), "out: ") || !strings.Contains(err.Error(), "text.txt") {
		t.Errorf("error %v", err)
	}
	if runtime.GOOS == "linux" {
		o.Out = "/sys/run" // where not even root may
		if _, err := Run(context.Background(), o, nil); err == nil || !strings.Contains(err.Error(), "out: ") || !strings.Contains(err.Error(), o.Out) {
			t.Errorf("error %v", err)
		}
	}
	o.Out, o.Resume = filepath.Join(dir, "absent"), true
	if _, err := Run(context.Background(), o, nil); err == nil || !strings.Contains(err.Error(), "nothing to resume in "+o.Out) {
		t.Errorf("error %v", err)
	}
	if _, err := ResumeOptions(o.Out); err == nil || !strings.Contains(err.Error(), "nothing to resume in "+o.Out) {
		t.Errorf("error %v", err)
	}
	// A run that fails before it begins leaves no directory.
	o = textOptions(dir)
	o.Data = []string{filepath.Join(dir, "absent.txt")}
	if _, err := Run(context.Background(), o, nil); err == nil || !strings.Contains(err.Error(), "absent.txt") {
		t.Errorf("error %v", err)
	}
	if _, err := os.Stat(o.Out); err == nil {
		t.Error("a run that never began left its directory")
	}
	o = textOptions(dir)
	o.Backend = "abacus"
	if _, err := Run(context.Background(), o, nil); err == nil || !strings.Contains(err.Error(), `"abacus"`) {
		t.Errorf("error %v", err)
	}
}

// Two processes do not train in one directory.
func TestOutIsLocked(t *testing.T) {
	o := textOptions(newDir(t))
	_, end := begin(t, o)
	o.Resume = true
	if _, err := Run(context.Background(), o, nil); err == nil || !strings.Contains(err.Error(), "another process is training there") {
		t.Errorf("error %v", err)
	}
	end()
	o.Steps = 2
	mustRun(t, o)
}

func TestReadOnlyOut(t *testing.T) {
	dir := newDir(t)
	o := textOptions(dir)
	if err := os.Mkdir(o.Out, 0o555); err != nil {
		t.Fatal(err)
	}
	if probe, err := os.Create(filepath.Join(o.Out, "probe")); err == nil {
		probe.Close()
		t.Skip("this user may write into a read-only folder (root, or Windows)")
	}
	_, err := Run(context.Background(), o, nil)
	if !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), "cannot write into "+o.Out) {
		t.Errorf("error %v", err)
	}
}

// Going on from a model directory: its tokenizer, its configuration; keys of a new model beside it are refused.
func TestFromModel(t *testing.T) {
	dir := newDir(t)
	o := textOptions(dir)
	fresh := DefaultOptions()
	o.HiddenSize, o.Layers, o.Heads, o.Slots, o.IntermediateSize = fresh.HiddenSize, fresh.Layers, fresh.Heads, fresh.Slots, fresh.IntermediateSize
	o.Model, o.Windows, o.Steps = reference(t), "full", 10
	interrupted(t, o, 4)
	o.Resume = true
	mustRun(t, o)
	if lines := readMetrics(t, o.Out); lines[0].Loss > 5 {
		t.Errorf("loss %v: not the model's", lines[0].Loss)
	}
	c, err := model.ReadConfig(o.Out)
	if err != nil || c.HiddenSize != 16 || c.LayerWindows.String() != "full" {
		t.Errorf("%+v (%v)", c, err)
	}
}
