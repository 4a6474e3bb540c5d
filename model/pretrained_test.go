package model

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nha/attention"
)

// config is a config.json of a family with some keys set; a nil value takes a key out.
func config(kind string, keys map[string]any) []byte {
	all := map[string]any{"model_type": kind, "vocab_size": 40, "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 4, "num_attention_heads": 4,
		"num_key_value_heads": 2}
	if kind == "qwen3_moe" {
		maps.Copy(all, map[string]any{"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 8})
	}
	maps.Copy(all, keys)
	text, err := json.Marshal(all)
	if err != nil {
		panic(err)
	}
	return text
}

type keys = map[string]any

// TestFamilyConfigs reads the spellings and defaults of the transformers library.
func TestFamilyConfigs(t *testing.T) {
	full := attention.Full
	llama3 := keys{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
	llama3Parameters := maps.Clone(llama3)
	llama3Parameters["rope_theta"] = 500000.0
	scaled := RopeScaling{Type: "llama3", Factor: 8, LowFreqFactor: 1, HighFreqFactor: 4, OriginalContext: 64}
	for i, c := range []struct {
		kind string
		keys keys
		want func(c Config) any
		is   any
	}{
		{"llama", keys{"num_key_value_heads": nil}, func(c Config) any { return c.NumKVHeads }, 4},
		{"llama", nil, func(c Config) any {
			return []any{c.HeadDim, c.RopeTheta, c.NormEps, c.TieWordEmbeddings, c.MaxPositionEmbeddings, c.LayerWindows, c.NumSlots, c.EmptySlots, c.DType}
		}, []any{4, 10000.0, 1e-6, false, 2048, Windows{full, full, full, full}, 0, "mask", "float32"}},
		{"llama", keys{"model_type": nil, "architectures": []string{"LlamaForCausalLM"}}, func(c Config) any { return c.ModelType }, "llama"},
		{"llama", keys{"attention_bias": true, "mlp_bias": true}, func(c Config) any { return []any{c.QKVBias, c.OutputBias, c.MLPBias} }, []any{true, true, true}},
		{"llama", keys{"torch_dtype": "bfloat16"}, func(c Config) any { return c.DType }, "bfloat16"},
		{"llama", keys{"dtype": "float16"}, func(c Config) any { return c.DType }, "float16"},
		{"llama", keys{"pad_token_id": -1, "eos_token_id": []int{7, 9}}, func(c Config) any { return []any{c.PadTokenID == nil, *c.EosTokenID, c.EosTokenIDs} }, []any{true, 7, []int{7, 9}}},
		{"llama", keys{"rope_interleaved": false, "is_llama_config": true, "rope_scaling": nil, "unknown": nil}, func(c Config) any { return c.RopeScaling }, RopeScaling{}},
		{"llama", keys{"rope_theta": 500000.0, "rope_scaling": llama3}, func(c Config) any { return []any{c.RopeTheta, c.RopeScaling} }, []any{500000.0, scaled}},
		{"llama", keys{"rope_parameters": llama3Parameters}, func(c Config) any { return []any{c.RopeTheta, c.RopeScaling} }, []any{500000.0, scaled}},
		{"llama", keys{"rope_scaling": keys{"type": "linear", "factor": 2.0}}, func(c Config) any { return c.RopeScaling }, RopeScaling{Type: "linear", Factor: 2}},
		{"llama", keys{"max_position_embeddings": 100, "rope_scaling": keys{"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}},
			func(c Config) any { return c.RopeScaling.OriginalContext }, 100},
		{"mistral", keys{"sliding_window": nil}, func(c Config) any { return c.LayerWindows[0] }, 4096},
		{"mistral", keys{"sliding_window": json.RawMessage("null")}, func(c Config) any { return c.LayerWindows[3] }, full},
		{"mistral", keys{"sliding_window": 7}, func(c Config) any { return c.LayerWindows }, Windows{7, 7, 7, 7}},
		{"qwen2", nil, func(c Config) any { return []any{c.QKVBias, c.OutputBias, c.QKNorm, c.LayerWindows[0]} }, []any{true, false, false, full}},
		{"qwen2", keys{"sliding_window": 7, "max_window_layers": 1}, func(c Config) any { return c.LayerWindows }, Windows{full, full, full, full}},
		{"qwen2", keys{"use_sliding_window": true, "sliding_window": 7, "max_window_layers": 3}, func(c Config) any { return c.LayerWindows }, Windows{full, full, full, 7}},
		{"qwen2", keys{"use_sliding_window": true, "sliding_window": 7, "layer_types": []string{"sliding_attention", "full_attention", "full_attention", "sliding_attention"}},
			func(c Config) any { return c.LayerWindows }, Windows{7, full, full, 7}},
		{"qwen3", nil, func(c Config) any { return []any{c.HeadDim, c.QKNorm, c.QKVBias} }, []any{128, true, false}},
		{"qwen3_moe", nil, func(c Config) any { return []any{c.HeadDim, c.QKNorm, c.Experts} }, []any{4, true, Experts{Count: 6, TopK: 2, Size: 8}}},
		{"qwen3_moe", keys{"num_experts": nil, "num_local_experts": 5, "decoder_sparse_step": 2, "mlp_only_layers": []int{3}, "norm_topk_prob": true},
			func(c Config) any { return c.Experts }, Experts{Count: 5, TopK: 2, Size: 8, Normalize: true, DenseLayers: []int{0, 2, 3}}},
		{"qwen3_moe", keys{"use_sliding_window": true, "sliding_window": 9, "max_window_layers": 2}, func(c Config) any { return c.LayerWindows }, Windows{9, 9, 9, 9}},
		{"qwen3", keys{"nha": keys{"num_slots": 8, "layer_windows": "3*5 full"}},
			func(c Config) any { return []any{c.NumSlots, c.LayerWindows, c.EmptySlots, c.GateLogitNormalizer} },
			[]any{8, Windows{5, 5, 5, full}, "mask", 8.0}},
	} {
		drop := maps.Clone(c.keys)
		text := config(c.kind, c.keys)
		for key, v := range drop {
			if v == nil { // not null: taken out
				var all map[string]json.RawMessage
				if err := json.Unmarshal(text, &all); err != nil {
					t.Fatal(err)
				}
				delete(all, key)
				text, _ = json.Marshal(all)
			}
		}
		got, err := ParseConfig(text)
		if err != nil {
			t.Errorf("%d %s %v: %v", i, c.kind, c.keys, err)
		} else if have := c.want(got); fmt.Sprint(have) != fmt.Sprint(c.is) {
			t.Errorf("%d %s %v: %v, want %v", i, c.kind, c.keys, have, c.is)
		}
	}
}

// TestFamilyConfigsRefuse: what may change the function and is not understood is an error that names it and what is supported.
func TestFamilyConfigsRefuse(t *testing.T) {
	for _, c := range []struct {
		kind string
		keys keys
		says string
	}{
		{"gpt2", nil, `model_type "gpt2" is not supported: use one of llama, mistral, nha, qwen2, qwen3, qwen3_moe`},
		{"llama", keys{"architectures": []string{"LlamaForSequenceClassification"}}, "architecture LlamaForSequenceClassification of model_type llama is not supported: use LlamaForCausalLM"},
		{"llama", keys{"rope_scaling": keys{"rope_type": "yarn", "factor": 4}}, `rope_scaling: rope_type "yarn" is not supported: use one of default, linear, llama3`},
		{"llama", keys{"rope_scaling": keys{"type": "dynamic", "factor": 4}}, `"dynamic" is not supported`},
		{"llama", keys{"rope_scaling": keys{"type": "linear"}}, "factor 0 of rope_type linear"},
		{"llama", keys{"rope_parameters": keys{"rope_type": "llama3", "factor": 4, "rope_theta": 1e4}}, "low_freq_factor 0"},
		{"llama", keys{"rope_parameters": keys{"rope_theta": 1e4, "mscale": 2}}, "rope_parameters: unknown key mscale"},
		{"llama", keys{"rope_parameters": keys{"partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5 is not supported"},
		{"llama", keys{"rope_parameters": keys{"rope_theta": 1e4}, "rope_scaling": keys{"type": "linear", "factor": 2}}, "differ: give one of them"},
		{"llama", keys{"hidden_act": "gelu"}, `hidden_act "gelu" is not supported: only silu is`},
		{"llama", keys{"rope_interleaved": true}, "rope_interleaved true is not supported"},
		{"llama", keys{"quantization_config": keys{"bits": 4}}, "unknown key quantization_config"},
		{"llama", keys{"embedding_multiplier": 2.0}, "unknown key embedding_multiplier"},
		{"llama", keys{"vocab_size": json.RawMessage("null")}, "vocab_size is missing"},
		{"llama", keys{"hidden_size": "wide"}, `hidden_size "wide": want a value like 4`},
		{"llama", keys{"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of num_key_value_heads 3"},
		{"llama", keys{"num_key_value_heads": -1}, "num_key_value_heads -1"},
		{"llama", keys{"num_attention_heads": 3, "num_key_value_heads": 3}, "hidden_size 16 is not a multiple of num_attention_heads 3"},
		{"llama", keys{"rms_norm_eps": 0}, "rms_norm_eps 0"},
		{"llama", keys{"layer_types": []string{"full_attention", "full_attention"}}, "layer_types lists 2 layers"},
		{"llama", keys{"dtype": "float8"}, "dtype"},
		{"mistral", keys{"sliding_window": 0}, "attends to nothing"},
		{"mistral", keys{"sliding_window": -3}, "window -3"},
		{"mistral", keys{"attention_bias": true}, "unknown key attention_bias"},
		{"mistral", keys{"layer_types": []string{"full_attention", "sliding_attention", "full_attention", "sliding_attention"}}, "layers of different kinds"},
		{"qwen2", keys{"layer_types": []string{"full_attention", "sliding_attention", "full_attention", "linear_attention"}}, "there is no sliding_window"},
		{"qwen3", keys{"use_sliding_window": true, "layer_types": []string{"full_attention", "sliding_attention", "full_attention", "linear_attention"}}, `"linear_attention" of layer 3`},
		{"qwen3_moe", keys{"num_experts_per_tok": 7}, "num_experts_per_tok 7: must be 1 to num_experts 6"},
		{"qwen3_moe", keys{"num_local_experts": 7}, "num_experts 6 and num_local_experts 7"},
		{"qwen3_moe", keys{"decoder_sparse_step": 0}, "decoder_sparse_step 0"},
		{"qwen3_moe", keys{"shared_expert_intermediate_size": 5}, "unknown key shared_expert_intermediate_size"},
		{"qwen3", keys{"nha": keys{"layer_windows": 5}}, "nha: num_slots is missing"},
		{"qwen3", keys{"nha": keys{"num_slots": 4, "slots": 5}}, "nha: unknown key slots"},
		{"qwen3", keys{"nha": keys{"num_slots": 4, "layer_windows": []int{3}}}, "lists 1 windows"},
		{"qwen3", keys{"nha": keys{"num_slots": 0, "layer_windows": 0}}, "attends to nothing"},
	} {
		if _, err := ParseConfig(config(c.kind, c.keys)); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s %v: %v, want %q", c.kind, c.keys, err, c.says)
		}
	}
}

func TestTrainedContext(t *testing.T) {
	for windows, want := range map[string]int{"": 2048, "64": 0, "3*64 full": 2048, "2048": 0, "2049": 2048} {
		c, err := ParseConfig(config("llama", nil))
		if err != nil {
			t.Fatal(err)
		}
		if windows != "" {
			if err := c.ApplyWindows(windows); err != nil {
				t.Fatal(err)
			}
		}
		if got := c.TrainedContext(); got != want {
			t.Errorf("windows %q: trained for %d, want %d", windows, got, want)
		}
	}
}

// TestRopeScaling at the ends of llama3's three ranges and at the middle of the mixture, where half of the two is taken.
func TestRopeScaling(t *testing.T) {
	r := RopeScaling{Type: "llama3", Factor: 8, LowFreqFactor: 1, HighFreqFactor: 4, OriginalContext: 8192}
	turn := 2 * math.Pi / 8192 // the frequency of one turn over the original context
	for turns, want := range map[float64]float64{4.001: 4.001, 0.999: 0.999 / 8, 2.5: 2.5 * (1 + 1.0/8) / 2} {
		if got := r.frequency(turns * turn); math.Abs(got-want*turn) > 1e-15 {
			t.Errorf("%v turns: %v, want %v", turns, got/turn, want)
		}
	}
}

// TestMixtureAccount: a token pays for the experts that it reaches, not for all.
func TestMixtureAccount(t *testing.T) {
	c, err := ParseConfig(config("qwen3_moe", keys{"mlp_only_layers": []int{2}, "nha": keys{"num_slots": 0, "layer_windows": 1}}))
	if err != nil {
		t.Fatal(err)
	}
	a := c.Account(1)
	attention := 16*16 + 2*16*8 + 16*16                           // q, k, v, o
	sparse, dense, norms := 6*16+2*3*16*8, 3*16*20, 16+16+4+4     // router and two experts of six
	active := 4*(attention+norms) + 3*sparse + dense + 16 + 16*40 // the last norm, the head
	if want := 2 * (active + a.MultiplyAdds); a.FLOPsPerToken != want {
		t.Errorf("%d FLOPs a token, want %d", a.FLOPsPerToken, want)
	}
	if want := active + 16*40 + 3*4*3*16*8; a.Parameters != want {
		t.Errorf("%d parameters, want %d", a.Parameters, want)
	}
}

// FuzzConfig: whatever a config.json says, it is an error or a configuration that is written back as itself and can be counted.
func FuzzConfig(f *testing.F) {
	for _, kind := range ModelTypes() {
		f.Add(config(kind, keys{"nha": keys{"num_slots": 4, "layer_windows": "3 full"}, "rope_scaling": keys{"type": "linear", "factor": 2}}))
		f.Add(config(kind, nil))
	}
	f.Add([]byte(`{` + tiny + `}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := ParseConfig(text)
		if err != nil || c.NumHiddenLayers*max(1, c.Experts.Count) > 1<<10 { // too slow to count here
			return
		}
		once, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseConfig(once)
		if err != nil {
			t.Fatalf("written back as %s: %v", once, err)
		}
		twice, _ := json.Marshal(again)
		first, _ := json.Marshal(c.function())
		second, _ := json.Marshal(again.function())
		if string(twice) != string(once) || string(first) != string(second) {
			t.Fatalf("%s is written back as %s", once, twice)
		}
		c.Account(100)
	})
}

func TestFind(t *testing.T) {
	hub, dir := t.TempDir(), t.TempDir()
	t.Setenv("HF_HUB_CACHE", "")
	t.Setenv("HF_HOME", hub)
	put := func(path string, text string) string {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	put(filepath.Join(dir, "model", "config.json"), "{}")
	gguf := put(filepath.Join(dir, "quants", "a.gguf"), "GGUF")
	put(filepath.Join(dir, "empty", "x"), "")
	wrong := put(filepath.Join(dir, "x.gguf"), "no such thing")
	repository := filepath.Join(hub, "hub", "models--org--name")
	put(filepath.Join(repository, "snapshots", "c1", "config.json"), "{}")
	put(filepath.Join(repository, "snapshots", "c2", "config.json"), "{}")
	put(filepath.Join(repository, "refs", "main"), "c1")
	put(filepath.Join(hub, "hub", "models--org--many", "snapshots", "c", "a.gguf"), "GGUF")
	put(filepath.Join(hub, "hub", "models--org--many", "snapshots", "c", "b.gguf"), "GGUF")
	for name, want := range map[string]string{
		filepath.Join(dir, "model"): filepath.Join(dir, "model"), gguf: gguf, filepath.Join(dir, "quants"): gguf,
		"org/name": filepath.Join(repository, "snapshots", "c1"),
	} {
		if got, err := Find(name); err != nil || got != want {
			t.Errorf("%s: %s, %v", name, got, err)
		}
	}
	for name, says := range map[string]string{
		filepath.Join(dir, "empty"): "neither config.json nor a .gguf file", "org/other": "nor in the Hugging Face cache", "nothing": "give a model directory",
		"org/many": "holds 2 .gguf files", wrong: "no GGUF file", "./a": "give a model directory", "": "give a model directory",
	} {
		if _, err := Find(name); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %q", name, err, says)
		}
	}
}
