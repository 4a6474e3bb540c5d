package hybridize

import (
	"fmt"
	"maps"
	"math"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"

	"nha/train"
)

// Recipe is a whole conversion, the keys of a TOML file.
type Recipe struct {
	Base       string   `toml:"base"`    // directory, GGUF file or Hugging Face name
	From       string   `toml:"from"`    // an earlier conversion of the same base to go on from; empty: the base with new gates
	Windows    string   `toml:"windows"` // of every layer (SPEC 2)
	Slots      int      `toml:"slots"`
	Gates      string   `toml:"gates"` // spread, keys or random
	DType      string   `toml:"dtype"` // of the weights written: float32, float16, bfloat16; empty: as the base has them, float32 from a GGUF file
	Seed       uint64   `toml:"seed"`
	Context    int      `toml:"context"`    // tokens of a row
	Batch      int      `toml:"batch"`      // rows of a batch
	Validation []string `toml:"validation"` // text to validate on; empty: a part of the first source of text is held out
	LoRA       LoRA     `toml:"lora"`
	Data       []Data   `toml:"data"`
	Stages     []Stage  `toml:"stage"`
}

// LoRA is updates of low rank that train in every stage and are merged at the end; they and what else trained are also written as an adapter.
type LoRA struct {
	Targets []string `toml:"targets"` // patterns of projections; empty: no such updates
	Rank    int      `toml:"rank"`
	Alpha   float64  `toml:"alpha"`
}

// Data is one source of training text.
type Data struct {
	Files  []string `toml:"files"`
	Kind   string   `toml:"kind"`   // text: running text; chat: {"messages": [...]} lines under the model's template, the loss on answers alone
	Field  string   `toml:"field"`  // JSONL field or parquet column of text
	Weight float64  `toml:"weight"` // part of the batches, relative to the other sources; 0: 1
}

// StageKind is what a stage makes small.
type StageKind string

const (
	// Transfer is the mean squared error between the attention outputs, after o_proj, of the base layer and the NHA layer on the base's own
	// layer inputs, all layers at once.
	Transfer StageKind = "transfer"
	// NextToken is the loss of a language model.
	NextToken StageKind = "next_token"
	// Distill is the divergence from the base, KL(base || model), plus Mix times the next-token loss.
	Distill StageKind = "distill"
)

// Stage is one stage of training. Train is patterns over tensor names: parts of the name, or shell patterns where they have a *. The gates
// of full layers never train: nothing reads them there.
type Stage struct {
	Kind  StageKind `toml:"kind"`
	Train []string  `toml:"train"` // tensors that train as they are
	// Full layers stay as the base has them, their updates of low rank too. What makes them find a word far back is hardly ever asked for in running
	// text, and is lost where they train: recall falls while the loss falls (docs/results/hybrid.md).
	KeepFull bool `toml:"keep_full"`

	Mix  float64 `toml:"mix"`   // distill: weight of the next-token loss beside the divergence
	TopK int     `toml:"top_k"` // distill: keep the base's k likeliest words on disk instead of running it beside; 0: run it

	Tokens int64 `toml:"tokens"` // instead of steps
	train.Settings
}

// DefaultRecipe is the measured one for a model of some hundred million parameters; base and data are missing.
func DefaultRecipe() Recipe {
	return Recipe{Windows: "64", Slots: 64, Gates: string(GateSpread), Seed: 1, Context: 2048, Batch: 8, LoRA: LoRA{Rank: 16, Alpha: 32}, Stages: DefaultStages()}
}

// DefaultStages are attention transfer, then the divergence from the base, MLPs and full layers frozen.
func DefaultStages() []Stage {
	transfer, distill := newStage(), newStage()
	transfer.Kind, transfer.Train, transfer.LearningRate, transfer.Tokens = Transfer, []string{"self_attn"}, 1e-3, 9_000_000
	transfer.LearningRateFactors = map[string]float64{"g_proj": 3}
	distill.Kind, distill.Train, distill.Tokens = Distill, []string{"self_attn", "layernorm"}, 20_000_000
	distill.LearningRate, distill.KeepFull = 1e-3, true
	return []Stage{transfer, distill}
}

func newStage() Stage {
	s := Stage{Settings: train.DefaultSettings()}
	s.Beta2, s.WeightDecay, s.DivergeRatio = 0.95, 0, 2
	return s
}

// ReadRecipe reads a recipe file over the defaults. Stages replace the default ones when the file has any. An unknown key is an error
// that names it.
func ReadRecipe(file string) (Recipe, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return Recipe{}, err
	}
	r, err := parseRecipe(string(text))
	if err != nil {
		return Recipe{}, fmt.Errorf("%s: %w", file, err)
	}
	return r, nil
}

func parseRecipe(text string) (Recipe, error) {
	var count struct {
		Stage []toml.Primitive `toml:"stage"`
	}
	m, err := toml.Decode(text, &count)
	if err != nil {
		return Recipe{}, err
	}
	r := DefaultRecipe()
	if m.IsDefined("stage") {
		r.Stages = nil
	}
	var rest struct {
		Recipe
		Stage []toml.Primitive `toml:"stage"`
	}
	rest.Recipe = r
	m, err = toml.Decode(text, &rest)
	if err != nil {
		return Recipe{}, err
	}
	r = rest.Recipe
	for _, p := range rest.Stage {
		s := newStage()
		if err := m.PrimitiveDecode(p, &s); err != nil {
			return Recipe{}, err
		}
		if s.Steps != 0 && s.Tokens != 0 {
			return Recipe{}, fmt.Errorf("stage %d: steps %d and tokens %d: give one of them", len(r.Stages)+1, s.Steps, s.Tokens)
		}
		r.Stages = append(r.Stages, s)
	}
	if unknown := m.Undecoded(); len(unknown) > 0 {
		return Recipe{}, fmt.Errorf("unknown key %s", unknown[0])
	}
	return r, r.Check()
}

// Check says what cannot be, by key.
func (r *Recipe) Check() error {
	if _, err := ParseGateStart(r.Gates); err != nil {
		return err
	}
	switch {
	case r.Slots < 0:
		return fmt.Errorf("slots %d: must be 0 (windows alone) or more", r.Slots)
	case r.Context < 2 || r.Context > 1<<30:
		return fmt.Errorf("context %d: must be from 2 to %d tokens", r.Context, 1<<30)
	case r.Batch < 1 || r.Batch > 1<<30/r.Context:
		return fmt.Errorf("batch %d: must be at least 1, and at most %d tokens in all", r.Batch, 1<<30)
	}
	for i := range r.Data {
		if err := r.Data[i].check(); err != nil {
			return fmt.Errorf("data %d: %w", i+1, err)
		}
	}
	if len(r.LoRA.Targets) > 0 && (r.LoRA.Rank < 1 || !(r.LoRA.Alpha > 0) || math.IsInf(r.LoRA.Alpha, 0)) {
		return fmt.Errorf("lora: rank %d and alpha %v must be positive", r.LoRA.Rank, r.LoRA.Alpha)
	}
	for i := range r.Stages {
		if len(r.Stages[i].Train) == 0 && len(r.LoRA.Targets) == 0 {
			return fmt.Errorf("stage %d: nothing trains: name tensors in train, or lora.targets", i+1)
		}
		if err := r.Stages[i].check(r.Context * r.Batch); err != nil {
			return fmt.Errorf("stage %d: %w", i+1, err)
		}
	}
	return nil
}

func (d *Data) check() error {
	if d.Kind == "" {
		d.Kind = textKind
	}
	if d.Weight == 0 {
		d.Weight = 1
	}
	switch {
	case len(d.Files) == 0:
		return fmt.Errorf("files is empty: name the text to train on")
	case d.Kind != textKind && d.Kind != chatKind:
		return fmt.Errorf("kind %q: use text or chat", d.Kind)
	case !(d.Weight > 0) || math.IsInf(d.Weight, 0):
		return fmt.Errorf("weight %v: must be positive", d.Weight)
	}
	return nil
}

func (s *Stage) check(tokensOfBatch int) error {
	switch s.Kind {
	case Transfer, NextToken, Distill:
	default:
		return fmt.Errorf("kind %q: use transfer, next_token or distill", s.Kind)
	}
	switch {
	case !(s.Mix >= 0) || math.IsInf(s.Mix, 0) || s.Mix != 0 && s.Kind != Distill:
		return fmt.Errorf("mix %v: a part of the next-token loss in a distill stage, 0 or more", s.Mix)
	case s.TopK < 0 || s.TopK != 0 && s.Kind != Distill:
		return fmt.Errorf("top_k %d: words of the base to cache in a distill stage, 0 or more", s.TopK)
	case s.Tokens < 0:
		return fmt.Errorf("tokens %d: must be 0 or more", s.Tokens)
	}
	if s.Tokens > 0 {
		s.Steps = max(1, int(s.Tokens/int64(tokensOfBatch)/int64(max(1, s.Accumulation))))
	}
	return s.Settings.Resolve()
}

// Select is the names that some pattern matches. A pattern that matches none is an error that lists what there is to match.
func Select(names, patterns []string) ([]string, error) {
	chosen := map[string]bool{}
	for _, p := range patterns {
		matched := false
		for _, n := range names {
			if matches(p, n) {
				chosen[n], matched = true, true
			}
		}
		if !matched {
			return nil, fmt.Errorf("pattern %q matches no tensor; there are %s", p, strings.Join(kinds(names), ", "))
		}
	}
	return slices.Sorted(maps.Keys(chosen)), nil
}

func matches(pattern, name string) bool {
	if strings.ContainsAny(pattern, "*?[") {
		ok, err := path.Match(pattern, name)
		return ok && err == nil
	}
	return strings.Contains(name, pattern)
}

// kinds are the names with layer numbers replaced by N, each once.
func kinds(names []string) []string {
	seen := map[string]bool{}
	var list []string
	for _, n := range names {
		parts := strings.Split(n, ".")
		for i, p := range parts {
			if strings.Trim(p, "0123456789") == "" {
				parts[i] = "N"
			}
		}
		if k := strings.Join(parts, "."); !seen[k] {
			seen[k] = true
			list = append(list, k)
		}
	}
	return list
}
