package model

import (
	"fmt"
	"slices"
	"strings"

	"nha/attention"
)

// Qwen3-MoE: Qwen3's attention; where a layer is sparse its MLP is a mixture of experts. A router's softmax over the experts chooses
// num_experts_per_tok of them for every token, whose outputs are added with their probabilities, divided by their sum where
// norm_topk_prob is set. Sparse is every decoder_sparse_step-th layer but those in mlp_only_layers. One sliding window serves all layers.
func init() {
	register(&family{modelType: "qwen3_moe", architecture: "Qwen3MoeForCausalLM", keys: huggingFaceKeys, tensors: huggingFaceTensors, parse: parsePretrained,
		context: 32768, own: func(c *Config, k *fields, layers int) error {
			c.readQwen3Attention(k)
			if err := c.readExperts(k, layers); err != nil {
				return err
			}
			use, ignored := false, 0
			k.read("use_sliding_window", &use)
			k.read("max_window_layers", &ignored) // the library reads it in the dense Qwens alone
			window, ok := readSlidingWindow(k, 4096)
			if !use || !ok {
				window = attention.Full
			}
			return c.uniform(k, layers, window)
		}})
}

// Experts is a mixture of experts in the place of the MLP of sparse layers. The zero value is none.
type Experts struct {
	Count       int   `json:"num_experts"`
	TopK        int   `json:"num_experts_per_tok"`
	Size        int   `json:"moe_intermediate_size"`
	Normalize   bool  `json:"norm_topk_prob"`
	DenseLayers []int `json:"dense_layers"` // layers with a plain MLP
}

// In reports whether a layer has experts.
func (e *Experts) In(layer int) bool { return e.Count > 0 && !slices.Contains(e.DenseLayers, layer) }

func (e *Experts) check(layers int) error {
	const most = 1 << 20 // in all layers: a few numbers in a file must not ask for all memory
	switch {
	case e.Count == 0:
		return nil
	case e.Count < 0 || e.Count > most/layers:
		return fmt.Errorf("num_experts %d in %d layers: must be 0 to %d", e.Count, layers, most/layers)
	case e.TopK < 1 || e.TopK > e.Count:
		return fmt.Errorf("num_experts_per_tok %d: must be 1 to num_experts %d", e.TopK, e.Count)
	case e.Size < 1:
		return fmt.Errorf("moe_intermediate_size %d: must be at least 1", e.Size)
	}
	return nil
}

// ofExperts reports whether a tensor is a router or an expert's: those have no updates of low rank.
func (c *Config) ofExperts(name string) bool {
	return c.Experts.Count > 0 && (strings.Contains(name, ".mlp.experts.") || strings.HasSuffix(name, ".mlp.gate.weight"))
}

func (c *Config) readExperts(k *fields, layers int) error {
	e := &c.Experts
	step, local := 1, 0
	var list []int
	if !k.read("num_experts", &e.Count) {
		k.need("num_local_experts", &e.Count)
	} else if k.read("num_local_experts", &local) && local != e.Count {
		k.fail("num_experts %d and num_local_experts %d: they are two names of one number", e.Count, local)
	}
	k.need("num_experts_per_tok", &e.TopK)
	k.need("moe_intermediate_size", &e.Size)
	k.read("norm_topk_prob", &e.Normalize)
	k.read("decoder_sparse_step", &step)
	k.read("mlp_only_layers", &list)
	if step < 1 {
		k.fail("decoder_sparse_step %d: must be at least 1", step)
	}
	if k.err != nil {
		return k.err
	}
	dense := map[int]bool{}
	for _, i := range list {
		dense[i] = true
	}
	for i := range layers {
		if dense[i] || (i+1)%step != 0 {
			e.DenseLayers = append(e.DenseLayers, i)
		}
	}
	return nil
}
