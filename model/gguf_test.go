package model_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nha/attention/vectors"
	"nha/backend"
	"nha/model"
	"nha/tensor"
	"nha/weights/gguftest"
)

// asGGUF writes a model directory as a GGUF file.
func asGGUF(t *testing.T, dir string, as tensor.DType) string {
	t.Helper()
	file, err := gguftest.FromDirectory(dir, as)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "model.gguf")
	if err := os.WriteFile(path, file.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestGGUF: a directory made into a GGUF file is the same model to the bit.
func TestGGUF(t *testing.T) {
	for _, b := range backends(t) {
		for _, name := range []string{"llama-tiny", "qwen2-tiny"} {
			dir, o, tokens := filepath.Join("../testdata/golden", name), model.LoadOptions{Windows: "7"}, randomTokens(30, 5)
			m, want := load(t, asGGUF(t, dir, tensor.F32), b, o), load(t, dir, b, o)
			if !bytes.Equal(logits(t, m, tokens).Bytes(), logits(t, want, tokens).Bytes()) {
				t.Errorf("%s %s: a GGUF file computes something else", b.Name(), name)
			}
		}
	}
}

// TestQuantised: the cpu backends read quantised matrices where they lie, others widen them; all compute one function. A hybrid of a GGUF
// file is saved as a directory of floating-point weights.
func TestQuantised(t *testing.T) {
	ref, err := backend.Open("ref", 1)
	if err != nil {
		t.Fatal(err)
	}
	c, err := model.ParseConfig([]byte(`{"model_type":"llama","vocab_size":37,"hidden_size":64,"intermediate_size":96,"num_hidden_layers":2,"num_attention_heads":4,
		"num_key_value_heads":2,"rms_norm_eps":1e-5,"max_position_embeddings":64,"rope_parameters":{"rope_type":"default","rope_theta":10000}}`))
	if err != nil {
		t.Fatal(err)
	}
	m, err := model.New(c, ref, model.Init{Seed: 1, Std: 0.2, EmbeddingStd: 1})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := m.Save(dir); err != nil {
		t.Fatal(err)
	}
	path, tokens := asGGUF(t, dir, tensor.Q8_0), randomTokens(30, 5)
	widened := load(t, path, ref, model.LoadOptions{})
	want := logits(t, widened, tokens)
	for _, b := range backends(t) {
		limit := map[string]float64{"ref": 1e-12, "cpu-f32": 1e-5, "cuda-f32": 1e-4}[b.Name()]
		if limit == 0 {
			limit = 5e-2 // activations of 8 bits, or all in 16
		}
		m := load(t, path, b, model.LoadOptions{})
		if e := vectors.Error(b.DType(), logits(t, m, tokens, 1, 1, 20), want); !(e <= limit) {
			t.Errorf("%s: error %.2g", b.Name(), e)
		}
		for _, p := range m.Parameters() {
			if inPlace := strings.HasPrefix(b.Name(), "cpu") && p.Value.Shape.Rank() == 2; inPlace != (p.Value.DType == tensor.Q8_0) {
				t.Errorf("%s: %s is %v", b.Name(), p.Name, p.Value.DType)
			}
		}
		load(t, path, b, model.LoadOptions{Train: true})
		hybrid, out := load(t, path, b, model.LoadOptions{Windows: "full", Hybrid: &model.Hybrid{Slots: 4}}), t.TempDir()
		if err := hybrid.Save(out); err != nil {
			t.Fatal(err)
		}
		if e := tensor.MaxError(logits(t, load(t, out, ref, model.LoadOptions{}), tokens), want); !(e <= map[bool]float64{true: 5e-2, false: 1e-12}[b.DType().Size() == 2]) {
			t.Errorf("%s: the saved hybrid is off by %.2g", b.Name(), e)
		}
	}
}
