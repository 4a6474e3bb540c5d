package weights

import (
	"fmt"
	"strconv"
	"strings"

	"nha/tensor"
)

// ggufFamily is an architecture of llama.cpp's that is one of Hugging Face's.
type ggufFamily struct {
	name      string // general.architecture, and the prefix of its keys
	modelType string
	class     string // Hugging Face's, in "architectures"
	permuted  bool   // the rows of q and k lie in llama.cpp's rotary order
	layer     map[string]string
}

// The names of a layer's tensors: blk.N.KEY is model.layers.N.VALUE. Experts' are given once for all experts of a layer.
var (
	ggufAttention = map[string]string{"attn_norm.weight": "input_layernorm.weight", "attn_q.weight": "self_attn.q_proj.weight",
		"attn_k.weight": "self_attn.k_proj.weight", "attn_v.weight": "self_attn.v_proj.weight", "attn_output.weight": "self_attn.o_proj.weight",
		"ffn_norm.weight": "post_attention_layernorm.weight"}
	ggufBiases = map[string]string{"attn_q.bias": "self_attn.q_proj.bias", "attn_k.bias": "self_attn.k_proj.bias", "attn_v.bias": "self_attn.v_proj.bias"}
	ggufNorms  = map[string]string{"attn_q_norm.weight": "self_attn.q_norm.weight", "attn_k_norm.weight": "self_attn.k_norm.weight"}
	ggufMLP    = map[string]string{"ffn_gate.weight": "mlp.gate_proj.weight", "ffn_up.weight": "mlp.up_proj.weight", "ffn_down.weight": "mlp.down_proj.weight"}
	ggufMore   = map[string]string{"attn_output.bias": "self_attn.o_proj.bias", "ffn_gate.bias": "mlp.gate_proj.bias", "ffn_up.bias": "mlp.up_proj.bias",
		"ffn_down.bias": "mlp.down_proj.bias"}
	ggufMoE = map[string]string{"ffn_gate_inp.weight": "mlp.gate.weight", "ffn_gate_exps.weight": "mlp.experts.*.gate_proj.weight",
		"ffn_up_exps.weight": "mlp.experts.*.up_proj.weight", "ffn_down_exps.weight": "mlp.experts.*.down_proj.weight"}
)

// ggufFamilies are the supported architectures. llama.cpp calls Mistral llama as well.
var ggufFamilies = []ggufFamily{
	{name: "llama", modelType: "llama", class: "LlamaForCausalLM", permuted: true, layer: union(ggufAttention, ggufBiases, ggufMLP, ggufMore)},
	{name: "qwen2", modelType: "qwen2", class: "Qwen2ForCausalLM", layer: union(ggufAttention, ggufBiases, ggufMLP)},
	{name: "qwen3", modelType: "qwen3", class: "Qwen3ForCausalLM", layer: union(ggufAttention, ggufNorms, ggufMLP)},
	{name: "qwen3moe", modelType: "qwen3_moe", class: "Qwen3MoeForCausalLM", layer: union(ggufAttention, ggufNorms, ggufMoE)},
}

// ggufModel are the names outside the layers.
var ggufModel = map[string]string{"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight", "output.weight": "lm_head.weight"}

const ropeFactorsName = "rope_freqs.weight"

func union(all ...map[string]string) map[string]string {
	u := map[string]string{}
	for _, m := range all {
		for k, v := range m {
			u[k] = v
		}
	}
	return u
}

func familyOf(values map[string]any) (*ggufFamily, error) {
	name, _ := values["general.architecture"].(string)
	var known []string
	for i, f := range ggufFamilies {
		if f.name == name {
			return &ggufFamilies[i], nil
		}
		known = append(known, f.name)
	}
	return nil, fmt.Errorf("general.architecture %.50q is not supported: %s are", name, strings.Join(known, ", "))
}

// rename fills in the entries from the file's own, by name.
func (g *GGUF) rename(own map[string]entry) error {
	for name, e := range own {
		if name == ropeFactorsName {
			g.factors = e
			continue
		}
		hf, ok := ggufModel[name]
		if !ok {
			if hf, ok = g.family.layerName(name); !ok {
				return fmt.Errorf("tensor %.100q is not part of architecture %s as it is known here", name, g.family.name)
			}
		}
		if before, after, many := strings.Cut(hf, "*"); many {
			if err := g.addExperts(name, before, after, e); err != nil {
				return err
			}
			continue
		}
		heads, err := g.permutedHeads(name, e)
		if err != nil {
			return err
		}
		g.entries[hf] = ggufEntry{entry: e, heads: heads}
	}
	return nil
}

// layerName turns blk.N.REST into model.layers.N.REST'.
func (f *ggufFamily) layerName(name string) (string, bool) {
	rest, ok := strings.CutPrefix(name, "blk.")
	number, key, ok2 := strings.Cut(rest, ".")
	layer, err := strconv.ParseUint(number, 10, 16)
	if !ok || !ok2 || err != nil || strconv.FormatUint(layer, 10) != number {
		return "", false
	}
	hf, ok := f.layer[key]
	return "model.layers." + number + "." + hf, ok
}

// addExperts makes a tensor per expert of the rank-3 tensor of a layer, each a part of its bytes.
func (g *GGUF) addExperts(name, before, after string, e entry) error {
	if e.shape.Rank() != 3 || e.shape.Dim(0) == 0 || e.from == e.to {
		return fmt.Errorf("tensor %.100q is %v: want [experts, rows, columns]", name, e.shape)
	}
	n := e.shape.Dim(0)
	if want, err := g.integer(g.family.name + ".expert_count"); err != nil || want != n {
		return fmt.Errorf("tensor %.100q holds %d experts, %s.expert_count says %d", name, n, g.family.name, want)
	}
	size := (e.to - e.from) / n
	for i := range n {
		g.entries[before+strconv.Itoa(i)+after] = ggufEntry{entry: entry{dtype: e.dtype, shape: tensor.Of(e.shape.Dim(1), e.shape.Dim(2)), from: e.from + i*size, to: e.from + (i+1)*size}}
	}
	return nil
}

// permutedHeads is the number of heads whose rows lie in llama.cpp's order in tensor name; 0 where there is nothing to undo.
func (g *GGUF) permutedHeads(name string, e entry) (int, error) {
	if !g.family.permuted {
		return 0, nil
	}
	_, key, _ := strings.Cut(strings.TrimPrefix(name, "blk."), ".")
	var heads int
	var err error
	switch key {
	case "attn_q.weight", "attn_q.bias":
		heads, _, err = g.headCounts()
	case "attn_k.weight", "attn_k.bias":
		_, heads, err = g.headCounts()
	default:
		return 0, nil
	}
	if err == nil && (e.shape.Rank() < 1 || e.shape.Rank() > 2 || e.from == e.to || e.shape.Dim(0)%(2*heads) != 0) {
		err = fmt.Errorf("tensor %.100q is %v: want two dimensions and a first that %d heads of even size make up", name, e.shape, heads)
	}
	if err == nil && e.shape.Rank() == 1 && e.dtype.Quantized() {
		err = fmt.Errorf("tensor %.100q is a vector of type %v: its elements cannot be told apart", name, e.dtype)
	}
	return heads, err
}
