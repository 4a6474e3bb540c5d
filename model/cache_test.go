package model_test

import (
	"strings"
	"testing"

	"nha/backend"
	"nha/convert"
	"nha/model"
	"nha/tensor"
)

// TestCache: states in half precision give nearly the logits of those in float32, in chunks and steps; a backend that has none says so.
func TestCache(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"cpu", "ref"} {
		b, err := backend.Open(name, 2)
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		if name == "ref" {
			if _, err := model.Load(dir, b, model.LoadOptions{Cache: tensor.F16}); err == nil || !strings.Contains(err.Error(), "F16") {
				t.Errorf("%s: error %v", name, err)
			}
			continue
		}
		m := small(t, b, nil)
		if err := m.Save(dir); err != nil {
			t.Fatal(err)
		}
		half, err := model.Load(dir, b, model.LoadOptions{Cache: tensor.F16})
		if err != nil {
			t.Fatal(err)
		}
		defer half.Close()
		tokens := randomTokens(60, 3)
		want := logits(t, m, tokens)
		got := logits(t, half, tokens, 20, 1, 1, 1, 30, 1, 1)
		if e := tensor.MaxError(got, want); !(e <= 5e-3) || e == 0 {
			t.Errorf("half precision is off by %.2g", e)
		}
		if full, less := m.NewState().Bytes(), half.NewState().Bytes(); less >= full {
			t.Errorf("a state takes %d bytes in half precision, %d in float32", less, full)
		}
	}
}

// TestNarrowCache: where the weights are quantised, or a GGUF file's in half precision, backend cpu keeps states in half precision unless told otherwise.
func TestNarrowCache(t *testing.T) {
	plain, half, blocks := t.TempDir(), t.TempDir()+"/h", t.TempDir()+"/q"
	gguf := asGGUF(t, "../testdata/golden/llama-tiny", tensor.F16)
	for i, name := range []string{"cpu", "cpu-f32"} {
		b, err := backend.Open(name, 2)
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		if i == 0 {
			m := small(t, b, func(c *model.Config) { c.HiddenSize, c.NumHeads, c.NumKVHeads, c.HeadDim = 32, 2, 2, 16 })
			if err := m.Save(plain); err != nil {
				t.Fatal(err)
			}
			if _, err := convert.Model(plain, half, convert.Options{DType: tensor.F16}); err != nil {
				t.Fatal(err)
			}
			if _, err := convert.Model(plain, blocks, convert.Options{Quantize: tensor.Q8_0}); err != nil {
				t.Fatal(err)
			}
		}
		for _, c := range []struct {
			dir       string
			ask, want tensor.DType
		}{
			{plain, tensor.Invalid, tensor.F32},
			{half, tensor.Invalid, tensor.F32},
			{gguf, tensor.Invalid, []tensor.DType{tensor.F16, tensor.F32}[i]},
			{blocks, tensor.Invalid, []tensor.DType{tensor.F16, tensor.F32}[i]},
			{blocks, tensor.F32, tensor.F32},
			{blocks, tensor.F16, tensor.F16},
		} {
			m, err := model.Load(c.dir, b, model.LoadOptions{Cache: c.ask})
			if err != nil {
				t.Fatal(err)
			}
			if d := m.NewState().Layers[0].DType(); d != c.want {
				t.Errorf("%s, asked for %v: states in %v, want %v", name, c.ask, d, c.want)
			}
			m.Close()
		}
	}
}
