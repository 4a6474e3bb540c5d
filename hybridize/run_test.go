package hybridize

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	_ "nha/backend/cpu"

	"nha/backend"
	"nha/convert"
	"nha/data"
	"nha/model"
	"nha/tensor"
	"nha/tokenizer"
	"nha/train"
	"nha/weights"
)

// tinyBase is the directory of a pretrained Llama of bytes: trained for a moment, so that its attention is not noise.
func tinyBase(t *testing.T) string {
	t.Helper()
	b, err := backend.Open("cpu", 1)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	c, err := model.ParseConfig([]byte(`{"model_type": "llama", "vocab_size": 257, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
		"num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 48, "max_position_embeddings": 128, "tie_word_embeddings": true}`))
	if err != nil {
		t.Fatal(err)
	}
	m, err := model.New(c, b, model.Init{Seed: 1, Std: 0.2})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	dir := filepath.Join(t.TempDir(), "base")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(m.Save(dir), tokenizer.Bytes{EndOfText: true}.Save(dir)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// addBiases gives a base's query, key and value projections biases.
func addBiases(t *testing.T, dir string) {
	t.Helper()
	var list []weights.Named
	for name, x := range tensors(t, dir) {
		list = append(list, weights.Named{Name: name, Tensor: x})
		if stem, ok := strings.CutSuffix(name, "_proj.weight"); ok && strings.Contains("qkv", stem[len(stem)-1:]) {
			b := tensor.New(tensor.F32, tensor.Of(x.Dim(0)))
			for i := range b.F32() {
				b.F32()[i] = 0.1 * float32(i%3-1)
			}
			list = append(list, weights.Named{Name: stem + "_proj.bias", Tensor: b})
		}
	}
	if err := weights.Write(filepath.Join(dir, weights.FileName), nil, list); err != nil {
		t.Fatal(err)
	}
}

func someText(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "text.txt")
	text := strings.Repeat("the quick brown fox jumps over the lazy dog, and the dog looks at the fox. ", 200)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func options(t *testing.T, base string) Options {
	r := DefaultRecipe()
	r.Base, r.Windows, r.Slots, r.Context, r.Batch, r.Data = base, "8 full 8", 8, 48, 2, []Data{{Files: []string{someText(t)}}}
	for i := range r.Stages {
		s := &r.Stages[i]
		s.Tokens, s.Steps, s.LogEvery, s.CheckpointEvery, s.Warmup = 0, 12, 4, 4, 2
		s.LearningRate = 3e-3
	}
	return Options{Recipe: r, Out: filepath.Join(t.TempDir(), "hybrid"), Backend: "cpu", Threads: 1, Cache: t.TempDir(), Command: "nha hybridize", Reporter: quiet{}}
}

type quiet struct{}

func (quiet) Preparing(data.Progress) {}
func (quiet) Step(train.Report)       {}
func (quiet) Notice(string)           {}
func (quiet) Compiling(_, _ int)      {}

func tensors(t *testing.T, dir string) map[string]tensor.Tensor {
	t.Helper()
	s, err := weights.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	m := map[string]tensor.Tensor{}
	for _, name := range s.Names() {
		x, _ := s.Tensor(name)
		m[name] = x.Clone()
	}
	return m
}

// TestConversion runs every stage and holds what moved against what the recipe names: all of it, and nothing else.
func TestConversion(t *testing.T) {
	base := tinyBase(t)
	o := options(t, base)
	r, err := Run(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Stages) != 3 || r.Stages[1].Tokens != 12*2*48 || r.Stages[0].KL <= r.Stages[2].KL || !(r.Stages[2].KL >= 0) {
		t.Errorf("stages %+v", r.Stages)
	}
	for _, layer := range []int{0, 2} {
		if before, after := r.Stages[0].Errors[layer], r.Stages[1].Errors[layer]; !(after < before) {
			t.Errorf("layer %d: relative error %v before attention transfer, %v after", layer, before, after)
		}
	}
	if r.Stages[1].Errors[1] != 0 || r.Layers[1].SlotShare != 0 || r.Layers[0].SlotShare <= 0 {
		t.Errorf("the full layer has errors or reads slots: %+v", r.Layers)
	}
	old, now := tensors(t, base), tensors(t, o.Out)
	for name, x := range now {
		was, there := old[name]
		if !there {
			if !strings.HasSuffix(name, "g_proj.weight") {
				t.Errorf("a new tensor %s", name)
			}
			continue
		}
		moved := tensor.MaxError(x, was) > 0
		if want := (strings.Contains(name, "self_attn") || strings.Contains(name, "layernorm")) && layerOf(name) != 1; moved != want { // layer 1 is full
			t.Errorf("%s: moved %v, the recipe wants %v", name, moved, want)
		}
	}
	if len(now) != len(old)+3 {
		t.Errorf("%d tensors, the base has %d", len(now), len(old))
	}
	if _, err := os.Stat(o.Out + ".stages"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the stages are still there: %v", err)
	}
	for _, name := range []string{"report.json", "report.md", "layer_errors.svg", "slot_share.png", "tokenizer.json"} {
		if _, err := os.Stat(filepath.Join(o.Out, name)); err != nil {
			t.Error(err)
		}
	}
	var back Report
	text, _ := os.ReadFile(filepath.Join(o.Out, "report.json"))
	if err := json.Unmarshal(text, &back); err != nil || back.Stages[2].KL != r.Stages[2].KL {
		t.Errorf("report.json: %v", err)
	}
}

// TestInterrupted: a conversion that is stopped in the middle ends with the same model.
func TestInterrupted(t *testing.T) {
	base := tinyBase(t)
	o := options(t, base)
	o.Stages[1].TopK = 5
	if _, err := Run(context.Background(), o); err != nil {
		t.Fatal(err)
	}
	again := o
	again.Out = filepath.Join(t.TempDir(), "again")
	for _, at := range []int{7, 9} {
		ctx, cancel := context.WithCancel(context.Background())
		again.Reporter = &stopper{at: at, cancel: cancel}
		if _, err := Run(ctx, again); !errors.Is(err, train.ErrInterrupted) {
			t.Fatalf("stopped at step %d: %v", at, err)
		}
		cancel()
	}
	again.Reporter = quiet{}
	if _, err := Run(context.Background(), again); err != nil {
		t.Fatal(err)
	}
	for name, x := range tensors(t, again.Out) {
		if string(x.Bytes()) != string(tensors(t, o.Out)[name].Bytes()) {
			t.Errorf("%s differs from that of the run that was not stopped", name)
		}
	}
}

// stopper cancels after so many steps in all.
type stopper struct {
	quiet
	at, seen int
	cancel   func()
}

func (s *stopper) Step(r train.Report) {
	if s.seen++; s.seen == s.at {
		s.cancel()
	}
}

// TestLoRAConversion: updates and gates as an adapter, which applied to the base gives the same model.
func TestLoRAConversion(t *testing.T) {
	base := tinyBase(t)
	o := options(t, base)
	o.LoRA.Targets, o.LoRA.Rank = []string{"q_proj", "o_proj"}, 2
	for i := range o.Stages {
		o.Stages[i].Train = []string{"g_proj"}
	}
	if _, err := Run(context.Background(), o); err != nil {
		t.Fatal(err)
	}
	a, err := ReadAdapter(filepath.Join(o.Out, "adapter"))
	if err != nil {
		t.Fatal(err)
	}
	if len(a.A) != 6 || len(a.Modules) != 3 || a.Rank != 2 || a.NHA.NumSlots != 8 || a.NHA.LayerWindows != "8 full 8" {
		t.Errorf("adapter %d updates, %d modules, %+v", len(a.A), len(a.Modules), a.NHA)
	}
	applied := filepath.Join(t.TempDir(), "applied")
	if _, err := Apply(filepath.Join(o.Out, "adapter"), base, applied, convert.Options{}); err != nil {
		t.Fatal(err)
	}
	want := tensors(t, o.Out)
	for name, was := range tensors(t, base) { // the full layer is kept, its updates too
		if moved := tensor.MaxError(want[name], was) > 0; moved != (layerOf(name) != 1 && (strings.Contains(name, "q_proj") || strings.Contains(name, "o_proj"))) {
			t.Errorf("%s: moved %v", name, moved)
		}
	}
	for name, x := range tensors(t, applied) {
		if d := tensor.MaxError(x, want[name]); d > 0.02 { // the adapter is in bfloat16
			t.Errorf("%s: off by %v", name, d)
		}
	}
	other := tinyBase(t)
	s := tensors(t, other)
	s["model.norm.weight"].F32()[0] += 1
	var list []weights.Named
	for name, x := range s {
		list = append(list, weights.Named{Name: name, Tensor: x})
	}
	if err := weights.Write(filepath.Join(other, weights.FileName), nil, list); err != nil {
		t.Fatal(err)
	}
	if _, err := Apply(filepath.Join(o.Out, "adapter"), other, applied+"2", convert.Options{}); err == nil || !strings.Contains(err.Error(), "another base") {
		t.Errorf("another base: %v", err)
	}
}

// TestWithoutTraining: gates alone, on text that the base writes itself.
func TestWithoutTraining(t *testing.T) {
	base := tinyBase(t)
	o := options(t, base)
	o.Data, o.Stages = nil, nil
	for _, gates := range []GateStart{GateSpread, GateKeys, GateRandom} {
		o.Gates, o.Out = string(gates), filepath.Join(t.TempDir(), "hybrid")
		r, err := Run(context.Background(), o)
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Stages) != 1 || math.IsNaN(r.Stages[0].KL) {
			t.Errorf("%s: %+v", gates, r.Stages)
		}
	}
}

// TestConversionRefusals: what cannot be is said before anything is computed.
func TestConversionRefusals(t *testing.T) {
	base := tinyBase(t)
	for want, change := range map[string]func(o *Options){
		"slots 5":                      func(o *Options) { o.Slots = 5 },
		`"nothing" matches no tensor`:  func(o *Options) { o.Stages[0].Train = []string{"nothing"} },
		"less than a context":          func(o *Options) { o.Context, o.Batch = 1<<16, 1 },
		"no model":                     func(o *Options) { o.Base = "nowhere" },
		"is not part of the attention": func(o *Options) { o.Stages[0].Train = []string{"mlp"} },
		"through lora":                 func(o *Options) { o.LoRA.Targets = []string{"self_attn.q_proj"} },
		"windows":                      func(o *Options) { o.Windows = "8 full" },
		"data: stages train on text":   func(o *Options) { o.Data = nil },
		"every layer is full":          func(o *Options) { o.Windows = "full" },
		"keep_full keeps those": func(o *Options) {
			o.Windows, o.LoRA.Targets, o.Stages = "full", []string{"q_proj"}, o.Stages[1:]
		},
		"exists":                   func(o *Options) { o.Out = base },
		"top_k 257: must be below": func(o *Options) { o.Stages[1].TopK = 257 },
		`unknown task "chess"`:     func(o *Options) { o.Tasks = []string{"chess"} },
	} {
		o := options(t, base)
		change(&o)
		if _, err := Run(context.Background(), o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
		if _, err := os.Stat(o.Out + ".stages"); err == nil {
			t.Errorf("%s: stages are left behind", want)
		}
	}
}
