// Package gguftest writes GGUF files for tests: of anything, lies included, and of a Hugging Face model directory, as
// llama.cpp's conversion script does.
package gguftest

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"

	"nha/tensor"
	"nha/weights"
)

// Pair is a metadata key with its value: a Go number, bool, string, or slice of them, stored as the type it has.
type Pair struct {
	Key   string
	Value any
}

// Tensor is a tensor with ggml's number of its type. Dims are innermost first.
type Tensor struct {
	Name string
	Dims []uint64
	Type uint32
	Data []byte
}

// File is a whole file; the zero Version is 3, the zero Alignment 32.
type File struct {
	Version   uint32
	Alignment int
	Pairs     []Pair
	Tensors   []Tensor
}

// Types are ggml's numbers of the element types.
var Types = map[tensor.DType]uint32{tensor.F32: 0, tensor.F16: 1, tensor.Q4_0: 2, tensor.Q4_1: 3, tensor.Q5_0: 6, tensor.Q5_1: 7, tensor.Q8_0: 8,
	tensor.Q4_K: 12, tensor.Q5_K: 13, tensor.Q6_K: 14, tensor.BF16: 30}

// Of is t under a name.
func Of(name string, t tensor.Tensor) Tensor {
	out := Tensor{Name: name, Type: Types[t.DType], Data: t.Bytes()}
	for i := t.Shape.Rank() - 1; i >= 0; i-- {
		out.Dims = append(out.Dims, uint64(t.Dim(i)))
	}
	return out
}

// Bytes is the file.
func (f File) Bytes() []byte {
	e := binary.LittleEndian
	if f.Version == 0 {
		f.Version = 3
	}
	pairs := f.Pairs
	if f.Alignment == 0 {
		f.Alignment = 32
	} else {
		pairs = append([]Pair{{"general.alignment", uint32(f.Alignment)}}, pairs...)
	}
	b := e.AppendUint32([]byte("GGUF"), f.Version)
	b = e.AppendUint64(b, uint64(len(f.Tensors)))
	b = e.AppendUint64(b, uint64(len(pairs)))
	for _, p := range pairs {
		b = appendString(b, p.Key)
		kind, value := appendValue(nil, p.Value)
		b = append(e.AppendUint32(b, kind), value...)
	}
	offset := 0
	for _, t := range f.Tensors {
		b = appendString(b, t.Name)
		b = e.AppendUint32(b, uint32(len(t.Dims)))
		for _, d := range t.Dims {
			b = e.AppendUint64(b, d)
		}
		b = e.AppendUint64(e.AppendUint32(b, t.Type), uint64(offset))
		offset += (len(t.Data) + f.Alignment - 1) / f.Alignment * f.Alignment
	}
	pad := func() {
		for len(b)%f.Alignment != 0 {
			b = append(b, 0)
		}
	}
	pad()
	for _, t := range f.Tensors {
		b = append(b, t.Data...)
		pad()
	}
	return b
}

func appendString(b []byte, s string) []byte {
	return append(binary.LittleEndian.AppendUint64(b, uint64(len(s))), s...)
}

func appendValue(b []byte, v any) (uint32, []byte) {
	e := binary.LittleEndian
	switch v := v.(type) {
	case uint8:
		return 0, append(b, v)
	case int8:
		return 1, append(b, byte(v))
	case uint16:
		return 2, e.AppendUint16(b, v)
	case int16:
		return 3, e.AppendUint16(b, uint16(v))
	case uint32:
		return 4, e.AppendUint32(b, v)
	case int32:
		return 5, e.AppendUint32(b, uint32(v))
	case float32:
		return 6, e.AppendUint32(b, math.Float32bits(v))
	case bool:
		if v {
			return 7, append(b, 1)
		}
		return 7, append(b, 0)
	case string:
		return 8, appendString(b, v)
	case uint64:
		return 10, e.AppendUint64(b, v)
	case int64:
		return 11, e.AppendUint64(b, uint64(v))
	case float64:
		return 12, e.AppendUint64(b, math.Float64bits(v))
	case []string:
		return 9, appendArray(b, 8, v)
	case []int32:
		return 9, appendArray(b, 5, v)
	case []float32:
		return 9, appendArray(b, 6, v)
	case []uint8:
		return 9, appendArray(b, 0, v)
	case []uint16:
		return 9, appendArray(b, 2, v)
	case []bool:
		return 9, appendArray(b, 7, v)
	}
	panic(fmt.Sprintf("gguftest: value of type %T", v))
}

func appendArray[E any](b []byte, kind uint32, list []E) []byte {
	b = binary.LittleEndian.AppendUint32(b, kind)
	b = binary.LittleEndian.AppendUint64(b, uint64(len(list)))
	for _, v := range list {
		_, b = appendValue(b, v)
	}
	return b
}

// hfConfig is what a conversion reads of a config.json.
type hfConfig struct {
	ModelType string   `json:"model_type"`
	Hidden    int      `json:"hidden_size"`
	Inner     int      `json:"intermediate_size"`
	Layers    int      `json:"num_hidden_layers"`
	Heads     int      `json:"num_attention_heads"`
	KVHeads   int      `json:"num_key_value_heads"`
	HeadDim   int      `json:"head_dim"`
	Context   int      `json:"max_position_embeddings"`
	Eps       float32  `json:"rms_norm_eps"`
	Window    *int     `json:"sliding_window"`
	Experts   int      `json:"num_local_experts"`
	Used      int      `json:"num_experts_per_tok"`
	Expert    int      `json:"moe_intermediate_size"`
	Bos       *int     `json:"bos_token_id"`
	Eos       *int     `json:"eos_token_id"`
	Rope      struct { // transformers 5's spelling
		Type     string  `json:"rope_type"`
		Theta    float64 `json:"rope_theta"`
		Factor   float64 `json:"factor"`
		Low      float64 `json:"low_freq_factor"`
		High     float64 `json:"high_freq_factor"`
		Original float64 `json:"original_max_position_embeddings"`
	} `json:"rope_parameters"`
}

// FromDirectory is the GGUF file of a Hugging Face directory of one of the families llama, mistral, qwen2, qwen3 and
// qwen3_moe, its matrices stored as type as where their rows are whole blocks and vectors as float32.
func FromDirectory(dir string, as tensor.DType) (File, error) {
	var f File
	var c hfConfig
	text, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil {
		return f, err
	}
	if err := json.Unmarshal(text, &c); err != nil {
		return f, err
	}
	source, err := weights.OpenDir(dir)
	if err != nil {
		return f, err
	}
	defer source.Close()
	arch := strings.NewReplacer("mistral", "llama", "_", "").Replace(c.ModelType)
	f.Pairs = c.pairs(arch)
	experts := map[string][]tensor.Tensor{}
	for _, name := range source.Names() {
		t, _ := source.Tensor(name)
		own, number := ownName(name)
		switch {
		case arch == "llama" && strings.Contains(own, "attn_q."):
			t = permute(t, c.Heads)
		case arch == "llama" && strings.Contains(own, "attn_k."):
			t = permute(t, c.KVHeads)
		}
		if elements, _ := as.Block(); t.Shape.Rank() == 2 && t.Columns()%elements == 0 && !strings.Contains(own, "ffn_gate_inp") {
			t = converted(t, as)
		} else {
			t = converted(t, tensor.F32)
		}
		if number >= 0 {
			if experts[own] == nil {
				experts[own] = make([]tensor.Tensor, c.Experts)
			}
			experts[own][number] = t
			continue
		}
		f.Tensors = append(f.Tensors, Of(own, t))
	}
	for own, list := range experts {
		joined := tensor.New(list[0].DType, tensor.Of(len(list), list[0].Dim(0), list[0].Dim(1)))
		for i, t := range list {
			copy(joined.Narrow(i, i+1).Bytes(), t.Bytes())
		}
		f.Tensors = append(f.Tensors, Of(own, joined))
	}
	if c.Rope.Type == "llama3" {
		f.Tensors = append(f.Tensors, Of("rope_freqs.weight", c.ropeDivisors()))
	}
	return f, nil
}

func (c *hfConfig) pairs(arch string) []Pair {
	list := []Pair{{"general.architecture", arch}, {arch + ".block_count", uint32(c.Layers)}, {arch + ".context_length", uint32(c.Context)},
		{arch + ".embedding_length", uint32(c.Hidden)}, {arch + ".feed_forward_length", uint32(c.Inner)}, {arch + ".attention.head_count", uint32(c.Heads)},
		{arch + ".attention.head_count_kv", uint32(c.KVHeads)}, {arch + ".attention.layer_norm_rms_epsilon", c.Eps}, {arch + ".rope.freq_base", float32(c.Rope.Theta)}}
	add := func(key string, value any) { list = append(list, Pair{arch + "." + key, value}) }
	if c.HeadDim > 0 {
		add("attention.key_length", uint32(c.HeadDim))
		add("attention.value_length", uint32(c.HeadDim))
	}
	if c.Rope.Type == "linear" {
		add("rope.scaling.type", "linear")
		add("rope.scaling.factor", float32(c.Rope.Factor))
	}
	if c.ModelType == "mistral" && c.Window != nil {
		add("attention.sliding_window", uint32(*c.Window))
	}
	if c.Experts > 0 {
		add("expert_count", uint32(c.Experts))
		add("expert_used_count", uint32(c.Used))
		add("expert_feed_forward_length", uint32(c.Expert))
	}
	for name, id := range map[string]*int{"bos": c.Bos, "eos": c.Eos} {
		if id != nil {
			list = append(list, Pair{"tokenizer.ggml." + name + "_token_id", uint32(*id)})
		}
	}
	return list
}

// ropeDivisors is rope_freqs.weight.
func (c *hfConfig) ropeDivisors() tensor.Tensor {
	t := tensor.New(tensor.F32, tensor.Of(c.HeadDim/2))
	for i := range t.F32() {
		wavelength := 2 * math.Pi * math.Pow(c.Rope.Theta, 2*float64(i)/float64(c.HeadDim))
		smooth := (c.Rope.Original/wavelength - c.Rope.Low) / (c.Rope.High - c.Rope.Low)
		smooth = min(1, max(0, smooth))
		t.F32()[i] = float32(1 / ((1-smooth)/c.Rope.Factor + smooth))
	}
	return t
}

// ownName is llama.cpp's name of a tensor, and the number of the expert whose it is, or -1.
func ownName(name string) (string, int) {
	expert := -1
	own := strings.NewReplacer("model.layers.", "blk.", "model.embed_tokens", "token_embd", "model.norm", "output_norm", "lm_head", "output",
		"input_layernorm", "attn_norm", "post_attention_layernorm", "ffn_norm", "self_attn.q_proj", "attn_q", "self_attn.k_proj", "attn_k",
		"self_attn.v_proj", "attn_v", "self_attn.o_proj", "attn_output", "self_attn.q_norm", "attn_q_norm", "self_attn.k_norm", "attn_k_norm",
		"mlp.gate_proj", "ffn_gate", "mlp.up_proj", "ffn_up", "mlp.down_proj", "ffn_down", "mlp.gate.", "ffn_gate_inp.").Replace(name)
	if before, after, ok := strings.Cut(own, "mlp.experts."); ok {
		var kind string
		fmt.Sscanf(strings.Replace(after, "_proj.weight", "", 1), "%d.%s", &expert, &kind)
		own = before + "ffn_" + kind + "_exps.weight"
	}
	return own, expert
}

// permute puts the rows of every head into the order of llama.cpp's rotary embedding: (2, D/2) becomes (D/2, 2).
func permute(t tensor.Tensor, heads int) tensor.Tensor {
	out := t.Clone()
	row, d := len(t.Bytes())/t.Dim(0), t.Dim(0)/heads
	for r := range t.Dim(0) {
		head, i := r/d, r%d
		half, j := i/(d/2), i%(d/2)
		copy(out.Bytes()[(head*d+2*j+half)*row:][:row], t.Bytes()[r*row:])
	}
	return out
}

func converted(t tensor.Tensor, as tensor.DType) tensor.Tensor {
	out := tensor.New(as, t.Shape)
	tensor.Convert(out, t)
	return out
}
