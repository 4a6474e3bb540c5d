package weights

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"nha/tensor"
)

// ggufKeys are the keys below an architecture's prefix that Config reads or that do not change the function. Another one is
// an error: it may.
var ggufKeys = []string{"vocab_size", "context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count", "attention.head_count_kv",
	"attention.key_length", "attention.value_length", "attention.layer_norm_rms_epsilon", "attention.sliding_window", "rope.dimension_count", "rope.freq_base",
	"rope.scaling.type", "rope.scaling.factor", "rope.scale_linear", "rope.scaling.original_context_length", "rope.scaling.finetuned", "expert_count",
	"expert_used_count", "expert_feed_forward_length", "attention.causal", "tensor_data_layout", "pooling_type"}

// Config is the text of the config.json that Hugging Face would have beside this model. An architecture, a kind of rotary
// scaling or a key that is not understood is an error.
func (g *GGUF) Config() ([]byte, error) {
	c, err := g.config()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", g.path, err)
	}
	return json.MarshalIndent(c, "", "  ")
}

// ggufReader reads keys of one architecture; the first error stays.
type ggufReader struct {
	*GGUF
	err error
}

func (g *GGUF) config() (map[string]any, error) {
	if g.family == nil {
		return nil, errors.New("a vocabulary without tensors: no model")
	}
	r := &ggufReader{GGUF: g}
	f := g.family
	r.checkKeys()
	heads, kv, err := g.headCounts()
	if err != nil {
		return nil, err
	}
	embedding, ok := g.entries[ggufModel["token_embd.weight"]]
	if !ok || embedding.shape.Rank() != 2 {
		return nil, errors.New(`tensor "token_embd.weight" is missing or no matrix`)
	}
	vocabulary, hidden := embedding.shape.Dim(0), r.integer("embedding_length")
	_, untied := g.entries["lm_head.weight"]
	c := map[string]any{
		"architectures": []string{f.class}, "model_type": f.modelType, "vocab_size": vocabulary, "hidden_size": hidden, "hidden_act": "silu",
		"num_hidden_layers": r.integer("block_count"), "num_attention_heads": heads, "num_key_value_heads": kv, "head_dim": r.headDim(hidden, heads),
		"max_position_embeddings": r.integer("context_length"), "rms_norm_eps": r.float("attention.layer_norm_rms_epsilon"),
		"tie_word_embeddings": !untied, "dtype": configDType(embedding.dtype),
	}
	r.vocabulary(vocabulary)
	r.feedForward(c)
	r.rope(c)
	r.window(c)
	if c["model_type"] == "llama" { // Mistral never has them
		_, c["attention_bias"] = g.entries["model.layers.0.self_attn.q_proj.bias"]
		_, c["mlp_bias"] = g.entries["model.layers.0.mlp.up_proj.bias"]
	}
	for key, name := range map[string]string{"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"} {
		if id, ok := g.values["tokenizer.ggml."+name+"_token_id"].(uint64); ok && id < uint64(vocabulary) {
			c[key] = id
		}
	}
	return c, r.err
}

// configDType is a float type's name in a config; what is stored in blocks counts as float32.
func configDType(d tensor.DType) string {
	switch d {
	case tensor.F16:
		return "float16"
	case tensor.BF16:
		return "bfloat16"
	}
	return "float32"
}

func (r *ggufReader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf(format, args...)
	}
}

func (r *ggufReader) key(name string) string { return r.family.name + "." + name }

func (r *ggufReader) has(name string) bool {
	_, ok := r.values[r.key(name)]
	return ok
}

func (r *ggufReader) checkKeys() {
	for _, key := range slices.Sorted(maps.Keys(r.values)) {
		if name, ok := strings.CutPrefix(key, r.family.name+"."); ok && !slices.Contains(ggufKeys, name) {
			r.fail("metadata %.100q is not understood: it may change what the model computes", key)
		}
	}
	if causal, ok := r.values[r.key("attention.causal")]; ok && causal != true {
		r.fail("%s %v: only causal attention is supported", r.key("attention.causal"), causal)
	}
	if layout, ok := r.values[r.key("tensor_data_layout")]; ok && layout != "Meta AI original pth" {
		r.fail("%s %.50v is not supported", r.key("tensor_data_layout"), layout)
	}
}

// integer is a positive number that must be there.
func (r *ggufReader) integer(name string) int {
	n, err := r.GGUF.integer(r.key(name))
	if err != nil {
		r.fail("%w", err)
	}
	return n
}

// integer is a positive number below 2^30; a list of one number for every layer counts as that number.
func (g *GGUF) integer(key string) (int, error) {
	v, ok := g.values[key]
	if !ok {
		return 0, fmt.Errorf("metadata %q is missing", key)
	}
	if list, ok := v.([]int32); ok && len(list) > 0 {
		for _, n := range list {
			if n != list[0] {
				return 0, fmt.Errorf("%s differs between layers: not supported", key)
			}
		}
		v = int64(list[0])
	}
	if n, ok := v.(int64); ok && n > 0 {
		v = uint64(n)
	}
	n, ok := v.(uint64)
	if !ok || n == 0 || n > 1<<30 {
		return 0, fmt.Errorf("%s %.50v: want a positive number", key, v)
	}
	return int(n), nil
}

// float is a positive number that must be there. It is float32 in the file: the shortest text that means it is the one the
// model's author wrote.
func (r *ggufReader) float(name string) json.Number {
	v, ok := r.values[r.key(name)].(float64)
	if !ok || !(v > 0) || math.IsInf(v, 0) {
		r.fail("%s %v: want a positive number", r.key(name), r.values[r.key(name)])
		return "0"
	}
	return json.Number(strconv.FormatFloat(v, 'g', -1, 32))
}

func (g *GGUF) headCounts() (heads, kv int, err error) {
	key := g.family.name + ".attention.head_count"
	if heads, err = g.integer(key); err != nil {
		return 0, 0, err
	}
	if _, ok := g.values[key+"_kv"]; !ok {
		return heads, heads, nil
	}
	kv, err = g.integer(key + "_kv")
	return heads, kv, err
}

// headDim is attention.key_length, or what the embedding gives each head. Keys, values and the rotated part must be alike.
func (r *ggufReader) headDim(hidden, heads int) int {
	d := hidden / heads
	if r.has("attention.key_length") {
		d = r.integer("attention.key_length")
	}
	for _, name := range []string{"attention.value_length", "rope.dimension_count"} {
		if r.has(name) && r.integer(name) != d {
			r.fail("%s %d: a head's size is %d, and another one here is not supported", r.key(name), r.integer(name), d)
		}
	}
	return d
}

// vocabulary holds the other places that say the vocabulary's size against the embedding.
func (r *ggufReader) vocabulary(rows int) {
	if r.has("vocab_size") && r.integer("vocab_size") != rows {
		r.fail("%s %d, but the embedding has %d rows", r.key("vocab_size"), r.integer("vocab_size"), rows)
	}
	if tokens, ok := r.values["tokenizer.ggml.tokens"].([]string); ok && len(tokens) != rows {
		r.fail("tokenizer.ggml.tokens has %d tokens, but the embedding has %d rows", len(tokens), rows)
	}
}

func (r *ggufReader) feedForward(c map[string]any) {
	if r.family.name != "qwen3moe" {
		if n, ok := r.values[r.key("expert_count")].(uint64); ok && n > 0 {
			r.fail("%s %d: architecture %s with experts is not supported", r.key("expert_count"), n, r.family.name)
		}
		c["intermediate_size"] = r.integer("feed_forward_length")
		return
	}
	used := r.integer("expert_used_count")
	inner := 0
	if r.has("feed_forward_length") {
		inner = r.integer("feed_forward_length")
	}
	expert := inner / max(used, 1)
	if r.has("expert_feed_forward_length") {
		expert = r.integer("expert_feed_forward_length")
	}
	// llama.cpp runs every layer of this architecture with experts and normalises the chosen ones' weights.
	c["num_experts"], c["num_experts_per_tok"], c["moe_intermediate_size"] = r.integer("expert_count"), used, expert
	c["norm_topk_prob"], c["decoder_sparse_step"], c["mlp_only_layers"] = true, 1, []int{}
	c["intermediate_size"] = max(inner, expert)
}

// window: only Mistral has one, in every layer. llama.cpp itself ignores it for the other architectures.
func (r *ggufReader) window(c map[string]any) {
	if v, ok := r.values[r.key("attention.sliding_window")]; !ok || v == uint64(0) {
		return
	}
	if r.family.name != "llama" {
		r.fail("%s: a sliding window in architecture %s is not supported", r.key("attention.sliding_window"), r.family.name)
		return
	}
	c["architectures"], c["model_type"], c["sliding_window"] = []string{"MistralForCausalLM"}, "mistral", r.integer("attention.sliding_window")
}

// rope sets rope_theta and, where positions are scaled, rope_scaling.
func (r *ggufReader) rope(c map[string]any) {
	theta := json.Number("10000")
	if r.has("rope.freq_base") {
		theta = r.float("rope.freq_base")
	}
	c["rope_theta"] = theta
	factor := json.Number("1")
	for _, name := range []string{"rope.scale_linear", "rope.scaling.factor"} {
		if v, ok := r.values[r.key(name)].(float64); ok && v != 0 {
			factor = r.float(name)
		}
	}
	switch kind := r.values[r.key("rope.scaling.type")]; kind {
	case nil, "linear":
		if factor != "1" {
			c["rope_scaling"] = map[string]any{"rope_type": "linear", "factor": factor}
		}
	case "none":
	default:
		r.fail("%s %.50q is not supported: none and linear are, and llama3 by %s", r.key("rope.scaling.type"), kind, ropeFactorsName)
	}
	if r.factors.dtype == tensor.Invalid || r.err != nil {
		return
	}
	base, _ := theta.Float64()
	scaling, err := r.llama3(base, c["head_dim"].(int))
	switch {
	case err != nil:
		r.fail("tensor %q: %w", ropeFactorsName, err)
	case scaling != nil && c["rope_scaling"] != nil:
		r.fail("tensor %q together with linear scaling is not supported", ropeFactorsName)
	case scaling != nil:
		c["rope_scaling"] = scaling
	}
}
