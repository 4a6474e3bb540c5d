package model

import (
	"encoding/json"
	"fmt"
	"slices"

	"nha/attention"
)

// The pretrained families are one block with switches (SPEC 2): pre-norm, grouped heads, rotate-half RoPE, SwiGLU. What follows reads the
// keys that they share; defaults are those of the transformers library.

var (
	huggingFaceKeys    = keyNames{heads: "num_attention_heads", kvHeads: "num_key_value_heads", normEps: "rms_norm_eps"}
	huggingFaceTensors = tensorNames{embedding: "model.embed_tokens.weight", attnNorm: "input_layernorm", mixer: "self_attn", gate: "g_proj",
		mlpNorm: "post_attention_layernorm"}
)

// ignoredKeys are keys of config.json that do not change the function: bookkeeping, training alone, what generation_config.json
// now holds.
var ignoredKeys = []string{"use_cache", "pretraining_tp", "initializer_range", "transformers_version", "torch_dtype", "_name_or_path", "architectures",
	"model_type", "attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "auto_map", "output_router_logits", "router_aux_loss_coef", "output_attentions",
	"output_hidden_states", "return_dict", "torchscript", "use_bfloat16", "chunk_size_feed_forward", "is_decoder", "pruned_heads", "tf_legacy_loss",
	"tokenizer_class", "task_specific_params", "problem_type", "finetuning_task", "id2label", "label2id", "prefix", "sep_token_id",
	"decoder_start_token_id", "is_llama_config", "unsloth_version", "unsloth_fixed", "transformers.js_config", "_attn_implementation",
	"attn_implementation", "_attn_implementation_autoset", "_flash_attn_2_enabled", "use_flash_attn", "max_length", "min_length", "do_sample", "temperature", "top_k",
	"top_p", "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size", "num_beams", "num_beam_groups", "num_return_sequences",
	"diversity_penalty", "early_stopping", "bad_words_ids", "begin_suppress_tokens", "suppress_tokens", "forced_bos_token_id", "forced_eos_token_id",
	"encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "output_scores", "return_dict_in_generate", "remove_invalid_values"}

// parsePretrained reads the config.json of a pretrained family.
func parsePretrained(f *family, raw map[string]json.RawMessage) (Config, error) {
	k := &fields{raw: raw}
	c := Config{ModelType: f.modelType, Architectures: []string{f.architecture}, RopeTheta: 10000, NormEps: 1e-6, GateLogitNormalizer: 8, EmptySlots: "mask",
		ValueActivation: "none", MaxPositionEmbeddings: f.context, DType: "float32", raw: raw, dtypeAs: "dtype"}
	k.need("vocab_size", &c.VocabSize)
	k.need("hidden_size", &c.HiddenSize)
	k.need("num_hidden_layers", &c.NumHiddenLayers)
	k.need(f.keys.heads, &c.NumHeads)
	k.need("intermediate_size", &c.IntermediateSize)
	if _, there := raw[f.keys.kvHeads]; !there && f.modelType != "llama" { // there the library's default is a number
		k.fail("%s is missing", f.keys.kvHeads)
	}
	k.read(f.keys.kvHeads, &c.NumKVHeads)
	k.read("head_dim", &c.HeadDim)
	k.read(f.keys.normEps, &c.NormEps)
	k.read("max_position_embeddings", &c.MaxPositionEmbeddings)
	k.read("tie_word_embeddings", &c.TieWordEmbeddings)
	if _, ok := raw["torch_dtype"]; ok {
		c.dtypeAs = "torch_dtype"
	}
	if _, ok := raw["dtype"]; ok {
		c.dtypeAs = "dtype"
	}
	k.read(c.dtypeAs, &c.DType)
	k.only("hidden_act", "silu", "swish")
	k.only("is_encoder_decoder", false)
	k.only("add_cross_attention", false)
	k.only("tie_encoder_decoder", false)
	k.only("rope_interleaved", false)
	k.only("partial_rotary_factor", 1.0)
	c.readTokens(k)
	c.readRope(k)
	if k.err == nil && (c.NumHiddenLayers < 1 || c.NumHiddenLayers > 1<<16) {
		k.fail("num_hidden_layers %d: must be 1 to 65536", c.NumHiddenLayers)
	}
	if k.err != nil {
		return Config{}, k.err
	}
	if err := f.own(&c, k, c.NumHiddenLayers); err != nil {
		return Config{}, err
	}
	c.LayerWindows = slices.Clone(c.base)
	c.readHybrid(k)
	if err := k.finish(ignoredKeys); err != nil {
		return Config{}, err
	}
	return c, c.Resolve()
}

// readTokens reads the special tokens. Many files hold a padding token outside the vocabulary, and nothing here pads.
func (c *Config) readTokens(k *fields) {
	token := func(key string) *int {
		var id int
		if !k.read(key, &id) {
			return nil
		}
		return &id
	}
	c.BosTokenID = token("bos_token_id")
	if raw, ok := k.ask("eos_token_id"); ok && raw[0] == '[' {
		if k.read("eos_token_id", &c.EosTokenIDs) && len(c.EosTokenIDs) > 0 {
			c.EosTokenID = &c.EosTokenIDs[0]
		}
	} else {
		c.EosTokenID = token("eos_token_id")
	}
	if c.PadTokenID = token("pad_token_id"); c.PadTokenID != nil && (*c.PadTokenID < 0 || *c.PadTokenID >= c.VocabSize) {
		c.PadTokenID = nil
	}
}

// readSlidingWindow is sliding_window, with the family's default where the key is absent; false where it is null.
func readSlidingWindow(k *fields, absent int) (window int, ok bool) {
	window = absent
	k.read("sliding_window", &window)
	return window, !k.null("sliding_window")
}

// readLayerTypes is layer_types as windows, nil where there is none. window is that of the sliding layers; 0: the model has none.
func readLayerTypes(k *fields, layers, window int) (Windows, error) {
	var types []string
	if !k.read("layer_types", &types) {
		return nil, k.err
	}
	if len(types) != layers {
		return nil, fmt.Errorf("layer_types lists %d layers, num_hidden_layers is %d", len(types), layers)
	}
	windows := make(Windows, layers)
	for i, t := range types {
		switch {
		case t == "full_attention":
			windows[i] = attention.Full
		case t == "sliding_attention" && window > 0:
			windows[i] = window
		case t == "sliding_attention":
			return nil, fmt.Errorf("layer_types: layer %d is sliding_attention, but there is no sliding_window", i)
		default:
			return nil, fmt.Errorf("layer_types: %q of layer %d is not supported: use full_attention or sliding_attention", t, i)
		}
	}
	return windows, nil
}

// readAlternating sets the windows of a Qwen (SPEC 2): layer_types, or without it the layers from max_window_layers on where
// use_sliding_window is set.
func (c *Config) readAlternating(k *fields, layers int) (err error) {
	use, from := false, 28
	k.read("use_sliding_window", &use)
	k.read("max_window_layers", &from)
	window, ok := readSlidingWindow(k, 4096)
	if !use || !ok {
		window = 0
	}
	if c.base, err = readLayerTypes(k, layers, window); err != nil || c.base != nil {
		return err
	}
	c.base = every(layers, attention.Full)
	if window > 0 {
		for i := max(0, from); i < layers; i++ {
			c.base[i] = window
		}
	}
	return k.err
}

func every(layers, window int) Windows { return slices.Repeat(Windows{window}, layers) }
