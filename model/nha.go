package model

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
)

// The NHA language model (SPEC 2): v passes a SiLU, the heads' outputs a SiLU and one RMSNorm over the whole width, and the
// windows and slots stand in config.json itself. Tensor names are those of the paper's reference.
const (
	nhaType         = "nha"
	nhaArchitecture = "NHAForCausalLM"
)

func init() {
	register(&family{modelType: nhaType, architecture: nhaArchitecture, keys: keyNames{heads: "num_heads", kvHeads: "num_kv_heads", normEps: "norm_eps"},
		tensors: tensorNames{embedding: "model.embeddings.weight", attnNorm: "attn_norm", mixer: "attn", gate: "f_proj", mlpNorm: "mlp_norm"}, parse: parseNHA})
}

// nhaIgnored are keys that the reference writes and that do not change the function.
var nhaIgnored = slices.Concat(ignoredKeys, []string{"hidden_act", "fuse_norm", "fuse_swiglu", "fuse_cross_entropy"})

// parseNHA reads config.json by the tags of Config: whatever a default configuration writes may stand in it.
func parseNHA(_ *family, raw map[string]json.RawMessage) (Config, error) {
	var c Config
	c.setDefaults()
	known, err := json.Marshal(c)
	if err != nil {
		return Config{}, err
	}
	k := &fields{raw: raw, asked: map[string]bool{"gate_bias": true, "bos_token_id": true, "eos_token_id": true, "pad_token_id": true}}
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(known, &keys); err != nil {
		return Config{}, err
	}
	for key := range keys {
		k.ask(key)
	}
	if err := k.finish(nhaIgnored); err != nil {
		return Config{}, err
	}
	windows, ok := k.ask("layer_windows")
	if !ok {
		windows = json.RawMessage("32")
	}
	rest := maps.Clone(raw)
	delete(rest, "layer_windows")
	text, err := json.Marshal(rest)
	if err != nil {
		return Config{}, err
	}
	if err := json.Unmarshal(text, &c); err != nil {
		return Config{}, err
	}
	if c.NumHiddenLayers < 1 || c.NumHiddenLayers > 1<<16 {
		return Config{}, fmt.Errorf("num_hidden_layers %d: must be 1 to 65536", c.NumHiddenLayers)
	}
	if c.LayerWindows, err = windowsFromJSON(windows, c.NumHiddenLayers); err != nil {
		return Config{}, err
	}
	return c, c.Resolve()
}
