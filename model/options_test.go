package model

import (
	"math"
	"strings"
	"testing"

	"nha/autograd"
	"nha/backend/ref"
	"nha/tensor"
)

// smallLlama is the directory of a new tiny model.
func smallLlama(t *testing.T) string {
	t.Helper()
	c, err := ParseConfig([]byte(`{"model_type": "llama", "vocab_size": 29, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 4,
		"num_key_value_heads": 2, "head_dim": 6, "intermediate_size": 20, "max_position_embeddings": 64, "tie_word_embeddings": true}`))
	if err != nil {
		t.Fatal(err)
	}
	m, err := New(c, ref.Backend{}, Init{Seed: 5, Std: 0.3})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := m.Save(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

func mustLoad(t *testing.T, dir string, o LoadOptions) *Model {
	t.Helper()
	m, err := Load(dir, ref.Backend{}, o)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func someBatch() *Batch {
	b := &Batch{Lengths: []int{9, 4}}
	for i := range 13 {
		b.Tokens, b.Targets = append(b.Tokens, int32(i*7%29)), append(b.Targets, int32(i*11%29))
	}
	return b
}

func hidden(m *Model) []float64 {
	tape := autograd.New(m.Backend())
	tape.Record(false)
	return m.Hidden(tape, someBatch()).Clone().F64()
}

func distance(a, b []float64) (d float64) {
	for i := range a {
		d = max(d, math.Abs(a[i]-b[i]))
	}
	return d
}

// TestTrains: what the options name has a gradient, equal to that of the whole model, and nothing else has one.
func TestTrains(t *testing.T) {
	dir := smallLlama(t)
	chosen := func(name string) bool {
		return strings.Contains(name, "k_proj") || strings.HasSuffix(name, "norm.weight")
	}
	whole, part := mustLoad(t, dir, LoadOptions{Train: true}), mustLoad(t, dir, LoadOptions{Train: true, Trains: chosen})
	for _, m := range []*Model{whole, part} {
		tape := autograd.New(m.Backend())
		m.Loss(tape, someBatch(), 1)
		tape.Backward()
	}
	if a, b := len(whole.Parameters()), len(whole.Tensors()); a != b {
		t.Errorf("%d of %d tensors train", a, b)
	}
	if n := len(part.Parameters()); n != 2+5 {
		t.Errorf("%d tensors train, want 7", n)
	}
	data, gradients := part.Flat()
	if data.Len() != gradients.Len() {
		t.Errorf("%d values and %d gradients", data.Len(), gradients.Len())
	}
	for _, p := range part.Parameters() {
		w, _ := whole.Parameter(p.Name)
		if !chosen(p.Name) || distance(p.Value.Gradient.F64(), w.Value.Gradient.F64()) > 1e-12 {
			t.Errorf("%s: another gradient than in the whole model", p.Name)
		}
		if at := data.At(p.Offset, p.Value.Shape); distance(at.F64(), w.Value.F64()) != 0 {
			t.Errorf("%s is not at its offset", p.Name)
		}
	}
	if again := t.TempDir(); part.Save(again) != nil || distance(hidden(mustLoad(t, again, LoadOptions{})), hidden(whole)) != 0 {
		t.Error("the model that trains in part was saved as another")
	}
}

// TestShare: a second model takes the frozen tensors of the first and has the others for itself.
func TestShare(t *testing.T) {
	dir := smallLlama(t)
	student := mustLoad(t, dir, LoadOptions{Train: true, Trains: func(name string) bool { return strings.Contains(name, "q_proj") }})
	teacher := mustLoad(t, dir, LoadOptions{Share: student})
	want := hidden(teacher)
	for _, p := range student.Parameters() {
		for i := range p.Value.F64() {
			p.Value.F64()[i] += 0.5
		}
	}
	if distance(hidden(teacher), want) != 0 || distance(hidden(student), want) == 0 {
		t.Error("training the student moves the teacher")
	}
	for _, p := range teacher.Tensors() {
		s, _ := student.Parameter(p.Name)
		if shared := &p.Value.F64()[0] == &s.Value.F64()[0]; shared == strings.Contains(p.Name, "q_proj") {
			t.Errorf("%s is shared: %v", p.Name, shared)
		}
	}
}

// TestLoRA: updates start as nothing, train, and survive a checkpoint.
func TestLoRA(t *testing.T) {
	dir := smallLlama(t)
	base := hidden(mustLoad(t, dir, LoadOptions{}))
	o := LoadOptions{Train: true, Trains: func(string) bool { return false },
		LoRA: &LoRA{Rank: 3, Seed: 1, Targets: func(name string) bool { return strings.Contains(name, "o_proj") || strings.Contains(name, "down_proj") }}}
	m := mustLoad(t, dir, o)
	if d := distance(hidden(m), base); d != 0 {
		t.Errorf("fresh updates change the model by %v", d)
	}
	tape := autograd.New(m.Backend())
	m.Loss(tape, someBatch(), 1)
	tape.Backward()
	if len(m.Parameters()) != 8 {
		t.Errorf("%d tensors train", len(m.Parameters()))
	}
	for _, p := range m.Parameters() {
		if zero := distance(p.Value.Gradient.F64(), make([]float64, p.Value.Len())) == 0; zero != strings.HasSuffix(p.Name, "lora_A.weight") {
			t.Errorf("%s: gradient zero: %v", p.Name, zero) // dA = B^T ... is 0 while B is
		}
		for i, g := range p.Value.Gradient.F64() {
			p.Value.F64()[i] -= 0.1 * g
		}
	}
	moved := hidden(m)
	checkpoint := t.TempDir()
	if err := m.Save(checkpoint); err != nil {
		t.Fatal(err)
	}
	if d := distance(hidden(mustLoad(t, checkpoint, o)), moved); d > 1e-6 { // float32 on disk
		t.Errorf("the checkpoint is off by %v", d)
	}
	// W + B A in one matrix is the same function
	merged := mustLoad(t, dir, LoadOptions{Train: true})
	for _, p := range merged.Tensors() {
		a, ok := m.Parameter(strings.TrimSuffix(p.Name, ".weight") + ".lora_A.weight")
		if !ok {
			continue
		}
		b, _ := m.Parameter(strings.TrimSuffix(p.Name, ".weight") + ".lora_B.weight")
		x := m.Host(p, tensor.F64)
		for i := range x.Dim(0) {
			for j := range x.Dim(1) {
				for r := range 3 {
					x.F64()[i*x.Dim(1)+j] += b.Value.F64()[i*3+r] * a.Value.F64()[r*x.Dim(1)+j]
				}
			}
		}
		merged.Set(p, x)
	}
	if d := distance(hidden(merged), moved); d > 1e-12 {
		t.Errorf("merged, the model is off by %v", d)
	}
	if distance(moved, base) == 0 {
		t.Error("the updates do nothing")
	}
}

// TestLayerByLayer: the pieces of a layer are the model.
func TestLayerByLayer(t *testing.T) {
	m := mustLoad(t, smallLlama(t), LoadOptions{})
	tape := autograd.New(m.Backend())
	tape.Record(false)
	b, inputs := someBatch(), 0
	x := m.Embed(tape, b)
	for i := range m.Config.NumHiddenLayers {
		x = m.AfterAttention(tape, i, x, m.Attention(tape, i, b, x, func(h *autograd.Value) { inputs += h.Rows() }))
	}
	if d := distance(m.Norm(tape, x).F64(), hidden(m)); d > 1e-12 || inputs != 26 {
		t.Errorf("off by %v; %d inputs", d, inputs)
	}
}
