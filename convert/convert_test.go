package convert

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"nha/autograd"
	"nha/backend"
	_ "nha/backend/all"
	"nha/chat"
	"nha/model"
	"nha/tensor"
	"nha/weights"
	"nha/weights/gguftest"
)

const golden = "../../shared/golden"

// tiny is an NHA model with gates whose rows are whole blocks.
func tiny(t *testing.T) string {
	b, err := backend.Open("cpu", 1)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	c := model.NewConfig(40, 64, 2)
	c.NumHeads, c.NumSlots, c.IntermediateSize = 2, 8, 96
	c.LayerWindows = model.Windows{4, 4}
	if err := c.Resolve(); err != nil {
		t.Fatal(err)
	}
	m, err := model.New(c, b, model.Init{Seed: 5})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	dir := t.TempDir()
	if err := m.Save(dir); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"tokenizer.json", "merges.txt", "LICENSE", "training.log"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("text of "+name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func openDir(t *testing.T, dir string) weights.Source {
	t.Helper()
	s, err := weights.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// logits are a model's on the tokens, on backend cpu-f32, which takes weights as they are stored and activations in float32.
func logits(t *testing.T, dir string, tokens []int32) tensor.Tensor {
	t.Helper()
	b, err := backend.Open("cpu-f32", 1)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	m, err := model.Load(dir, b, model.LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	tape := autograd.New(b)
	defer tape.Close()
	h := m.Hidden(tape, &model.Batch{Tokens: tokens, Lengths: []int{len(tokens)}})
	l := m.Logits(tape, h, 0, len(tokens))
	out := tensor.New(tensor.F32, l.Shape)
	b.Read(out, l.Tensor)
	return out
}

// TestQuantize: matrices become the blocks that tensor.Quantize makes of them; vectors and gates stay; the files beside them are
// copied; and the model computes what its decoded twin computes.
func TestQuantize(t *testing.T) {
	src := tiny(t)
	from := openDir(t, src)
	for _, blocks := range []tensor.DType{tensor.Q8_0, tensor.Q4_0} {
		dir := filepath.Join(t.TempDir(), "out")
		r, err := Model(src, dir, Options{Quantize: blocks})
		if err != nil {
			t.Fatal(err)
		}
		to := openDir(t, dir)
		quantized := 0
		for _, name := range from.Names() {
			x, _ := from.Tensor(name)
			got, _ := to.Tensor(name)
			want := x
			if x.Shape.Rank() == 2 && !strings.HasSuffix(name, ".f_proj.weight") {
				quantized++
				want = tensor.New(blocks, x.Shape)
				tensor.Quantize(want, x.F32())
			}
			if got.DType != want.DType || got.Shape != x.Shape || !bytes.Equal(got.Bytes(), want.Bytes()) {
				t.Errorf("%s is %v, want %v with its bytes", name, got.DType, want.DType)
			}
		}
		if info, err := os.Stat(filepath.Join(dir, weights.FileName)); err != nil || r != (Result{Tensors: len(from.Names()), Quantized: quantized, Bytes: info.Size()}) || quantized != 16 {
			t.Errorf("%+v, %d quantised: %v", r, quantized, err)
		}
		for name, there := range map[string]bool{"tokenizer.json": true, "merges.txt": true, "LICENSE": true, "training.log": false} {
			text, err := os.ReadFile(filepath.Join(dir, name))
			if (err == nil) != there || there && string(text) != "text of "+name {
				t.Errorf("%s: %q, %v", name, text, err)
			}
		}
		decoded := filepath.Join(t.TempDir(), "decoded")
		if _, err := Model(dir, decoded, Options{DType: tensor.F32}); err != nil {
			t.Fatal(err)
		}
		tokens := []int32{1, 39, 5, 17, 0, 22, 22, 8}
		if e := tensor.MaxError(logits(t, dir, tokens), logits(t, decoded, tokens)); !(e < 1e-5) {
			t.Errorf("%v: logits differ from the decoded model's by %v", blocks, e)
		}
	}
}

func TestDType(t *testing.T) {
	src := tiny(t)
	from := openDir(t, src)
	for d, name := range map[tensor.DType]string{tensor.F16: "float16", tensor.BF16: "bfloat16", tensor.F32: "float32"} {
		dir := filepath.Join(t.TempDir(), "out")
		if _, err := Model(src, dir, Options{DType: d}); err != nil {
			t.Fatal(err)
		}
		to := openDir(t, dir)
		for _, name := range from.Names() {
			x, _ := from.Tensor(name)
			want := tensor.New(d, x.Shape)
			tensor.Convert(want, x)
			if got, _ := to.Tensor(name); got.DType != d || !bytes.Equal(got.Bytes(), want.Bytes()) {
				t.Errorf("%s as %v has other values", name, d)
			}
		}
		if c, err := model.ReadConfig(dir); err != nil || c.DType != name {
			t.Errorf("dtype %q, want %q: %v", c.DType, name, err)
		}
	}
}

// TestGGUF: a GGUF file becomes a directory with its blocks, or decoded; the tokens that end an answer are passed on.
func TestGGUF(t *testing.T) {
	for _, family := range []string{"llama", "qwen2", "qwen3", "qwen3moe"} {
		hf := filepath.Join(golden, family+"-tiny")
		if _, err := os.Stat(hf); err != nil {
			t.Skipf("%s is not here", hf)
		}
		file, err := gguftest.FromDirectory(hf, tensor.Q8_0)
		if err != nil {
			t.Fatal(err)
		}
		file.Pairs = append(file.Pairs, gguftest.Pair{Key: "tokenizer.ggml.eot_token_id", Value: uint32(7)}, gguftest.Pair{Key: "tokenizer.chat_template", Value: "{{ x }}"})
		path := filepath.Join(t.TempDir(), "model.gguf")
		if err := os.WriteFile(path, file.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		g, err := weights.OpenGGUF(path)
		if err != nil {
			t.Fatal(err)
		}
		defer g.Close()
		for _, d := range []tensor.DType{tensor.Invalid, tensor.F32} {
			dir := filepath.Join(t.TempDir(), "out")
			if _, err := Model(path, dir, Options{DType: d}); err != nil {
				t.Fatalf("%s: %v", family, err)
			}
			to := openDir(t, dir)
			for _, name := range g.Names() {
				x, _ := g.Tensor(name)
				got, _ := to.Tensor(name)
				want := x
				if d != tensor.Invalid {
					want = tensor.New(d, x.Shape)
					tensor.Convert(want, x)
				}
				if got.DType != want.DType || !bytes.Equal(got.Bytes(), want.Bytes()) {
					t.Errorf("%s: %s is %v, want %v with its bytes", family, name, got.DType, want.DType)
				}
			}
			var generation struct {
				Eos any `json:"eos_token_id"`
			}
			text, err := os.ReadFile(filepath.Join(dir, "generation_config.json"))
			if err != nil || json.Unmarshal(text, &generation) != nil {
				t.Fatalf("%s: %v", text, err)
			}
			if ends, list := generation.Eos.([]any); list && (len(ends) != 2 || ends[1] != 7.) || !list && generation.Eos != 7. {
				t.Errorf("%s: eos_token_id %v", family, generation.Eos)
			}
			if text, err := os.ReadFile(filepath.Join(dir, "chat_template.jinja")); string(text) != "{{ x }}" {
				t.Errorf("template %q, %v", text, err)
			}
		}
	}
}

// TestGGUFTokenizer: a vocabulary becomes a tokenizer.json of the same ids; one that none describes stays a GGUF's, and is said to.
func TestGGUFTokenizer(t *testing.T) {
	hf := filepath.Join(golden, "llama-tiny")
	if _, err := os.Stat(hf); err != nil {
		t.Skipf("%s is not here", hf)
	}
	tokens := []string{"Ġ", "th", "the", "Ġt", "Ġthe"}
	for c := '!'; c <= '~'; c++ {
		tokens = append(tokens, string(c))
	}
	tokens = append(tokens, "<|im_end|>")
	for len(tokens) < 128 {
		tokens = append(tokens, fmt.Sprintf("[PAD%d]", len(tokens)))
	}
	merges := []string{"t h", "th e", "Ġ t", "Ġ the"}
	for _, pre := range []string{"llama-bpe", "falcon", "surprise"} {
		file, err := gguftest.FromDirectory(hf, tensor.F32)
		if err != nil {
			t.Fatal(err)
		}
		for key, value := range map[string]any{"ggml.model": "gpt2", "ggml.pre": pre, "ggml.tokens": tokens, "ggml.merges": merges, "chat_template": "{{ x }}"} {
			file.Pairs = append(file.Pairs, gguftest.Pair{Key: "tokenizer." + key, Value: value})
		}
		path, dir := filepath.Join(t.TempDir(), "model.gguf"), filepath.Join(t.TempDir(), "out")
		if err := os.WriteFile(path, file.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		r, err := Model(path, dir, Options{})
		if err != nil {
			t.Fatal(err)
		}
		known := pre == "llama-bpe"
		for name, want := range map[string]bool{"tokenizer.json": known, "tokenizer_config.json": known, weights.VocabularyName: !known, "chat_template.jinja": !known} {
			if _, err := os.Stat(filepath.Join(dir, name)); (err == nil) != want {
				t.Errorf("%s: %s is there: %v, want %v", pre, name, err == nil, want)
			}
		}
		if known != (r.Kept == "") || !known && !strings.Contains(r.Kept, pre) {
			t.Errorf("%s: kept because %q", pre, r.Kept)
		}
		var generation struct {
			Ends []int32 `json:"eos_token_id"`
		}
		if text, err := os.ReadFile(filepath.Join(dir, "generation_config.json")); err != nil || pre != "surprise" &&
			(json.Unmarshal(text, &generation) != nil || !slices.Contains(generation.Ends, int32(slices.Index(tokens, "<|im_end|>")))) {
			t.Errorf("%s: ends %v, %v", pre, generation.Ends, err)
		}
		if template, err := chat.Load(dir); err != nil || template.Source() != "{{ x }}" {
			t.Errorf("%s: the template: %v", pre, err)
		}
		if pre == "surprise" {
			continue
		}
		want, err := model.Tokenizer(path)
		if err != nil {
			t.Fatal(err)
		}
		got, err := model.Tokenizer(dir)
		if err != nil {
			t.Fatal(err)
		}
		const text = "the then, other 42 {tt h} the"
		if a, b := want.Encode(text), got.Encode(text); !slices.Equal(a, b) || len(a) >= len(text)-6 {
			t.Errorf("%s: %v, want %v", pre, b, a)
		}
	}
}

// TestRefused: what is there stays untouched when it may not be replaced and when the conversion fails, and nothing is left behind.
func TestRefused(t *testing.T) {
	src := tiny(t)
	root := t.TempDir()
	there, other := filepath.Join(root, "there"), filepath.Join(root, "other")
	if _, err := Model(src, there, Options{Quantize: tensor.Q4_0}); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(filepath.Join(there, weights.FileName))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(other, 0o755); err != nil {
		t.Fatal(err)
	}
	broken := t.TempDir()
	if err := os.CopyFS(broken, os.DirFS(src)); err != nil {
		t.Fatal(err)
	}
	s := openDir(t, src)
	var good, list []weights.Named
	for _, name := range s.Names() {
		x, _ := s.Tensor(name)
		good = append(good, weights.Named{Name: name, Tensor: x})
		x = x.Clone()
		if name == "model.layers.1.mlp.up_proj.weight" {
			x.F32()[3] = float32(math.NaN())
		}
		list = append(list, weights.Named{Name: name, Tensor: x})
	}
	if err := weights.Write(filepath.Join(broken, weights.FileName), nil, list); err != nil {
		t.Fatal(err)
	}
	incomplete := t.TempDir()
	if err := os.CopyFS(incomplete, os.DirFS(src)); err != nil {
		t.Fatal(err)
	}
	if err := weights.Write(filepath.Join(incomplete, weights.FileName), nil, good[1:]); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		src, dir string
		force    bool
		want     string
	}{
		{src, there, false, "--force"}, {src, other, false, "--force"}, {src, other, true, "no model directory"}, {there, there, true, "the model itself"}, {filepath.Join(there, "model.gguf"), there, true, "holds the model itself"},
		{broken, there, true, "model.layers.1.mlp.up_proj.weight"}, {incomplete, there, true, "missing: " + list[0].Name},
		{filepath.Join(root, "nope"), filepath.Join(root, "new"), false, "nope"}, {src, filepath.Join(root, "no", "folder"), false, filepath.Join(root, "no")},
	} {
		_, err := Model(c.src, c.dir, Options{Quantize: tensor.Q8_0, Force: c.force})
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), ".tmp-") {
			t.Errorf("%s to %s: %v, want %q", c.src, c.dir, err, c.want)
		}
	}
	ended, end := context.WithCancel(context.Background())
	end()
	if _, err := Model(src, there, Options{Quantize: tensor.Q8_0, Force: true, Context: ended}); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	after, err := os.ReadFile(filepath.Join(there, weights.FileName))
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("the model that was there changed: %v", err)
	}
	if _, err := Model(src, there, Options{Quantize: tensor.Q8_0, Force: true}); err != nil {
		t.Error(err)
	}
	if x, _ := openDir(t, there).Tensor("lm_head.weight"); x.DType != tensor.Q8_0 {
		t.Errorf("replaced by %v", x.DType)
	}
	entries, err := os.ReadDir(root)
	if err != nil || len(entries) != 2 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}
