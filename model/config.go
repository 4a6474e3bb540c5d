package model

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	"nha/attention"
	"nha/tensor"
)

// Config is the config.json of model_type nha (SPEC 2), in Hugging Face's style. Resolve fills in what is derived and
// checks it; a Config that was read or resolved is complete.
type Config struct {
	ModelType             string   `json:"model_type"`
	Architectures         []string `json:"architectures"`
	VocabSize             int      `json:"vocab_size"`
	HiddenSize            int      `json:"hidden_size"`
	NumHiddenLayers       int      `json:"num_hidden_layers"`
	NumHeads              int      `json:"num_heads"`
	NumKVHeads            int      `json:"num_kv_heads"`
	HeadDim               int      `json:"head_dim"`
	NumSlots              int      `json:"num_slots"`
	LayerWindows          Windows  `json:"layer_windows"`
	IntermediateSize      int      `json:"intermediate_size"`
	RopeTheta             float64  `json:"rope_theta"`
	NormEps               float64  `json:"norm_eps"`
	GateLogitNormalizer   float64  `json:"gate_logit_normalizer"`
	GateBias              bool     `json:"gate_bias,omitempty"`
	EmptySlots            string   `json:"empty_slots"`
	ValueActivation       string   `json:"value_activation"`
	OutputNorm            bool     `json:"output_norm"`
	TieWordEmbeddings     bool     `json:"tie_word_embeddings"`
	MaxPositionEmbeddings int      `json:"max_position_embeddings"`
	BosTokenID            *int     `json:"bos_token_id,omitempty"`
	EosTokenID            *int     `json:"eos_token_id,omitempty"`
	PadTokenID            *int     `json:"pad_token_id,omitempty"`
	DType                 string   `json:"dtype"`
}

// Presets are the architectures that are settings of the one model: what changes between them, given equal sizes.
var Presets = []struct {
	Name, What string
	Apply      func(c *Config, window, slots int)
}{
	{"nha", "a window and slots under one softmax, the paper's model", func(c *Config, window, slots int) {
		c.setMixer(window, slots, "silu", true)
	}},
	{"gsa", "gated slots alone, a linear RNN (window 0)", func(c *Config, _, slots int) { c.setMixer(0, slots, "silu", true) }},
	{"window", "a sliding window alone (no slots)", func(c *Config, window, _ int) { c.setMixer(window, 0, "silu", true) }},
	{"transformer", "Transformer++, the Llama block: every window full, no slots", func(c *Config, _, _ int) {
		c.setMixer(attention.Full, 0, "none", false)
	}},
}

// ApplyPreset sets what the named preset sets; window and slots are used where the preset has them.
func (c *Config) ApplyPreset(name string, window, slots int) error {
	var names []string
	for _, p := range Presets {
		if p.Name == name {
			p.Apply(c, window, slots)
			return nil
		}
		names = append(names, p.Name)
	}
	return fmt.Errorf("unknown preset %q: choose one of %s", name, strings.Join(names, ", "))
}

func (c *Config) setMixer(window, slots int, activation string, norm bool) {
	c.LayerWindows = slices.Repeat(Windows{window}, max(c.NumHiddenLayers, 0))
	c.NumSlots, c.ValueActivation, c.OutputNorm = slots, activation, norm
	if slots == 0 {
		c.GateBias = false
	}
}

// NewConfig is the paper's defaults for a size: NHA with W = 32 and M = 64, head_dim 64.
func NewConfig(vocab, hidden, layers int) Config {
	c := Config{VocabSize: vocab, HiddenSize: hidden, NumHiddenLayers: layers, NumHeads: max(1, hidden/64)}
	c.setDefaults()
	c.setMixer(32, 64, "silu", true)
	return c
}

// setDefaults fills what a config.json may leave out and that is no number of the model's size.
func (c *Config) setDefaults() {
	*c = Config{ModelType: "nha", Architectures: []string{"NHAForCausalLM"}, VocabSize: c.VocabSize, HiddenSize: c.HiddenSize,
		NumHiddenLayers: c.NumHiddenLayers, NumHeads: c.NumHeads, NumSlots: 64, RopeTheta: 10000, NormEps: 1e-6, GateLogitNormalizer: 8,
		EmptySlots: "count", ValueActivation: "silu", OutputNorm: true, MaxPositionEmbeddings: 2048, DType: "float32"}
}

// Resolve fills in derived sizes and checks the whole; its errors name the key.
func (c *Config) Resolve() error {
	if c.NumKVHeads == 0 {
		c.NumKVHeads = c.NumHeads
	}
	for _, k := range []struct {
		key   string
		value int
	}{{"vocab_size", c.VocabSize}, {"hidden_size", c.HiddenSize}, {"num_hidden_layers", c.NumHiddenLayers}, {"num_heads", c.NumHeads},
		{"num_kv_heads", c.NumKVHeads}, {"max_position_embeddings", c.MaxPositionEmbeddings}} {
		if k.value < 1 || k.value > 1<<30 {
			return fmt.Errorf("%s %d: must be at least 1", k.key, k.value)
		}
	}
	if c.HeadDim == 0 {
		if c.HiddenSize%c.NumHeads != 0 {
			return fmt.Errorf("hidden_size %d is not a multiple of num_heads %d: give head_dim", c.HiddenSize, c.NumHeads)
		}
		c.HeadDim = c.HiddenSize / c.NumHeads
	}
	if c.HeadDim%2 != 0 {
		return fmt.Errorf("head_dim %d: rotary embedding needs an even number", c.HeadDim)
	}
	if c.IntermediateSize == 0 {
		c.IntermediateSize = 256 * ((c.HiddenSize*8/3 + 255) / 256)
	}
	switch {
	case c.IntermediateSize < 1:
		return fmt.Errorf("intermediate_size %d: must be at least 1", c.IntermediateSize)
	case !(c.RopeTheta > 0):
		return fmt.Errorf("rope_theta %v: must be positive", c.RopeTheta)
	case !(c.NormEps > 0):
		return fmt.Errorf("norm_eps %v: must be positive", c.NormEps)
	case c.ValueActivation != "silu" && c.ValueActivation != "none":
		return fmt.Errorf("value_activation %q: use silu or none", c.ValueActivation)
	case c.GateBias && c.NumSlots == 0:
		return fmt.Errorf("gate_bias needs slots: num_slots is 0")
	case c.NumSlots > 1<<16:
		return fmt.Errorf("num_slots %d: at most 65536", c.NumSlots)
	case len(c.LayerWindows) != c.NumHiddenLayers:
		return fmt.Errorf("layer_windows has %d windows, num_hidden_layers is %d", len(c.LayerWindows), c.NumHiddenLayers)
	}
	if _, err := tensor.ParseDType(c.DType); err != nil {
		return fmt.Errorf("dtype: %w", err)
	}
	for _, id := range []struct {
		key string
		id  *int
	}{{"bos_token_id", c.BosTokenID}, {"eos_token_id", c.EosTokenID}, {"pad_token_id", c.PadTokenID}} {
		if id.id != nil && (*id.id < 0 || *id.id >= c.VocabSize) {
			return fmt.Errorf("%s %d: outside the vocabulary of %d", id.key, *id.id, c.VocabSize)
		}
	}
	for i := range c.NumHiddenLayers {
		if _, err := c.Attention(i, nil); err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
	}
	return nil
}

// Attention is the operator's configuration in one layer.
func (c *Config) Attention(layer int, rope *attention.Rope) (*attention.Config, error) {
	empty, err := attention.ParseEmptySlots(c.EmptySlots)
	if err != nil {
		return nil, err
	}
	a := &attention.Config{QueryHeads: c.NumHeads, KVHeads: c.NumKVHeads, KeyDim: c.HeadDim, ValueDim: c.HeadDim, Slots: c.NumSlots,
		Window: c.LayerWindows[layer], Scale: scale(c.HeadDim), GateNormalizer: c.GateLogitNormalizer, EmptySlots: empty, Rope: rope}
	return a, a.Check()
}

// ignoredKeys are keys of config.json that do not change the function.
var ignoredKeys = []string{"use_cache", "pretraining_tp", "initializer_range", "transformers_version", "torch_dtype", "_name_or_path",
	"attention_dropout", "hidden_act", "auto_map", "fuse_norm", "fuse_swiglu", "fuse_cross_entropy"}

// ReadConfig reads DIR/config.json. A key that is not known to leave the function as it is, is an error.
func ReadConfig(dir string) (Config, error) {
	path := filepath.Join(dir, "config.json")
	data, err := os.ReadFile(path)
	if err != nil {
		return Config{}, fmt.Errorf("no model in %s: %w", dir, err)
	}
	c, err := ParseConfig(data)
	if err != nil {
		return Config{}, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// ParseConfig reads the text of a config.json.
func ParseConfig(data []byte) (Config, error) {
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(data, &raw); err != nil {
		return Config{}, fmt.Errorf("not a JSON object: %w", err)
	}
	var kind string
	if err := json.Unmarshal(raw["model_type"], &kind); err != nil || kind != "nha" {
		return Config{}, fmt.Errorf("model_type %s is not supported: use nha", orMissing(raw["model_type"]))
	}
	var c Config
	c.setDefaults()
	known, err := json.Marshal(c)
	if err != nil {
		return Config{}, err
	}
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(known, &keys); err != nil {
		return Config{}, err
	}
	var unknown []string
	for k := range raw {
		_, ok := keys[k]
		if !ok && !slices.Contains(ignoredKeys, k) && !slices.Contains([]string{"gate_bias", "bos_token_id", "eos_token_id", "pad_token_id"}, k) {
			unknown = append(unknown, k)
		}
	}
	if len(unknown) > 0 {
		sort.Strings(unknown)
		return Config{}, fmt.Errorf("unknown key %s: it may change what the model computes", strings.Join(unknown, ", "))
	}
	windows := raw["layer_windows"]
	delete(raw, "layer_windows")
	rest, err := json.Marshal(raw)
	if err != nil {
		return Config{}, err
	}
	if err := json.Unmarshal(rest, &c); err != nil {
		return Config{}, err
	}
	if c.NumHiddenLayers < 1 || c.NumHiddenLayers > 1<<16 {
		return Config{}, fmt.Errorf("num_hidden_layers %d: must be 1 to 65536", c.NumHiddenLayers)
	}
	if windows == nil {
		windows = json.RawMessage("32")
	}
	if c.LayerWindows, err = windowsFromJSON(windows, c.NumHiddenLayers); err != nil {
		return Config{}, err
	}
	return c, c.Resolve()
}

func orMissing(raw json.RawMessage) string {
	if raw == nil {
		return "(missing)"
	}
	return string(raw)
}
