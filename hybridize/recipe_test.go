package hybridize

import (
	"slices"
	"strings"
	"testing"
)

func TestRecipe(t *testing.T) {
	r, err := parseRecipe(`
base = "some/base"
windows = "7*64 full"
context = 1024
[[data]]
files = ["a.txt"]
[[data]]
files = ["c.jsonl"]
kind = "chat"
weight = 0.5
[[stage]]
kind = "transfer"
train = ["self_attn"]
tokens = 819200
learning_rate = 2e-3
learning_rate_factors = { g_proj = 3.0 }
[[stage]]
kind = "distill"
train = ["g_proj"]
mix = 0.5
keep_full = true
steps = 7
[lora]
targets = ["q_proj", "o_proj"]
`)
	if err != nil {
		t.Fatal(err)
	}
	if r.Slots != 64 || r.Batch != 8 || r.Context != 1024 || len(r.Data) != 2 || r.Data[0].Kind != "text" || r.Data[0].Weight != 1 || r.Data[1].Weight != .5 || len(r.Stages) != 2 {
		t.Errorf("%+v", r)
	}
	a, b := r.Stages[0], r.Stages[1]
	if a.Kind != Transfer || a.Steps != 100 || a.LearningRate != 2e-3 || a.LearningRateFactors["g_proj"] != 3 || a.Clip == 0 {
		t.Errorf("first stage %+v", a)
	}
	if b.Kind != Distill || b.Steps != 7 || b.Mix != .5 || !b.KeepFull || a.KeepFull || r.LoRA.Rank != 16 || !slices.Equal(r.LoRA.Targets, []string{"q_proj", "o_proj"}) {
		t.Errorf("second stage %+v", b)
	}
	d := DefaultRecipe()
	if err := d.Check(); err != nil || len(d.Stages) != 2 || d.Stages[0].Steps != 9_000_000/(8*2048) {
		t.Errorf("the defaults: %v, %+v", err, d.Stages)
	}
}

func TestRecipeRefusals(t *testing.T) {
	for text, want := range map[string]string{
		`windos = "64"`: "unknown key windos",
		`slots = -1`:    "slots -1",
		`gates = "k"`:   `gates "k"`,
		"context = 1000000000\nbatch = 1000000000":                                  "batch 1000000000",
		"context = 4611686018427387904":                                             "context 4611686018427387904",
		"[[stage]]\nkind = \"next_token\"\ntrain = [\"a\"]\nsteps = 3\ntokens = 3":  "stage 1: steps 3 and tokens 3",
		"[[stage]]\nkind = \"distill\"\ntrain = [\"a\"]\nsteps = 3\nmix = nan":      "mix NaN",
		"[[data]]\nfiles = [\"a\"]\nweight = nan":                                   "weight NaN",
		"[lora]\ntargets = [\"a\"]\nalpha = nan":                                    "alpha NaN",
		"[[stage]]\nkind = \"polish\"\ntrain = [\"a\"]":                             `stage 1: kind "polish"`,
		"[[stage]]\nkind = \"transfer\"":                                            "nothing trains",
		"[[stage]]\nkind = \"next_token\"\ntrain = [\"a\"]\nspeed = 3":              "unknown key stage.speed",
		"[[stage]]\nkind = \"next_token\"\ntrain = [\"a\"]\nmix = 0.5":              "mix 0.5",
		"[[stage]]\nkind = \"next_token\"\ntrain = [\"a\"]\nbeta2 = 1.5\nsteps = 1": "beta2",
		"[lora]\ntargets = [\"a\"]\nrank = 0":                                       "lora: rank 0",
		"[[data]]\nkind = \"chat\"":                                                 "data 1: files is empty",
		"[[data]]\nfiles = [\"a\"]\nkind = \"poem\"":                                `kind "poem"`,
	} {
		if _, err := parseRecipe(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestSelect(t *testing.T) {
	names := []string{"model.layers.0.self_attn.q_proj.weight", "model.layers.1.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight"}
	if got, err := Select(names, []string{"layers.1.self", "up_proj"}); err != nil || !slices.Equal(got, []string{names[2], names[1]}) {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := Select(names, []string{"model.layers.*.self_attn.q_proj.weight"}); err != nil || len(got) != 2 {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := Select(names, []string{"q_proj", "k_proj"}); err == nil || !strings.Contains(err.Error(), `"k_proj" matches no tensor; there are model.layers.N.self_attn.q_proj.weight`) {
		t.Errorf("%v", err)
	}
}
