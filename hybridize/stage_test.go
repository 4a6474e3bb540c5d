package hybridize

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nha/tensor"
	"nha/train"
)

// stopped runs a conversion that ends after so many steps in all.
func stopped(t *testing.T, o Options, at int) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	o.Reporter = &stopper{at: at, cancel: cancel}
	if _, err := Run(ctx, o); !errors.Is(err, train.ErrInterrupted) {
		t.Fatalf("stopped at step %d: %v", at, err)
	}
}

// TestStagesOfOtherOptions: what another conversion left is not taken for this one's; a later stage may change while the earlier ones stay.
func TestStagesOfOtherOptions(t *testing.T) {
	o := options(t, tinyBase(t))
	stopped(t, o, 14) // of 12 and 12
	for want, change := range map[string]func(o *Options){
		`slots was "8", is "4"`: func(o *Options) { o.Slots = 4 },
		"windows was":           func(o *Options) { o.Windows = "4 full 8" },
		"1-transfer is of":      func(o *Options) { o.Stages[0].LearningRate = 1e-4 },
		"2-distill is of":       func(o *Options) { o.Stages[1].LearningRate = 1e-4 },
	} {
		other := o
		other.Stages = append([]Stage(nil), o.Stages...)
		change(&other)
		if _, err := Run(context.Background(), other); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	if _, err := Run(context.Background(), o); err != nil {
		t.Errorf("with the same options: %v", err)
	}
}

// TestReportGoesOn: a conversion whose tasks could not be measured is not in the way of itself.
func TestReportGoesOn(t *testing.T) {
	o := options(t, tinyBase(t))
	o.Tasks, o.TaskData = []string{"lambada_openai"}, t.TempDir()
	if _, err := Run(context.Background(), o); err == nil || !strings.Contains(err.Error(), "lambada_openai") {
		t.Fatalf("without the dataset: %v", err)
	}
	o.Tasks = nil
	r, err := Run(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	if r.Seconds <= 0 || r.Stages[1].Steps != 12 || !(r.BasePerplexity > 1) || r.MeasuredOn != "held-out text" {
		t.Errorf("report %+v", r)
	}
	if _, err := Run(context.Background(), o); err == nil || !strings.Contains(err.Error(), "exists") {
		t.Errorf("once it is complete: %v", err)
	}
}

// TestDivergingStage stops and says what to lower.
func TestDivergingStage(t *testing.T) {
	o := options(t, tinyBase(t))
	s := &o.Stages[0]
	s.LearningRate, s.Clip, s.Warmup, s.Steps, s.DivergeRatio, s.DivergeSteps = 30, 0, 1, 40, 1.1, 4
	_, err := Run(context.Background(), o)
	if err == nil || !strings.Contains(err.Error(), "stage 1, transfer: step ") || !strings.Contains(err.Error(), "the loss diverges") || !strings.Contains(err.Error(), "lower learning_rate (30)") {
		t.Errorf("%v", err)
	}
}

// TestLoRAWithBiases: a pattern of projections means their matrices; and what backward computes again changes no bit.
func TestLoRAWithBiases(t *testing.T) {
	base := tinyBase(t)
	config := filepath.Join(base, "config.json")
	text, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	var keys map[string]any
	if err := json.Unmarshal(text, &keys); err != nil {
		t.Fatal(err)
	}
	keys["model_type"] = "qwen2" // whose q, k and v have biases
	delete(keys, "attention_bias")
	delete(keys, "mlp_bias")
	delete(keys, "architectures")
	if text, err = json.Marshal(keys); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(config, text, 0o644); err != nil {
		t.Fatal(err)
	}
	addBiases(t, base)
	var want map[string]tensor.Tensor
	for _, mode := range []string{"none", "blocks"} {
		o := options(t, base)
		o.LoRA.Targets, o.LoRA.Rank = []string{"self_attn.q_proj", "v_proj", "down_proj"}, 2
		for i := range o.Stages {
			o.Stages[i].Train, o.Stages[i].Recompute, o.Stages[i].Steps = []string{"g_proj"}, mode, 6
		}
		if _, err := Run(context.Background(), o); err != nil {
			t.Fatalf("%s: %v", mode, err)
		}
		a, err := ReadAdapter(filepath.Join(o.Out, "adapter"))
		if err != nil || len(a.A) != 9 {
			t.Errorf("%s: %d updates, %v", mode, len(a.A), err)
		}
		got := tensors(t, o.Out)
		if want == nil {
			want = got
		}
		for name, x := range got {
			if string(x.Bytes()) != string(want[name].Bytes()) {
				t.Errorf("%s: %s differs from that with nothing computed again", mode, name)
			}
		}
	}
	o := options(t, base)
	o.LoRA.Targets = []string{"g_proj"}
	if _, err := Run(context.Background(), o); err == nil || !strings.Contains(err.Error(), "no projection of a layer") {
		t.Errorf("gates through lora: %v", err)
	}
}

// TestChatConversion trains on the answers of chats, with some of them held out.
func TestChatConversion(t *testing.T) {
	base := tinyBase(t)
	if err := os.WriteFile(filepath.Join(base, "chat_template.jinja"), []byte(plain), 0o644); err != nil {
		t.Fatal(err)
	}
	_, file := chatFiles(t, plain, chatLine("what is up", "the sky"), chatLine("what is down", "the ground"), chatLine("and", "the sea"))
	o := options(t, base)
	o.Data = []Data{{Files: []string{file}, Kind: "chat"}}
	o.Stages = append(o.Stages, o.Stages[1])
	o.Stages[2].Kind, o.Stages[2].Mix = NextToken, 0
	r, err := Run(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	if r.MeasuredOn != "held-out chats" || len(r.Stages) != 4 {
		t.Errorf("measured on %s, %d stages", r.MeasuredOn, len(r.Stages))
	}
	// The loss is the mean of the layers' errors, over all tokens, however few are answers.
	after := r.Stages[1]
	if mean := (after.Errors[0] + after.Errors[2]) / 2; !(mean < r.Stages[0].Errors[0]) || !(after.Loss < 1.5*mean) {
		t.Errorf("attention transfer from an error of %v to %v, loss %v", r.Stages[0].Errors[0], mean, after.Loss)
	}
}
