package train

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"sort"
	"strings"

	"github.com/BurntSushi/toml"

	"nha/atomicfile"
	"nha/backend"
	"nha/model"
)

// Options are a whole run, the keys of a run file and the flags of `nha train`. Keys lists them.
type Options struct {
	Out    string `toml:"out" resume:"free" help:"the run directory"`
	Resume bool   `toml:"-"` // go on with the run in Out

	Data       []string `toml:"data" resume:"free" help:"text to train on: files, folders, patterns (.txt, .jsonl, .parquet; .gz, .zst)"`
	Validation []string `toml:"validation" resume:"free" help:"text to validate on; without it a part of the data is held out"`
	HeldOut    float64  `toml:"held_out" resume:"free" help:"part of the data to hold out where no validation is given; 0: none"`
	Field      string   `toml:"field" resume:"free" help:"JSONL field or parquet column with the text"`
	Separator  string   `toml:"separator" resume:"free" help:"a line between the documents of a text file; empty: a file is a document"`
	Cache      string   `toml:"cache" resume:"free" help:"folder of the token caches; empty: the user's cache folder"`
	Tokenizer  string   `toml:"tokenizer" resume:"free" help:"bytes, a tokenizer.json or a folder with one; empty: the model's, or bytes"`

	Model             string  `toml:"model" resume:"free" help:"model directory to go on from, instead of a new model"`
	Preset            string  `toml:"preset" resume:"free" help:"architecture of a new model: nha, gsa, window, transformer"`
	Size              string  `toml:"size" resume:"free" help:"size of a new model: tiny, small, medium, 340m, 1.3b"`
	HiddenSize        int     `toml:"hidden_size" resume:"free" help:"instead of the size's"`
	Layers            int     `toml:"layers" resume:"free" help:"instead of the size's"`
	Heads             int     `toml:"heads" resume:"free" help:"query heads; 0: one for every 64 of hidden_size"`
	KVHeads           int     `toml:"kv_heads" resume:"free" help:"key/value heads; 0: as heads"`
	HeadDim           int     `toml:"head_dim" resume:"free" help:"0: hidden_size / heads"`
	IntermediateSize  int     `toml:"intermediate_size" resume:"free" help:"inner size of the MLP; 0: about 8/3 of hidden_size"`
	Windows           string  `toml:"windows" resume:"free" help:"window of every layer: 32, full, or a pattern: 32 32 32 full; empty: the preset's or the model's"`
	Slots             int     `toml:"slots" resume:"free" help:"memory slots of a preset that has them"`
	TieWordEmbeddings bool    `toml:"tie_word_embeddings" resume:"free" help:"use the embedding as the head"`
	GateBias          bool    `toml:"gate_bias" resume:"free" help:"give the gates a bias that starts as a spread of memory lengths"`
	GateBiasLow       float64 `toml:"gate_bias_low" help:"gate bias of a head's first slot"`
	GateBiasHigh      float64 `toml:"gate_bias_high" help:"gate bias of a head's last slot"`
	EmbeddingStd      float64 `toml:"embedding_std" help:"standard deviation of a new embedding; 0: 0.02 as everything else"`
	Seed              uint64  `toml:"seed" help:"of the new parameters, the shuffle and the held-out part"`

	Context         int    `toml:"context" help:"tokens of a row"`
	Batch           int    `toml:"batch" help:"rows of a batch"`
	Tokens          int64  `toml:"tokens" help:"train for so many tokens, instead of steps"`
	ValidateBatches int    `toml:"validate_batches" resume:"free" help:"batches of a validation; 0: all the validation text"`
	Backend         string `toml:"backend" resume:"free" help:"where to compute; auto: on the card where there is one"`
	Threads         int    `toml:"threads" resume:"free" help:"0: one for every processor"`

	Settings
}

// Sizes are named sizes of new models. The number of parameters depends on the vocabulary.
var Sizes = []struct {
	Name           string
	Hidden, Layers int
}{{"tiny", 128, 2}, {"small", 256, 4}, {"medium", 512, 8}, {"340m", 1024, 24}, {"1.3b", 2048, 24}}

// Auto is the backend that is the best here (backend.OpenBest). The run file of a run names the one it was.
const Auto = backend.Auto

// DefaultOptions train a small NHA model on one machine; only Data and Out are missing.
func DefaultOptions() Options {
	return Options{HeldOut: 0.01, Field: "text", Preset: "nha", Size: "small", Slots: 64, GateBiasLow: -8, GateBiasHigh: 4, Seed: 1,
		Context: 256, Batch: 8, ValidateBatches: 32, Backend: Auto, Settings: DefaultSettings()}
}

// ReadOptions reads a run file over the defaults. An unknown key is an error that names it.
func ReadOptions(path string) (Options, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return Options{}, fmt.Errorf("run file: %w", err)
	}
	o := DefaultOptions()
	if err := o.parse(string(text)); err != nil {
		return Options{}, fmt.Errorf("%s: %w", path, err)
	}
	return o, nil
}

// ResumeOptions reads the options of the run in dir, set to go on with it.
func ResumeOptions(dir string) (Options, error) {
	o, err := ReadOptions(filepath.Join(dir, runFile))
	if errors.Is(err, os.ErrNotExist) {
		return o, fmt.Errorf("nothing to resume in %s: it holds no %s", dir, runFile)
	}
	o.Out, o.Resume = dir, true
	return o, err
}

func (o *Options) parse(text string) error {
	// Decoding into a map that is there would keep its keys.
	before := o.LearningRateFactors
	o.LearningRateFactors = nil
	meta, err := toml.Decode(text, o)
	if err != nil {
		return err
	}
	if !meta.IsDefined("learning_rate_factors") {
		o.LearningRateFactors = before
	}
	for _, key := range meta.Undecoded() {
		return fmt.Errorf("unknown key %q%s", key.String(), suggestion(key.String()))
	}
	return nil
}

// write writes the run file.
func (o *Options) write(path string) error {
	return atomicfile.WriteFile(path, 0o644, func(w io.Writer) error {
		e := toml.NewEncoder(w)
		e.Indent = ""
		return e.Encode(o)
	})
}

// Key is one option as the command line needs it.
type Key struct{ Name, Help, Default string }

// Keys lists all options in their order.
func Keys() []Key {
	var keys []Key
	o := DefaultOptions()
	o.each(func(f reflect.StructField, v reflect.Value) {
		keys = append(keys, Key{f.Tag.Get("toml"), f.Tag.Get("help"), show(v)})
	})
	return keys
}

// each calls visit with every option.
func (o *Options) each(visit func(reflect.StructField, reflect.Value)) {
	var walk func(reflect.Value)
	walk = func(s reflect.Value) {
		for i := range s.NumField() {
			switch f := s.Type().Field(i); {
			case f.Anonymous:
				walk(s.Field(i))
			case f.Tag.Get("toml") != "-":
				visit(f, s.Field(i))
			}
		}
	}
	walk(reflect.ValueOf(o).Elem())
}

// show is a value as Set reads it.
func show(v reflect.Value) string {
	switch v.Kind() {
	case reflect.Slice:
		return strings.Join(v.Interface().([]string), ",")
	case reflect.Map:
		var list []string
		for _, k := range v.MapKeys() {
			list = append(list, fmt.Sprintf("%v=%v", k, v.MapIndex(k)))
		}
		sort.Strings(list)
		return strings.Join(list, ",")
	}
	return fmt.Sprint(v)
}

// Set sets the option of that name from the text of a flag: numbers and words as they are, lists with commas between,
// factors as f_proj=10,lm_head=0.5.
func (o *Options) Set(name, text string) error {
	err := fmt.Errorf("unknown key %q%s", name, suggestion(name))
	o.each(func(f reflect.StructField, v reflect.Value) {
		if f.Tag.Get("toml") != name {
			return
		}
		value := text
		switch v.Kind() {
		case reflect.String:
			v.SetString(text)
			err = nil
			return
		case reflect.Slice:
			var list []string
			for _, s := range strings.Split(text, ",") {
				if s = strings.TrimSpace(s); s != "" {
					list = append(list, s)
				}
			}
			v.Set(reflect.ValueOf(list))
			err = nil
			return
		case reflect.Map:
			var list []string
			for _, s := range strings.Split(text, ",") {
				pattern, factor, ok := strings.Cut(s, "=")
				if !ok && text != "" {
					err = fmt.Errorf("%s %q: write PATTERN=FACTOR, with commas between several", name, text)
					return
				}
				if ok {
					list = append(list, fmt.Sprintf("%q = %s", strings.TrimSpace(pattern), factor))
				}
			}
			value = "{" + strings.Join(list, ", ") + "}"
		}
		if strings.ContainsAny(value, "\r\n") || o.parse(name+" = "+value) != nil {
			err = fmt.Errorf("%s %q: want a %s", name, text, kindName(v.Kind()))
			return
		}
		err = nil
	})
	return err
}

func kindName(k reflect.Kind) string {
	switch k {
	case reflect.Bool:
		return "true or false"
	case reflect.Float64:
		return "number"
	case reflect.Map:
		return "list of factors such as f_proj=10"
	}
	return "whole number"
}

// suggestion names the key that the user may have meant: one with a word in common.
func suggestion(name string) string {
	name = strings.ReplaceAll(name, "-", "_")
	for _, k := range Keys() {
		if k.Name == name || len(name) > 3 && (strings.HasPrefix(k.Name, name) || strings.HasPrefix(name, k.Name)) {
			return fmt.Sprintf(": did you mean %q?", k.Name)
		}
	}
	return ""
}

// Resolve fills in what follows from the rest and checks what can be checked without touching a file.
func (o *Options) Resolve() error {
	if o.Out == "" {
		return errors.New("out: name a directory for the run")
	}
	if len(o.Data) == 0 {
		return errors.New("data: name the text to train on")
	}
	for _, k := range []struct {
		key            string
		value, minimum int
	}{{"context", o.Context, 1}, {"batch", o.Batch, 1}, {"accumulation", o.Accumulation, 1}, {"slots", o.Slots, 0}, {"hidden_size", o.HiddenSize, 0},
		{"layers", o.Layers, 0}, {"heads", o.Heads, 0}, {"kv_heads", o.KVHeads, 0}, {"head_dim", o.HeadDim, 0},
		{"intermediate_size", o.IntermediateSize, 0}, {"validate_batches", o.ValidateBatches, 0}, {"threads", o.Threads, 0}} {
		if k.value < k.minimum || k.value > 1<<30 {
			return fmt.Errorf("%s %d: must be from %d to %d", k.key, k.value, k.minimum, 1<<30)
		}
	}
	switch {
	case !(o.HeldOut >= 0 && o.HeldOut < 1):
		return fmt.Errorf("held_out %v: must be at least 0 and below 1", o.HeldOut)
	case !(o.EmbeddingStd >= 0) || o.EmbeddingStd > 1e3:
		return fmt.Errorf("embedding_std %v: must be 0 (the default) or more", o.EmbeddingStd)
	case !finite(o.GateBiasLow) || !finite(o.GateBiasHigh):
		return fmt.Errorf("gate_bias_low %v, gate_bias_high %v: must be finite", o.GateBiasLow, o.GateBiasHigh)
	case o.Tokens < 0:
		return fmt.Errorf("tokens %d: must be positive", o.Tokens)
	case o.Tokens > 0 && o.Steps != 0:
		return fmt.Errorf("steps %d and tokens %d: give one of them", o.Steps, o.Tokens)
	}
	if len(o.Validation) > 0 {
		o.HeldOut = 0
	}
	if o.Tokens > 0 {
		step := int64(o.Batch) * int64(o.Context) * int64(o.Accumulation)
		o.Steps, o.Tokens = int((o.Tokens-1)/step+1), 0
	}
	if o.Steps == 0 {
		o.Steps = 1000
	}
	if err := o.checkModel(); err != nil {
		return err
	}
	return o.Settings.Resolve()
}

// checkModel refuses keys of a new model beside one to go on from.
func (o *Options) checkModel() error {
	if o.Model == "" {
		_, err := o.config(256)
		return err
	}
	fresh := map[string]bool{"preset": true, "size": true, "hidden_size": true, "layers": true, "heads": true, "kv_heads": true, "head_dim": true,
		"intermediate_size": true, "slots": true, "tie_word_embeddings": true, "gate_bias": true, "embedding_std": true}
	defaults := map[string]string{}
	for _, k := range Keys() {
		defaults[k.Name] = k.Default
	}
	var err error
	o.each(func(f reflect.StructField, v reflect.Value) {
		if key := f.Tag.Get("toml"); fresh[key] && show(v) != defaults[key] && err == nil {
			err = fmt.Errorf("%s %s: model %s already has its own; leave one of the two out", key, show(v), o.Model)
		}
	})
	return err
}

// config is the configuration of a new model.
func (o *Options) config(vocabulary int) (model.Config, error) {
	hidden, layers := 0, 0
	var names []string
	for _, s := range Sizes {
		names = append(names, s.Name)
		if s.Name == o.Size {
			hidden, layers = s.Hidden, s.Layers
		}
	}
	if hidden == 0 {
		return model.Config{}, fmt.Errorf("unknown size %q: choose one of %s", o.Size, strings.Join(names, ", "))
	}
	if o.HiddenSize > 0 {
		hidden = o.HiddenSize
	}
	if o.Layers > 0 {
		layers = o.Layers
	}
	c := model.NewConfig(vocabulary, hidden, layers)
	if o.Heads > 0 {
		c.NumHeads = o.Heads
	}
	c.NumKVHeads, c.HeadDim, c.IntermediateSize, c.TieWordEmbeddings = o.KVHeads, o.HeadDim, o.IntermediateSize, o.TieWordEmbeddings
	c.GateBias = o.GateBias
	c.MaxPositionEmbeddings = o.Context
	if err := c.ApplyPreset(o.Preset, c.LayerWindows[0], o.Slots); err != nil {
		return c, fmt.Errorf("preset: %w", err)
	}
	if o.GateBias && c.NumSlots == 0 {
		return c, fmt.Errorf("gate_bias: preset %s with slots %d has no gate", o.Preset, o.Slots)
	}
	if o.Windows != "" {
		var err error
		if c.LayerWindows, err = model.ParseWindows(o.Windows, layers); err != nil {
			return c, err
		}
	}
	return c, c.Resolve()
}

// newModel is a fresh model, or the one to go on from.
func (o *Options) newModel(vocabulary int, bos, eos *int, b backend.Backend) (*model.Model, error) {
	if o.Model != "" {
		m, err := model.Load(o.Model, b, model.LoadOptions{Train: true, Windows: o.Windows})
		if err != nil {
			return nil, err
		}
		if m.Config.VocabSize < vocabulary {
			return nil, errors.Join(fmt.Errorf("tokenizer: %d tokens, but model %s has a vocabulary of %d", vocabulary, o.Model, m.Config.VocabSize), m.Close())
		}
		return m, nil
	}
	c, err := o.config(vocabulary)
	if err != nil {
		return nil, err
	}
	c.BosTokenID, c.EosTokenID = bos, eos
	return model.New(c, b, model.Init{Seed: o.Seed, EmbeddingStd: o.EmbeddingStd, GateBiasLow: o.GateBiasLow, GateBiasHigh: o.GateBiasHigh})
}

// identity is the options that a resumed run must share with the run, by key. Where the schedule does not look at the end, the
// end may move. What moments are when nothing is said goes without saying, so that runs from before there was a choice go on.
func (o *Options) identity() map[string]string {
	id := map[string]string{}
	o.each(func(f reflect.StructField, v reflect.Value) {
		key := f.Tag.Get("toml")
		if f.Tag.Get("resume") != "free" && !(key == "steps" && o.Schedule == Constant) && !(key == "moments" && o.Moments == Float32) {
			id[key] = show(v)
		}
	})
	return id
}
