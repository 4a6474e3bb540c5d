package model_test

import (
	"bytes"
	"encoding/json"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nha/attention/vectors"
	"nha/autograd"
	"nha/backend"
	"nha/model"
	"nha/tensor"
	"nha/weights"
)

// pretrained lists the golden models of the pretrained families.
func pretrained(t *testing.T) (dirs []string) {
	for _, dir := range goldens(t) {
		if !strings.HasPrefix(filepath.Base(dir), "nha-") {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

func load(t *testing.T, dir string, b backend.Backend, o model.LoadOptions) *model.Model {
	t.Helper()
	m, err := model.Load(dir, b, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// drawGates gives the gates of a new hybrid random numbers.
func drawGates(m *model.Model) {
	r := rand.New(rand.NewPCG(9, 9))
	for _, p := range m.Parameters() {
		if strings.Contains(p.Name, ".g_proj.") {
			x := tensor.New(tensor.F64, p.Value.Shape)
			for i := range x.F64() {
				x.F64()[i] = r.NormFloat64()
			}
			m.Backend().Write(p.Value.Tensor, x)
		}
	}
}

// TestFamilyGradients holds gradients against central differences in every family, plain and as a hybrid whose tokens reach the slots:
// biases, q/k norms, routers, experts and gates.
func TestFamilyGradients(t *testing.T) {
	b, err := backend.Open("ref", 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range pretrained(t) {
		for _, o := range []model.LoadOptions{{Train: true}, {Train: true, Windows: "3", Hybrid: &model.Hybrid{Slots: 3, GateBias: true}}} {
			m := load(t, dir, b, o)
			drawGates(m)
			batch := &model.Batch{Tokens: randomTokens(10, 3), Lengths: []int{7, 3}}
			batch.Targets = append(batch.Targets, batch.Tokens...)
			tape := autograd.New(b)
			if _, n := m.Loss(tape, batch, 1); n != 10 {
				t.Fatal(n)
			}
			tape.Backward()
			tape.Reset()
			sameGradients(t, filepath.Base(dir), m, tape, batch)
			tape.Record(false)
			loss := func() float64 {
				defer tape.Reset()
				sum, _ := m.Loss(tape, batch, 1)
				return sum
			}
			for _, p := range m.Parameters() {
				x := p.Value.Tensor.F64()
				for _, at := range []int{len(x) / 3, len(x) - 1} {
					const h = 1e-5
					was := x[at]
					x[at] = was + h
					up := loss()
					x[at] = was - h
					down := loss()
					x[at] = was
					got := 0.0
					if p.Value.Written() {
						got = p.Value.Gradient.F64()[at]
					}
					if want := (up - down) / (2 * h); !(math.Abs(want-got) <= 1e-6*(1+math.Abs(want))) {
						t.Errorf("%s, hybrid %v: %s element %d: gradient %v, difference %v", filepath.Base(dir), o.Hybrid != nil, p.Name, at, got, want)
					}
				}
			}
			tape.Close()
		}
	}
}

// sameGradients computes once more with whole blocks computed again in backward: the same bits.
func sameGradients(t *testing.T, name string, m *model.Model, tape *autograd.Tape, batch *model.Batch) {
	t.Helper()
	var kept []tensor.Tensor
	for _, p := range m.Parameters() {
		kept = append(kept, p.Value.Gradient.Clone())
		p.Value.ClearGradient()
	}
	tape.SetRecompute(autograd.RecomputeBlocks)
	m.Loss(tape, batch, 1)
	tape.Backward()
	tape.Reset()
	for i, p := range m.Parameters() {
		if p.Value.Written() && !bytes.Equal(p.Value.Gradient.Bytes(), kept[i].Bytes()) {
			t.Errorf("%s: %s: another gradient when blocks are computed again", name, p.Name)
		}
	}
}

// TestFullHybridIsItsBase: with every window full and mask, no token enters a slot, and a hybrid is its base (SPEC 1, 2).
func TestFullHybridIsItsBase(t *testing.T) {
	for _, b := range backends(t) {
		limit := map[int]float64{8: 1e-13, 4: 1e-6, 2: 2e-2}[b.DType().Size()]
		for _, dir := range pretrained(t) {
			base, hybrid := load(t, dir, b, model.LoadOptions{Windows: "full"}), load(t, dir, b, model.LoadOptions{Windows: "full", Hybrid: &model.Hybrid{Slots: 4}})
			drawGates(hybrid)
			tokens := randomTokens(40, 4)
			want := logits(t, base, tokens)
			if e := vectors.Error(b.DType(), logits(t, hybrid, tokens, 17, 1, 1), want); !(e <= limit) {
				t.Errorf("%s %s: error %.2g", b.Name(), filepath.Base(dir), e)
			}
			if err := hybrid.SetWindows(every(hybrid, 4)); err != nil {
				t.Fatal(err)
			}
			if e := tensor.MaxError(logits(t, hybrid, tokens), want); e < 1e-3 {
				t.Errorf("%s %s: windows of 4 change nothing (%.2g)", b.Name(), filepath.Base(dir), e)
			}
			if base.Hash() == hybrid.Hash() {
				t.Errorf("%s: base and hybrid have one hash", filepath.Base(dir))
			}
		}
	}
}

func every(m *model.Model, window int) model.Windows {
	w := make(model.Windows, m.Config.NumHiddenLayers)
	for i := range w {
		w[i] = window
	}
	return w
}

// TestFamiliesCutAnywhere: one forward, chunks and single steps are one function in every family, plain, with a smaller window, and
// as a hybrid (SPEC 1.1).
func TestFamiliesCutAnywhere(t *testing.T) {
	for _, b := range backends(t) {
		limit := map[int]float64{8: 1e-12, 4: 1e-5, 2: 1e-1}[b.DType().Size()]
		for _, dir := range pretrained(t) {
			for _, o := range []model.LoadOptions{{}, {Windows: "6"}, {Windows: "6", Hybrid: &model.Hybrid{Slots: 3}}} {
				m := load(t, dir, b, o)
				drawGates(m)
				tokens := randomTokens(30, 2)
				if e := vectors.Error(b.DType(), logits(t, m, tokens, 1, 1, 9, 1, 13, 4, 1), logits(t, m, tokens)); !(e <= limit) {
					t.Errorf("%s %s %q: error %.2g", b.Name(), filepath.Base(dir), o.Windows, e)
				}
			}
		}
	}
}

// TestHybridDirectory: a saved hybrid keeps every key and weight of its base, adds the block and the gates, and loads as the same function; a
// base whose windows were moved is saved with them.
func TestHybridDirectory(t *testing.T) {
	b, err := backend.Open("ref", 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range pretrained(t) {
		for _, o := range []model.LoadOptions{{}, {Windows: "7"}, {Windows: "7", Hybrid: &model.Hybrid{Slots: 3, EmptySlots: "count", GateLogitNormalizer: 4}}} {
			m, out := load(t, dir, b, o), t.TempDir()
			drawGates(m)
			m.Config.DType = "float64"
			if err := m.Save(out); err != nil {
				t.Fatal(err)
			}
			saved, tokens := load(t, out, b, model.LoadOptions{}), randomTokens(20, 8)
			if !bytes.Equal(logits(t, saved, tokens).Bytes(), logits(t, m, tokens).Bytes()) || saved.Hash() != m.Hash() {
				t.Errorf("%s %+v: the saved model computes something else", filepath.Base(dir), o)
			}
			want, have := readObject(t, dir), readObject(t, out)
			for key, v := range want {
				if key != "dtype" && key != "torch_dtype" && compact(have[key]) != compact(v) {
					t.Errorf("%s: key %s was %s, saved as %s", filepath.Base(dir), key, v, have[key])
				}
			}
			_, block := have["nha"]
			if added := len(have) - len(want); block != (o.Windows != "") || added > 1 {
				t.Errorf("%s %+v: keys %v", filepath.Base(dir), o, have)
			}
			if o.Hybrid != nil && (saved.Config.NumSlots != 3 || saved.Config.EmptySlots != "count" || saved.Config.GateLogitNormalizer != 4 || saved.Config.LayerWindows.String() != "7") {
				t.Errorf("%s: saved as %+v", filepath.Base(dir), saved.Config)
			}
		}
	}
}

func readObject(t *testing.T, dir string) (keys map[string]json.RawMessage) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err == nil {
		err = json.Unmarshal(text, &keys)
	}
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func compact(raw json.RawMessage) string {
	var b bytes.Buffer
	if json.Compact(&b, raw) != nil {
		return "(none)"
	}
	return b.String()
}

// TestHarmlessTensors: old rotary buffers and a tied head that is the embedding are passed over, anything else is an error.
func TestHarmlessTensors(t *testing.T) {
	b, err := backend.Open("ref", 1)
	if err != nil {
		t.Fatal(err)
	}
	const dir = "../testdata/golden/llama-tiny"
	f, err := weights.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	embedding, _ := f.Tensor("model.embed_tokens.weight")
	other := embedding.Clone()
	other.F32()[5]++
	for _, c := range []struct {
		name string
		x    tensor.Tensor
		says string
	}{
		{"model.layers.1.self_attn.rotary_emb.inv_freq", tensor.New(tensor.F32, tensor.Of(3)), ""},
		{"lm_head.weight", embedding, ""},
		{"lm_head.weight", other, "tie_word_embeddings is true, but lm_head.weight"},
		{"model.layers.1.self_attn.q_norm.weight", tensor.New(tensor.F32, tensor.Of(6)), "not part of the model: model.layers.1.self_attn.q_norm.weight"},
		{"model.layers.1.self_attn.g_proj.weight", tensor.New(tensor.F32, tensor.Of(4, 16)), "g_proj"},
	} {
		list, out := []weights.Named{{Name: c.name, Tensor: c.x}}, t.TempDir()
		for _, name := range f.Names() {
			x, _ := f.Tensor(name)
			list = append(list, weights.Named{Name: name, Tensor: x})
		}
		if err := weights.Write(filepath.Join(out, weights.FileName), nil, list); err != nil {
			t.Fatal(err)
		}
		config, err := os.ReadFile(filepath.Join(dir, "config.json"))
		if err == nil {
			err = os.WriteFile(filepath.Join(out, "config.json"), config, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
		m, err := model.Load(out, b, model.LoadOptions{})
		switch {
		case c.says == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)):
			t.Errorf("%s: %v, want %q", c.name, err, c.says)
		}
		if m != nil {
			m.Close()
		}
	}
}
