package weights_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"nha/mapfile"
	"nha/model"
	"nha/tensor"
	"nha/weights"
	"nha/weights/gguftest"
)

const golden = "../../shared/golden"

func write(t *testing.T, file []byte) string {
	path := filepath.Join(t.TempDir(), "model.gguf")
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t *testing.T, file []byte) *weights.GGUF {
	g, err := weights.OpenGGUF(write(t, file))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return g
}

// TestGGUFFamilies: a Hugging Face directory made into a GGUF file comes back under the same names with the same values, and
// with a configuration that says the same.
func TestGGUFFamilies(t *testing.T) {
	for _, family := range []string{"llama", "qwen2", "qwen3", "qwen3moe"} {
		for _, as := range []tensor.DType{tensor.F32, tensor.BF16, tensor.Q8_0} {
			dir := filepath.Join(golden, family+"-tiny")
			if _, err := os.Stat(dir); err != nil {
				t.Skipf("%s is not here", dir)
			}
			file, err := gguftest.FromDirectory(dir, as)
			if err != nil {
				t.Fatal(err)
			}
			g := open(t, file.Bytes())
			source, err := weights.OpenDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer source.Close()
			if got, want := g.Names(), source.Names(); !reflect.DeepEqual(got, want) {
				t.Fatalf("%s: names %v, want %v", family, got, want)
			}
			for _, name := range source.Names() {
				got, _ := g.Tensor(name)
				want, _ := source.Tensor(name)
				if got.Shape != want.Shape {
					t.Fatalf("%s: %s is %v, want %v", family, name, got.Shape, want.Shape)
				}
				limit := map[tensor.DType]float64{tensor.F32: 0, tensor.BF16: 1. / 256, tensor.Q8_0: 1. / 245}[got.DType]
				if e := tensor.MaxError(got, want); e > limit {
					t.Errorf("%s: %s as %v is off by %v", family, name, got.DType, e)
				}
			}
			compareConfigs(t, g, dir)
		}
	}
}

// compareConfigs holds the keys that both configurations have against each other.
func compareConfigs(t *testing.T, g *weights.GGUF, dir string) {
	t.Helper()
	read := func(text []byte, err error) (c map[string]any) {
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(text, &c); err != nil {
			t.Fatal(err)
		}
		return c
	}
	got, want := read(g.Config()), read(os.ReadFile(filepath.Join(dir, "config.json")))
	rope := want["rope_parameters"].(map[string]any)
	want["rope_theta"] = rope["rope_theta"]
	delete(rope, "rope_theta")
	if rope["rope_type"] != "default" {
		want["rope_scaling"] = rope
	}
	if n, ok := want["num_local_experts"]; ok {
		want["num_experts"] = n
	}
	for _, key := range []string{"dtype", "sliding_window"} {
		delete(want, key)
	}
	for key, value := range got {
		if w, ok := want[key]; ok && w != nil && !reflect.DeepEqual(value, w) {
			t.Errorf("%s: %s is %v, want %v", dir, key, value, w)
		}
	}
	for _, key := range []string{"model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
		"max_position_embeddings", "rms_norm_eps", "rope_theta", "tie_word_embeddings"} {
		if got[key] == nil {
			t.Errorf("%s: no %s", dir, key)
		}
	}
}

// small is a valid llama file of one layer.
func small() gguftest.File {
	f := gguftest.File{Pairs: []gguftest.Pair{{Key: "general.architecture", Value: "llama"}, {Key: "llama.block_count", Value: uint32(1)},
		{Key: "llama.context_length", Value: uint32(64)}, {Key: "llama.embedding_length", Value: uint32(32)}, {Key: "llama.feed_forward_length", Value: uint32(64)},
		{Key: "llama.attention.head_count", Value: uint32(4)}, {Key: "llama.attention.head_count_kv", Value: uint32(2)},
		{Key: "llama.attention.layer_norm_rms_epsilon", Value: float32(1e-5)}, {Key: "tokenizer.chat_template", Value: "{{ messages }}"}}}
	add := func(name string, d tensor.DType, dims ...int) {
		x := tensor.New(d, tensor.Of(dims...))
		for i := range x.Bytes() {
			x.Bytes()[i] = byte(i * 7 & 0x3f)
		}
		f.Tensors = append(f.Tensors, gguftest.Of(name, x))
	}
	add("token_embd.weight", tensor.Q8_0, 10, 32)
	add("output_norm.weight", tensor.F32, 32)
	for _, name := range []string{"attn_norm", "ffn_norm"} {
		add("blk.0."+name+".weight", tensor.F32, 32)
	}
	add("blk.0.attn_q.weight", tensor.Q4_0, 32, 32)
	add("blk.0.attn_k.weight", tensor.Q4_0, 16, 32)
	add("blk.0.attn_v.weight", tensor.Q5_1, 16, 32)
	add("blk.0.attn_output.weight", tensor.F16, 32, 32)
	add("blk.0.ffn_gate.weight", tensor.Q4_1, 64, 32)
	add("blk.0.ffn_up.weight", tensor.Q5_0, 64, 32)
	add("blk.0.ffn_down.weight", tensor.BF16, 32, 64)
	return f
}

func with(pairs ...gguftest.Pair) gguftest.File {
	f := small()
	for _, p := range pairs {
		replaced := false
		for i := range f.Pairs {
			if f.Pairs[i].Key == p.Key {
				f.Pairs[i], replaced = p, true
			}
		}
		if !replaced {
			f.Pairs = append(f.Pairs, p)
		}
	}
	return f
}

func TestGGUFValues(t *testing.T) {
	want := map[string]any{"a": uint64(200), "b": int64(-3), "c": uint64(60000), "d": int64(-30000), "e": uint64(1 << 31), "f": int64(-1 << 31), "g": 0.5, "h": true,
		"i": "text", "j": uint64(1 << 63), "k": int64(-1 << 63), "l": 1e300, "m": []string{"x", "", "yz"}, "n": []int32{-1, 2}, "o": []float32{0.25},
		"p": []any{uint64(1), uint64(255)}, "q": []any{true, false}, "r": []string{}}
	f := with(gguftest.Pair{Key: "a", Value: uint8(200)}, gguftest.Pair{Key: "b", Value: int8(-3)}, gguftest.Pair{Key: "c", Value: uint16(60000)},
		gguftest.Pair{Key: "d", Value: int16(-30000)}, gguftest.Pair{Key: "e", Value: uint32(1 << 31)}, gguftest.Pair{Key: "f", Value: int32(-1 << 31)},
		gguftest.Pair{Key: "g", Value: float32(0.5)}, gguftest.Pair{Key: "h", Value: true}, gguftest.Pair{Key: "i", Value: "text"},
		gguftest.Pair{Key: "j", Value: uint64(1 << 63)}, gguftest.Pair{Key: "k", Value: int64(-1 << 63)}, gguftest.Pair{Key: "l", Value: 1e300},
		gguftest.Pair{Key: "m", Value: []string{"x", "", "yz"}}, gguftest.Pair{Key: "n", Value: []int32{-1, 2}}, gguftest.Pair{Key: "o", Value: []float32{0.25}},
		gguftest.Pair{Key: "p", Value: []uint8{1, 255}}, gguftest.Pair{Key: "q", Value: []bool{true, false}}, gguftest.Pair{Key: "r", Value: []string{}})
	for _, version := range []uint32{2, 3} {
		for _, alignment := range []int{0, 8, 128} {
			f.Version, f.Alignment = version, alignment
			g := open(t, f.Bytes())
			for key, value := range want {
				if got, ok := g.Value(key); !ok || !reflect.DeepEqual(got, value) {
					t.Errorf("%s is %#v, want %#v", key, got, value)
				}
			}
			if _, ok := g.Value("z"); ok || g.ChatTemplate() != "{{ messages }}" || len(g.Metadata()) != 1 {
				t.Errorf("template %q, metadata %v", g.ChatTemplate(), g.Metadata())
			}
			for i, x := range []string{"model.embed_tokens", "model.layers.0.mlp.down_proj"} {
				got, _ := g.Tensor(x + ".weight")
				if want := f.Tensors[i*10].Data; !bytes.Equal(got.Bytes(), want) {
					t.Errorf("%s has other bytes", x)
				}
			}
		}
	}
}

// TestGGUFPermutation: llama's query and key rows are put back as blocks, the other tensors are views.
func TestGGUFPermutation(t *testing.T) {
	f := small()
	g := open(t, f.Bytes())
	q, _ := g.Tensor("model.layers.0.self_attn.q_proj.weight")
	own := f.Tensors[4].Data
	const row = 18
	for _, c := range [][2]int{{0, 0}, {1, 2}, {2, 4}, {3, 6}, {4, 1}, {7, 7}, {8, 8}, {12, 9}, {31, 31}} { // Hugging Face row, own row; heads of 8
		if got, want := q.Narrow(c[0], c[0]+1).Bytes(), own[c[1]*row:][:row]; !bytes.Equal(got, want) {
			t.Errorf("row %d of q_proj is not row %d of attn_q", c[0], c[1])
		}
	}
	f.Pairs[0].Value = "qwen2"
	for i := range f.Pairs {
		f.Pairs[i].Key = strings.Replace(f.Pairs[i].Key, "llama.", "qwen2.", 1)
	}
	q, _ = open(t, f.Bytes()).Tensor("model.layers.0.self_attn.q_proj.weight")
	if !bytes.Equal(q.Bytes(), own) {
		t.Error("qwen2's rows were moved")
	}
}

func TestGGUFMistral(t *testing.T) {
	text, err := open(t, with(gguftest.Pair{Key: "llama.attention.sliding_window", Value: uint32(4096)}).Bytes()).Config()
	if err != nil {
		t.Fatal(err)
	}
	var c struct {
		ModelType string `json:"model_type"`
		Window    int    `json:"sliding_window"`
	}
	if err := json.Unmarshal(text, &c); err != nil || c.ModelType != "mistral" || c.Window != 4096 {
		t.Errorf("%s: %v", text, err)
	}
	if m, err := model.ParseConfig(text); err != nil || m.LayerWindows[0] != 4096 {
		t.Errorf("model: windows %v, %v", m.LayerWindows, err)
	}
}

func TestGGUFLinearRope(t *testing.T) {
	for _, pairs := range [][]gguftest.Pair{{{Key: "llama.rope.scaling.type", Value: "linear"}, {Key: "llama.rope.scaling.factor", Value: float32(2.5)}},
		{{Key: "llama.rope.scale_linear", Value: float32(2.5)}}} {
		text, err := open(t, with(pairs...).Bytes()).Config()
		if err != nil {
			t.Fatal(err)
		}
		if c, err := model.ParseConfig(text); err != nil || c.RopeScaling.Type != "linear" || c.RopeScaling.Factor != 2.5 {
			t.Errorf("%+v, %v", c.RopeScaling, err)
		}
	}
}

// TestGGUFLies: what is wrong with a file is one error that names the place.
func TestGGUFLies(t *testing.T) {
	edit := func(change func(f *gguftest.File)) []byte {
		f := small()
		change(&f)
		return f.Bytes()
	}
	put := func(at int, v uint64) []byte {
		b := small().Bytes()
		binary.LittleEndian.PutUint64(b[at:], v)
		return b
	}
	whole := small().Bytes()
	for _, c := range []struct {
		what string
		file []byte
		want string
	}{
		{"magic", []byte("GGML and so on"), "not a GGUF file"},
		{"version 1", edit(func(f *gguftest.File) { f.Version = 1 }), "version 1"},
		{"version 4", edit(func(f *gguftest.File) { f.Version = 4 }), "version 4"},
		{"big-endian", edit(func(f *gguftest.File) { f.Version = 3 << 24 }), "big-endian"},
		{"tensors", put(8, 1<<60), "1152921504606846976 tensors"},
		{"pairs", put(16, 1<<60), "metadata pairs"},
		{"key length", put(24, 1<<63), "truncated"},
		{"truncated header", whole[:100], "truncated"},
		{"truncated data", whole[:len(whole)-200], "truncated"},
		{"more data", append(bytes.Clone(whole), make([]byte, 33)...), "belong to no tensor"},
		{"key twice", edit(func(f *gguftest.File) { f.Pairs = append(f.Pairs, f.Pairs[0]) }), "twice"},
		{"tensor twice", edit(func(f *gguftest.File) { f.Tensors = append(f.Tensors, f.Tensors[1]) }), "twice"},
		{"alignment", edit(func(f *gguftest.File) {
			f.Pairs = append(f.Pairs, gguftest.Pair{Key: "general.alignment", Value: uint32(48)})
		}), "power of two"},
		{"type Q2_K", edit(func(f *gguftest.File) { f.Tensors[4].Type = 10 }), `"blk.0.attn_q.weight" is Q2_K`},
		{"type 99", edit(func(f *gguftest.File) { f.Tensors[4].Type = 99 }), "unknown type 99"},
		{"rank", edit(func(f *gguftest.File) { f.Tensors[1].Dims = []uint64{32, 1, 1, 1, 1} }), "5 dimensions"},
		{"blocks", edit(func(f *gguftest.File) { f.Tensors[0].Dims = []uint64{16, 20} }), "whole number of blocks"},
		{"huge", edit(func(f *gguftest.File) { f.Tensors[1].Dims = []uint64{1 << 40, 1 << 40} }), "memory that exists"},
		{"offset", edit(func(f *gguftest.File) { f.Tensors[0].Dims[1] = 11 }), "should at"},
		{"unknown tensor", edit(func(f *gguftest.File) { f.Tensors[1].Name = "blk.0.attn_qkv.weight" }), "not part of architecture llama"},
		{"layer", edit(func(f *gguftest.File) { f.Tensors[3].Name = "blk.00.ffn_norm.weight" }), "not part of architecture llama"},
		{"architecture", edit(func(f *gguftest.File) { f.Pairs[0].Value = "gemma3" }), `"gemma3" is not supported: llama, qwen2, qwen3, qwen3moe are`},
		{"heads", with(gguftest.Pair{Key: "llama.attention.head_count", Value: uint32(5)}).Bytes(), "5 heads"},
		{"part", with(gguftest.Pair{Key: "split.count", Value: uint16(3)}).Bytes(), "one of 3 files"},
	} {
		_, err := weights.OpenGGUF(write(t, c.file))
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "model.gguf") {
			t.Errorf("%s: %v, want %q", c.what, err, c.want)
		}
	}
	for _, c := range []struct {
		pair gguftest.Pair
		want string
	}{
		{gguftest.Pair{Key: "llama.logit_scale", Value: float32(2)}, "llama.logit_scale"},
		{gguftest.Pair{Key: "llama.rope.scaling.type", Value: "yarn"}, `"yarn" is not supported`},
		{gguftest.Pair{Key: "llama.expert_count", Value: uint32(8)}, "experts"},
		{gguftest.Pair{Key: "llama.vocab_size", Value: uint32(11)}, "10 rows"},
		{gguftest.Pair{Key: "tokenizer.ggml.tokens", Value: []string{"a"}}, "1 tokens"},
		{gguftest.Pair{Key: "llama.attention.key_length", Value: uint32(16)}, ""},
		{gguftest.Pair{Key: "llama.attention.value_length", Value: uint32(4)}, "another one"},
		{gguftest.Pair{Key: "llama.attention.causal", Value: false}, "causal"},
		{gguftest.Pair{Key: "llama.block_count", Value: "one"}, "positive number"},
		{gguftest.Pair{Key: "llama.feed_forward_length", Value: []int32{64, 32}}, "differs between layers"},
		{gguftest.Pair{Key: "llama.feed_forward_length", Value: []int32{64, 64}}, ""},
	} {
		_, err := open(t, with(c.pair).Bytes()).Config()
		if c.want == "" {
			if err != nil {
				t.Errorf("%s: %v", c.pair.Key, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %v: %v, want %q", c.pair.Key, c.pair.Value, err, c.want)
		}
	}
}

// TestGGUFVocabulary: a file without tensors is good for its tokenizer, whatever the architecture, and is no model.
func TestGGUFVocabulary(t *testing.T) {
	g := open(t, gguftest.File{Pairs: []gguftest.Pair{{Key: "general.architecture", Value: "bert"}}}.Bytes())
	if _, err := g.Config(); err == nil || len(g.Names()) != 0 {
		t.Errorf("%v, names %v", err, g.Names())
	}
}

// TestGGUFWriteVocabulary: the tokenizer's keys alone, of any type, with their values.
func TestGGUFWriteVocabulary(t *testing.T) {
	g := open(t, with(gguftest.Pair{Key: "tokenizer.ggml.tokens", Value: []string{"a", "b\x00c"}}, gguftest.Pair{Key: "other", Value: "x"},
		gguftest.Pair{Key: "tokenizer.ggml.scores", Value: []float32{1, -2}}, gguftest.Pair{Key: "tokenizer.ggml.add_bos_token", Value: true}).Bytes())
	path := filepath.Join(t.TempDir(), weights.VocabularyName)
	if err := g.WriteVocabulary(path); err != nil {
		t.Fatal(err)
	}
	v, err := weights.OpenGGUF(path)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	for _, key := range []string{"general.architecture", "tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.add_bos_token", "tokenizer.chat_template"} {
		got, ok := v.Value(key)
		want, _ := g.Value(key)
		if !ok || !reflect.DeepEqual(got, want) {
			t.Errorf("%s is %v, want %v", key, got, want)
		}
	}
	if _, ok := v.Value("other"); ok || len(v.Names()) > 0 {
		t.Error("more than the vocabulary was written")
	}
}

// FuzzGGUF: whatever a file says, opening it never panics and costs memory in proportion to its length; what opens can be
// read to its last element.
func FuzzGGUF(f *testing.F) {
	file := small().Bytes()
	f.Add(file)
	f.Add(file[:len(file)/2])
	f.Add(with(gguftest.Pair{Key: "tokenizer.ggml.tokens", Value: []string{"a", "b"}}, gguftest.Pair{Key: "x", Value: []uint8{1, 2, 3}}).Bytes())
	moe := with(gguftest.Pair{Key: "general.architecture", Value: "qwen3moe"}, gguftest.Pair{Key: "qwen3moe.expert_count", Value: uint32(2)})
	moe.Tensors = append(moe.Tensors[:4], gguftest.Of("blk.0.ffn_up_exps.weight", tensor.New(tensor.Q8_0, tensor.Of(2, 3, 32))),
		gguftest.Of("rope_freqs.weight", tensor.New(tensor.F32, tensor.Of(4))))
	f.Add(moe.Bytes())
	f.Fuzz(func(t *testing.T, file []byte) {
		data, err := mapfile.Read(bytes.NewReader(file), len(file))
		if err != nil {
			t.Fatal(err)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		g, err := weights.NewGGUF("fuzz", data)
		runtime.ReadMemStats(&after)
		if spent := after.TotalAlloc - before.TotalAlloc; spent > 1<<20+64*uint64(len(file)) {
			t.Fatalf("%d bytes allocated for a file of %d", spent, len(file))
		}
		if err != nil {
			return
		}
		g.Config() // any error will do
		total := 0
		for _, name := range g.Names() {
			x, ok := g.Tensor(name)
			if !ok || x.DType == tensor.Invalid {
				t.Fatalf("listed tensor %q is not there", name)
			}
			if n := x.Len(); n > 0 {
				x.Value(0)
				x.Value(n - 1)
			}
			total += len(x.Bytes())
		}
		if total > len(file) {
			t.Fatalf("%d bytes of tensors in a file of %d", total, len(file))
		}
	})
}
