package model

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"nha/attention"
	"nha/tensor"
)

// Config is what a model of any family computes, resolved: every family reads its config.json into it (family.go) and the rest of
// the program sees nothing else. The tags are family nha's keys of config.json and what the hash of a model is made of. Resolve
// fills in what is derived and checks it; a Config that was read or resolved is complete.
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
	EosTokenID            *int     `json:"eos_token_id,omitempty"` // the first, where EosTokenIDs lists several
	PadTokenID            *int     `json:"pad_token_id,omitempty"`
	DType                 string   `json:"dtype"`

	// Of the pretrained families alone.
	EosTokenIDs []int       `json:"eos_token_ids,omitempty"`
	RopeScaling RopeScaling `json:"rope_scaling,omitzero"`
	QKVBias     bool        `json:"qkv_bias,omitempty"` // q, k and v projections have a bias
	OutputBias  bool        `json:"o_bias,omitempty"`   // so has the output projection
	MLPBias     bool        `json:"mlp_bias,omitempty"`
	QKNorm      bool        `json:"qk_norm,omitempty"` // q and k pass an RMSNorm per head
	Experts     Experts     `json:"experts,omitzero"`

	base    Windows                    // the windows that the family's own keys give; nil in family nha
	raw     map[string]json.RawMessage // config.json as it was read; nil in family nha
	dtypeAs string                     // the key of raw that names the type
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
	*c = Config{ModelType: nhaType, Architectures: []string{nhaArchitecture}, VocabSize: c.VocabSize, HiddenSize: c.HiddenSize,
		NumHiddenLayers: c.NumHiddenLayers, NumHeads: c.NumHeads, NumSlots: 64, RopeTheta: 10000, NormEps: 1e-6, GateLogitNormalizer: 8,
		EmptySlots: "count", ValueActivation: "silu", OutputNorm: true, MaxPositionEmbeddings: 2048, DType: "float32"}
}

// Resolve fills in derived sizes and checks the whole; its errors name the key of config.json.
func (c *Config) Resolve() error {
	f, err := c.family()
	if err != nil {
		return err
	}
	if c.NumKVHeads == 0 {
		c.NumKVHeads = c.NumHeads
	}
	for _, k := range []struct {
		key   string
		value int
	}{{"vocab_size", c.VocabSize}, {"hidden_size", c.HiddenSize}, {"num_hidden_layers", c.NumHiddenLayers}, {f.keys.heads, c.NumHeads},
		{f.keys.kvHeads, c.NumKVHeads}, {"max_position_embeddings", c.MaxPositionEmbeddings}} {
		if k.value < 1 || k.value > 1<<30 {
			return fmt.Errorf("%s %d: must be at least 1", k.key, k.value)
		}
	}
	if c.NumHeads%c.NumKVHeads != 0 {
		return fmt.Errorf("%s %d is not a multiple of %s %d", f.keys.heads, c.NumHeads, f.keys.kvHeads, c.NumKVHeads)
	}
	if c.HeadDim == 0 {
		if c.HiddenSize%c.NumHeads != 0 {
			return fmt.Errorf("hidden_size %d is not a multiple of %s %d: give head_dim", c.HiddenSize, f.keys.heads, c.NumHeads)
		}
		c.HeadDim = c.HiddenSize / c.NumHeads
	}
	if c.HeadDim < 2 || c.HeadDim > 1<<20 || c.HeadDim%2 != 0 {
		return fmt.Errorf("head_dim %d: rotary embedding needs an even number from 2 to %d", c.HeadDim, 1<<20)
	}
	if c.IntermediateSize == 0 {
		c.IntermediateSize = 256 * ((c.HiddenSize*8/3 + 255) / 256)
	}
	switch {
	case c.IntermediateSize < 1:
		return fmt.Errorf("intermediate_size %d: must be at least 1", c.IntermediateSize)
	case !(c.RopeTheta > 0) || math.IsInf(c.RopeTheta, 0):
		return fmt.Errorf("rope_theta %v: must be positive", c.RopeTheta)
	case !(c.NormEps > 0):
		return fmt.Errorf("%s %v: must be positive", f.keys.normEps, c.NormEps)
	case c.ValueActivation != "silu" && c.ValueActivation != "none":
		return fmt.Errorf("value_activation %q: use silu or none", c.ValueActivation)
	case c.GateBias && c.NumSlots == 0:
		return fmt.Errorf("gate_bias needs slots: num_slots is 0")
	case c.NumSlots > 1<<16:
		return fmt.Errorf("num_slots %d: at most 65536", c.NumSlots)
	case len(c.LayerWindows) != c.NumHiddenLayers:
		return fmt.Errorf("layer_windows has %d windows, num_hidden_layers is %d", len(c.LayerWindows), c.NumHiddenLayers)
	}
	for _, err := range []error{c.RopeScaling.check(), c.Experts.check(c.NumHiddenLayers)} {
		if err != nil {
			return err
		}
	}
	if d, err := tensor.ParseDType(c.DType); err != nil {
		return fmt.Errorf("dtype: %w", err)
	} else if !d.Float() {
		return fmt.Errorf("dtype %q: use float32, float16 or bfloat16", c.DType)
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
		Window: c.LayerWindows[layer], Scale: 1 / math.Sqrt(float64(c.HeadDim)), GateNormalizer: c.GateLogitNormalizer, EmptySlots: empty, Rope: rope}
	return a, a.Check()
}

// ApplyWindows moves the dial: a pattern for all layers (SPEC 2).
func (c *Config) ApplyWindows(pattern string) error {
	w, err := ParseWindows(pattern, c.NumHiddenLayers)
	if err != nil {
		return err
	}
	c.LayerWindows = w
	return c.Resolve()
}

// TrainedContext is the number of tokens from which on some layer looks further back than the model's rotary positions were
// trained for; 0 where none ever does, since every window is within them. Callers warn once past it.
func (c *Config) TrainedContext() int {
	for _, w := range c.LayerWindows {
		if w > c.MaxPositionEmbeddings {
			return c.MaxPositionEmbeddings
		}
	}
	return 0
}

// CheckTokenizer refuses a tokenizer with more tokens than the model has embeddings. It may have fewer: tables are padded.
func (c *Config) CheckTokenizer(tokens int) error {
	if tokens > c.VocabSize {
		return fmt.Errorf("the tokenizer has %d tokens, the model's vocabulary is %d: they do not belong together", tokens, c.VocabSize)
	}
	return nil
}

// MarshalJSON is the text of config.json. A pretrained family keeps every key that it was read with; the type, and what makes a
// hybrid of it, are set.
func (c Config) MarshalJSON() ([]byte, error) {
	if c.raw == nil {
		type plain Config
		return json.Marshal(plain(c))
	}
	all := maps.Clone(c.raw)
	all[c.dtypeAs] = quote(c.DType)
	delete(all, hybridKey)
	if block, ok := c.block(); ok {
		text, err := json.Marshal(block)
		if err != nil {
			return nil, err
		}
		all[hybridKey] = text
	}
	return json.Marshal(all)
}

// function is what a model computes as text, for its hash: without the windows, which states record themselves, and the type; of a
// pretrained family without the special tokens, which its files do not agree on.
func (c Config) function() any {
	type plain Config
	c.LayerWindows, c.DType = nil, ""
	if c.raw != nil {
		c.BosTokenID, c.EosTokenID, c.PadTokenID, c.EosTokenIDs = nil, nil, nil, nil
	}
	return plain(c)
}

func quote(s string) json.RawMessage {
	text, _ := json.Marshal(s) // a string encodes
	return text
}

// ParseConfig reads the text of a config.json of any family. A key that may change what the model computes and is not understood is an
// error.
func ParseConfig(data []byte) (Config, error) {
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(data, &raw); err != nil {
		return Config{}, fmt.Errorf("not a JSON object: %w", err)
	}
	f, err := findFamily(raw)
	if err != nil {
		return Config{}, err
	}
	return f.parse(f, raw)
}
