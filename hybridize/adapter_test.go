package hybridize

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"nha/model"
	"nha/tensor"
	"nha/weights"
)

const (
	qName = "model.layers.0.self_attn.q_proj.weight"
	gName = "model.layers.0.self_attn.g_proj.weight"
)

func sample() *Adapter {
	return &Adapter{Rank: 2, Alpha: 4, Base: "a base", NHA: NHABlock{BaseHash: "abc", NumSlots: 4, LayerWindows: "64", EmptySlots: "mask", GateLogitNormalizer: 8},
		A:       map[string]tensor.Tensor{qName: tensor.FromF32([]float32{1, 2, 3, 0, 1, 0}, 2, 3)},
		B:       map[string]tensor.Tensor{qName: tensor.FromF32([]float32{1, 0, 0, -1}, 2, 2)},
		Modules: map[string]tensor.Tensor{gName: tensor.FromF32([]float32{7, 8, 9, 7, 8, 9, 7, 8, 9, 7, 8, 9}, 4, 3)}}
}

func TestAdapterRoundTripAndMerge(t *testing.T) {
	dir := t.TempDir()
	if err := sample().Save(dir, tensor.F32); err != nil {
		t.Fatal(err)
	}
	file, err := weights.Open(filepath.Join(dir, "adapter_model.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"base_model.model.model.layers.0.self_attn.g_proj.weight", "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
		"base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"}
	if got := file.Names(); !slices.Equal(got, want) {
		t.Errorf("names %v", got)
	}
	file.Close()
	var config map[string]any
	text, _ := os.ReadFile(filepath.Join(dir, "adapter_config.json"))
	if err := json.Unmarshal(text, &config); err != nil || config["r"] != 2.0 || config["lora_alpha"] != 4.0 || config["target_modules"].([]any)[0] != "q_proj" || config["modules_to_save"].([]any)[0] != "g_proj" {
		t.Errorf("%s: %v", text, err)
	}
	a, err := ReadAdapter(dir)
	if err != nil {
		t.Fatal(err)
	}
	c, err := model.ParseConfig([]byte(`{"model_type": "llama", "vocab_size": 5, "hidden_size": 3, "num_hidden_layers": 1, "num_attention_heads": 1,
		"num_key_value_heads": 1, "head_dim": 2, "intermediate_size": 4}`))
	if err != nil {
		t.Fatal(err)
	}
	e, err := a.Edit(c, "abc")
	if err != nil {
		t.Fatal(err)
	}
	merged, err := e.Tensor(qName, tensor.FromF32([]float32{1, 1, 1, 1, 1, 1}, 2, 3))
	if err != nil || !slices.Equal(merged.F32(), []float32{3, 5, 7, 1, -1, 1}) {
		t.Errorf("merged %v, %v", merged.F32(), err)
	}
	norm := tensor.FromF32([]float32{5, 6, 7}, 3)
	if same, err := e.Tensor("model.norm.weight", norm); err != nil || &same.F32()[0] != &norm.F32()[0] {
		t.Errorf("a tensor that the adapter does not touch: %v", err)
	}
	if added, ok := e.Added[gName]; !ok || !slices.Equal(added.F32(), sample().Modules[gName].F32()) || len(e.Added) != 1 {
		t.Errorf("added %v", e.Added)
	}
	if err := e.Config(&c); err != nil || c.NumSlots != 4 || c.LayerWindows[0] != 64 {
		t.Errorf("configuration %+v, %v", c, err)
	}
	if _, err := a.Edit(c, "xyz"); err == nil || !strings.Contains(err.Error(), "another base") {
		t.Errorf("another base: %v", err)
	}
	a.A["model.layers.7.self_attn.q_proj.weight"], a.B["model.layers.7.self_attn.q_proj.weight"] = a.A[qName], a.B[qName]
	if _, err := a.Edit(c, "abc"); err == nil || !strings.Contains(err.Error(), "layers.7") {
		t.Errorf("a base without the tensor: %v", err)
	}
	a = sample()
	a.B[qName] = tensor.FromF32(make([]float32, 6), 3, 2)
	if _, err := a.Edit(c, "abc"); err == nil || !strings.Contains(err.Error(), "[3 3], the base has [2 3]") {
		t.Errorf("another shape: %v", err)
	}
}

func TestAdapterRefusals(t *testing.T) {
	a, dir := sample(), t.TempDir()
	a.Rank = 3
	if err := a.Save(dir, tensor.BF16); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadAdapter(dir); err == nil || !strings.Contains(err.Error(), "rank r = 3") {
		t.Errorf("another rank: %v", err)
	}
	stem := "base_model.model.model.layers.0.self_attn.q_proj"
	for name, want := range map[string]string{stem + ".lora_A.weight": "no lora_B", stem + ".lora_B.weight": "no lora_A", "lora_A.weight": "the names of an adapter begin"} {
		if err := weights.Write(filepath.Join(dir, "adapter_model.safetensors"), nil, []weights.Named{{Name: name, Tensor: tensor.FromF32(make([]float32, 9), 3, 3)}}); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadAdapter(dir); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s alone: %v", name, err)
		}
	}
	dir = t.TempDir()
	if _, err := ReadAdapter(dir); err == nil || !strings.Contains(err.Error(), "not an adapter") {
		t.Errorf("an empty folder: %v", err)
	}
	for text, want := range map[string]string{`{"peft_type":"IA3"}`: "only LORA", `{"peft_type":"LORA","use_dora":true}`: "use_dora", `{`: "unexpected end"} {
		if err := os.WriteFile(filepath.Join(dir, "adapter_config.json"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadAdapter(dir); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}
