package model

import (
	"fmt"
	"strings"
	"testing"
)

const tiny = `"model_type":"nha","vocab_size":10,"hidden_size":16,"num_hidden_layers":2,"num_heads":2`

func TestConfigDefaults(t *testing.T) {
	c, err := ParseConfig([]byte(`{` + tiny + `,"use_cache":true,"transformers_version":"5"}`))
	if err != nil {
		t.Fatal(err)
	}
	if c.HeadDim != 8 || c.NumKVHeads != 2 || c.IntermediateSize != 256 || c.LayerWindows.String() != "32" || c.NumSlots != 64 ||
		c.ValueActivation != "silu" || !c.OutputNorm || c.EmptySlots != "count" || c.GateLogitNormalizer != 8 || c.TieWordEmbeddings {
		t.Errorf("%+v", c)
	}
}

// TestPaperSizes: the two sizes of the paper have the parameters that their names promise (SPEC 2).
func TestPaperSizes(t *testing.T) {
	for hidden, want := range map[int]float64{1024: 374e6, 2048: 1.36e9} {
		c := NewConfig(32000, hidden, 24)
		c.NumHeads = 4
		if err := c.Resolve(); err != nil {
			t.Fatal(err)
		}
		if n := float64(c.Account(2048).Parameters); n < 0.9*want || n > 1.1*want {
			t.Errorf("hidden %d: %.4g parameters, want about %.4g", hidden, n, want)
		}
	}
}

func TestConfigRefuses(t *testing.T) {
	for text, says := range map[string]string{
		`{"model_type":"gemma"}`:                         `model_type "gemma" is not supported: use one of llama, mistral, nha, qwen2, qwen3, qwen3_moe`,
		`{}`:                                             "model_type (missing)",
		`[1]`:                                            "not a JSON object",
		`{` + tiny + `,"window_sise":3}`:                 "unknown key window_sise",
		`{` + tiny + `,"sliding_window":3}`:              "unknown key sliding_window",
		`{` + tiny + `,"layer_windows":-1}`:              `"-1": use a number`,
		`{` + tiny + `,"layer_windows":"ful"}`:           `"ful": use a number`,
		`{` + tiny + `,"layer_windows":[1]}`:             "lists 1 windows, num_hidden_layers is 2",
		`{` + tiny + `,"num_slots":-1}`:                  "num_slots -1",
		`{` + tiny + `,"num_slots":99999999}`:            "num_slots 99999999",
		`{` + tiny + `,"num_slots":0,"layer_windows":0}`: "attends to nothing",
		`{` + tiny + `,"num_slots":0,"gate_bias":true}`:  "gate_bias needs slots",
		`{` + tiny + `,"num_kv_heads":3}`:                "num_heads 2 is not a multiple of num_kv_heads 3",
		`{` + tiny + `,"num_heads":3}`:                   "hidden_size 16 is not a multiple of num_heads 3",
		`{` + tiny + `,"head_dim":7}`:                    "head_dim 7",
		`{` + tiny + `,"empty_slots":"sometimes"}`:       `empty_slots "sometimes"`,
		`{` + tiny + `,"value_activation":"relu"}`:       `value_activation "relu"`,
		`{` + tiny + `,"gate_logit_normalizer":0}`:       "gate_logit_normalizer 0",
		`{` + tiny + `,"eos_token_id":10}`:               "eos_token_id 10",
		`{` + tiny + `,"vocab_size":"many"}`:             "vocab_size",
		`{` + tiny + `,"dtype":"float8"}`:                "dtype",
		`{` + tiny + `,"num_hidden_layers":0}`:           "num_hidden_layers 0",
	} {
		if _, err := ParseConfig([]byte(text)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %q", text, err, says)
		}
	}
}

func TestPresets(t *testing.T) {
	for name, want := range map[string]string{"nha": "8 16 silu true", "gsa": "0 16 silu true", "window": "8 0 silu true", "transformer": "full 0 none false"} {
		c := NewConfig(10, 16, 2)
		c.NumHeads = 2
		if err := c.ApplyPreset(name, 8, 16); err != nil {
			t.Fatal(err)
		}
		if err := c.Resolve(); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(c.LayerWindows, " ", c.NumSlots, " ", c.ValueActivation, " ", c.OutputNorm); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	c := NewConfig(10, 16, 2)
	if err := c.ApplyPreset("rnn", 8, 16); err == nil || !strings.Contains(err.Error(), "nha, gsa, window, transformer") {
		t.Error(err)
	}
}
