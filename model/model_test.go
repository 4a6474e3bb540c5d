package model_test

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"nha/autograd"
	"nha/backend"
	"nha/model"
	"nha/tensor"
	"nha/weights"
)

// small is a model with a window, a full and a slots-only layer and grouped heads.
func small(t *testing.T, b backend.Backend, change func(*model.Config)) *model.Model {
	t.Helper()
	c := model.NewConfig(37, 32, 3)
	c.NumHeads, c.NumKVHeads, c.NumSlots, c.IntermediateSize = 4, 2, 5, 48
	if err := c.ApplyPreset("nha", 6, 5); err != nil {
		t.Fatal(err)
	}
	var err error
	if c.LayerWindows, err = model.ParseWindows("6 full 0", 3); err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(&c)
	}
	m, err := model.New(c, b, model.Init{Seed: 1, Std: 0.3})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func randomTokens(n int, seed uint64) []int32 {
	r := rand.New(rand.NewPCG(seed, 0))
	x := make([]int32, n)
	for i := range x {
		x[i] = r.Int32N(37)
	}
	return x
}

// logits runs tokens in pieces from one state and returns all logits.
func logits(t *testing.T, m *model.Model, tokens []int32, pieces ...int) tensor.Tensor {
	t.Helper()
	tape := autograd.New(m.Backend())
	defer tape.Close()
	tape.Record(false)
	state := m.NewState()
	all := tensor.New(tensor.F64, tensor.Of(len(tokens), m.Config.VocabSize))
	for from := 0; from < len(tokens); {
		n := len(tokens) - from
		if len(pieces) > 0 {
			n, pieces = min(n, pieces[0]), pieces[1:]
		}
		b := &model.Batch{Tokens: tokens[from : from+n], Lengths: []int{n}, States: []*model.State{state}}
		if err := m.Check(b); err != nil {
			t.Fatal(err)
		}
		tape.Reset()
		m.Backend().Read(all.Narrow(from, from+n), m.Logits(tape, m.Hidden(tape, b), 0, n).Tensor)
		from += n
	}
	if state.Position != len(tokens) {
		t.Fatalf("position %d after %d tokens", state.Position, len(tokens))
	}
	return all
}

// TestTrainPrefillDecode: one forward of the whole sequence, chunks and single steps give the same logits (SPEC 1.1).
func TestTrainPrefillDecode(t *testing.T) {
	for _, b := range backends(t) {
		limit := map[tensor.DType]float64{tensor.F64: 1e-12, tensor.F32: 1e-5}[b.DType()]
		for name, change := range map[string]func(*model.Config){
			"nha":  nil,
			"mask": func(c *model.Config) { c.EmptySlots = "mask" },
			"transformer": func(c *model.Config) {
				if err := c.ApplyPreset("transformer", 0, 0); err != nil {
					t.Fatal(err)
				}
			},
			"tied, gate bias": func(c *model.Config) { c.TieWordEmbeddings, c.GateBias = true, true },
		} {
			m := small(t, b, change)
			tokens := randomTokens(40, 2)
			want := logits(t, m, tokens)
			for _, pieces := range [][]int{{1, 1, 1, 7, 1, 20, 5, 3, 1}, {39, 1}, {5, 6, 7, 8}} {
				if e := tensor.MaxError(logits(t, m, tokens, pieces...), want); !(e <= limit) {
					t.Errorf("%s %s pieces %v: error %.2g", b.Name(), name, pieces, e)
				}
			}
		}
	}
}

// TestPackedIsSeparate: sequences packed into one batch do not see each other, to the bit where rows keep their places.
func TestPackedIsSeparate(t *testing.T) {
	for _, b := range backends(t) {
		m, tape := small(t, b, nil), autograd.New(b)
		run := func(tokens []int32, lengths ...int) []float64 {
			tape.Reset()
			batch := &model.Batch{Tokens: tokens, Lengths: lengths}
			host := tensor.New(tensor.F64, tensor.Of(len(tokens), 37))
			b.Read(host, m.Logits(tape, m.Hidden(tape, batch), 0, len(tokens)).Tensor)
			return host.F64()
		}
		first, second, other := randomTokens(13, 3), randomTokens(21, 4), randomTokens(21, 5)
		together := run(append(append([]int32{}, first...), second...), 13, 21)
		beside := run(append(append([]int32{}, first...), other...), 13, 21)
		for i := range 13 * 37 {
			if together[i] != beside[i] {
				t.Fatalf("%s: another neighbour changes logit %d: %v, %v", b.Name(), i, together[i], beside[i])
			}
		}
		alone := run(second, 21)
		e := tensor.MaxError(tensor.FromF64(together[13*37:], 21*37), tensor.FromF64(alone, 21*37))
		if e > 1e-5 {
			t.Errorf("%s: packed and alone differ by %.2g", b.Name(), e)
		}
	}
}

// TestSaveAndLoad: a saved model computes the same bits, mapped or not, and its windows can be moved at load time.
func TestSaveAndLoad(t *testing.T) {
	for _, b := range backends(t) {
		m, dir := small(t, b, func(c *model.Config) { eos := 3; c.EosTokenID = &eos }), t.TempDir()
		if b.DType() == tensor.F64 {
			m.Config.DType = "F64"
		}
		if err := m.Save(dir); err != nil {
			t.Fatal(err)
		}
		tokens := randomTokens(30, 6)
		want := logits(t, m, tokens)
		for _, train := range []bool{false, true} {
			l, err := model.Load(dir, b, model.LoadOptions{Train: train})
			if err != nil {
				t.Fatal(err)
			}
			if got := logits(t, l, tokens); !bytes.Equal(got.Bytes(), want.Bytes()) || l.Hash() != m.Hash() {
				t.Errorf("%s: loaded model (train %v) computes something else", b.Name(), train)
			}
			l.Close()
		}
		l, err := model.Load(dir, b, model.LoadOptions{Windows: "full"})
		if err != nil {
			t.Fatal(err)
		}
		if err := m.SetWindows(l.Config.LayerWindows); err != nil {
			t.Fatal(err)
		}
		if got := logits(t, l, tokens); !bytes.Equal(got.Bytes(), logits(t, m, tokens).Bytes()) || bytes.Equal(got.Bytes(), want.Bytes()) {
			t.Errorf("%s: windows at load time and set later differ", b.Name())
		}
		l.Close()
	}
}

// TestHalfPrecisionInPlace: a checkpoint in half precision is the same model whether its matrices stay as they are stored
// (cpu, not trained) or are widened first; only what stays takes half the bytes.
func TestHalfPrecisionInPlace(t *testing.T) {
	for _, b := range backends(t) {
		for _, d := range []tensor.DType{tensor.BF16, tensor.F16} {
			for _, tied := range []bool{false, true} {
				m, dir := small(t, b, func(c *model.Config) { c.DType, c.TieWordEmbeddings, c.GateBias = d.String(), tied, true }), t.TempDir()
				if err := m.Save(dir); err != nil {
					t.Fatal(err)
				}
				stored, err := model.Load(dir, b, model.LoadOptions{})
				if err != nil {
					t.Fatal(err)
				}
				widened, err := model.Load(dir, b, model.LoadOptions{Train: true})
				if err != nil {
					t.Fatal(err)
				}
				for _, p := range stored.Tensors() {
					want := b.DType()
					if strings.HasPrefix(b.Name(), "cpu") && p.Value.Shape.Rank() == 2 {
						want = d
					}
					if p.Value.DType != want {
						t.Errorf("%s: %s is %v, want %v", b.Name(), p.Name, p.Value.DType, want)
					}
				}
				tokens := randomTokens(40, 6)
				want := logits(t, widened, tokens)
				for _, pieces := range [][]int{nil, {1, 1, 20, 1}} {
					if e := tensor.MaxError(logits(t, stored, tokens, pieces...), want); !(e <= 2e-6) {
						t.Errorf("%s %v, tied %v, pieces %v: logits are off by %.2g", b.Name(), d, tied, pieces, e)
					}
				}
				if stored.Hash() != widened.Hash() {
					t.Errorf("%s %v: the hash depends on where the weights lie", b.Name(), d)
				}
				stored.Close()
				widened.Close()
			}
		}
	}
}

// TestWeightsSilentlyNotLoaded is error 12 of SPEC 4: a missing, extra or mis-shaped tensor is an error that names it.
func TestWeightsSilentlyNotLoaded(t *testing.T) {
	b, err := backend.Open("ref", 1)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := small(t, b, nil).Save(dir); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, weights.FileName)
	f, err := weights.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	var all []weights.Named
	for _, name := range f.Names() {
		x, _ := f.Tensor(name)
		all = append(all, weights.Named{Name: name, Tensor: x.Clone()})
	}
	f.Close()
	const name = "model.layers.1.attn.f_proj.weight"
	without := func(keep ...weights.Named) (list []weights.Named) {
		for _, x := range all {
			if x.Name != name {
				list = append(list, x)
			}
		}
		return append(list, keep...)
	}
	for what, list := range map[string][]weights.Named{
		"missing":     without(),
		"mis-shaped":  without(weights.Named{Name: name, Tensor: tensor.New(tensor.F32, tensor.Of(32, 10))}),
		"not part of": append(slices.Clone(all), weights.Named{Name: name + "2", Tensor: tensor.New(tensor.F32, tensor.Of(1))}),
		"floating":    without(weights.Named{Name: name, Tensor: tensor.New(tensor.I32, tensor.Of(10, 32))}),
	} {
		if err := weights.Write(path, nil, list); err != nil {
			t.Fatal(err)
		}
		if _, err := model.Load(dir, b, model.LoadOptions{}); err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := os.Truncate(path, 3000); err != nil {
		t.Fatal(err)
	}
	if _, err := model.Load(dir, b, model.LoadOptions{}); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("truncated: %v", err)
	}
}

// TestBatchRefuses: what a user's data can get wrong is an error, not a panic.
func TestBatchRefuses(t *testing.T) {
	b, err := backend.Open("ref", 1)
	if err != nil {
		t.Fatal(err)
	}
	m := small(t, b, nil)
	for says, batch := range map[string]model.Batch{
		"token 37 is outside the model's vocabulary of 37": {Tokens: []int32{37}, Lengths: []int{1}},
		"token -1 is negative":                             {Tokens: []int32{-1}, Lengths: []int{1}},
		"2 tokens in sequences of 1":                       {Tokens: []int32{1, 2}, Lengths: []int{1}},
		"a sequence of 0 tokens":                           {Tokens: []int32{1}, Lengths: []int{1, 0}},
		"1 targets for 2 tokens":                           {Tokens: []int32{1, 2}, Lengths: []int{2}, Targets: []int32{1}},
	} {
		if err := m.Check(&batch); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want %q", err, says)
		}
	}
}

// TestHeadCountsAreNotDerived is error 11 of SPEC 4: the numbers of heads are what the config says, not hidden_size / head_dim.
func TestHeadCountsAreNotDerived(t *testing.T) {
	for _, b := range backends(t) {
		m := small(t, b, func(c *model.Config) { c.HeadDim = 6 }) // hidden 32, 4 heads of 6
		p, ok := m.Parameter("model.layers.0.attn.q_proj.weight")
		if want := tensor.Of(24, 32); !ok || p.Value.Shape != want {
			t.Errorf("q_proj is %v, want %v", p.Value.Shape, want)
		}
		p, ok = m.Parameter("model.layers.0.attn.o_proj.weight")
		if want := tensor.Of(32, 24); !ok || p.Value.Shape != want {
			t.Errorf("o_proj is %v, want %v", p.Value.Shape, want)
		}
		tokens := randomTokens(12, 7)
		if e := tensor.MaxError(logits(t, m, tokens, 5, 1, 6), logits(t, m, tokens)); e > 1e-5 {
			t.Errorf("%s: error %.2g", b.Name(), e)
		}
	}
}
