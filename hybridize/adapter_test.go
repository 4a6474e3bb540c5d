package hybridize

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"nha/tensor"
	"nha/weights"
)

// memory is a Source of tensors at hand.
type memory map[string]tensor.Tensor

func (m memory) Names() []string {
	var list []string
	for n := range m {
		list = append(list, n)
	}
	slices.Sort(list)
	return list
}
func (m memory) Tensor(name string) (tensor.Tensor, bool) { t, ok := m[name]; return t, ok }
func (m memory) Metadata() map[string]string              { return nil }
func (m memory) Close() error                             { return nil }

const (
	qName = "model.layers.0.self_attn.q_proj.weight"
	gName = "model.layers.0.self_attn.g_proj.weight"
)

func sample() *Adapter {
	return &Adapter{Rank: 2, Alpha: 4, Base: "a base", NHA: NHABlock{BaseHash: "abc", NumSlots: 4, LayerWindows: json.RawMessage(`[64,"full"]`), EmptySlots: "mask", GateLogitNormalizer: 8},
		A:       map[string]tensor.Tensor{qName: tensor.FromF32([]float32{1, 2, 3, 0, 1, 0}, 2, 3)},
		B:       map[string]tensor.Tensor{qName: tensor.FromF32([]float32{1, 0, 0, -1}, 2, 2)},
		Modules: map[string]tensor.Tensor{gName: tensor.FromF32([]float32{7, 8, 9}, 1, 3)}}
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
	base := memory{qName: tensor.FromF32([]float32{1, 1, 1, 1, 1, 1}, 2, 3), "model.norm.weight": tensor.FromF32([]float32{5}, 1)}
	list, err := a.Merge(base, "abc")
	if err != nil {
		t.Fatal(err)
	}
	got := map[string][]float32{}
	for _, n := range list {
		got[n.Name] = n.Tensor.F32()
	}
	if !slices.Equal(got[qName], []float32{3, 5, 7, 1, -1, 1}) || !slices.Equal(got[gName], []float32{7, 8, 9}) || !slices.Equal(got["model.norm.weight"], []float32{5}) || len(got) != 3 {
		t.Errorf("merged %v", got)
	}
	if _, err := a.Merge(base, "xyz"); err == nil || !strings.Contains(err.Error(), "another base") {
		t.Errorf("another base: %v", err)
	}
	delete(base, qName)
	if _, err := a.Merge(base, "abc"); err == nil || !strings.Contains(err.Error(), qName) {
		t.Errorf("a base without the tensor: %v", err)
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
	for name, want := range map[string]string{stem + ".lora_A.weight": "no lora_B", stem + ".lora_B.weight": "no lora_A", "lora_A.weight": "adapters name their tensors"} {
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
