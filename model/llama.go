package model

import (
	"fmt"
	"slices"

	"nha/attention"
)

// Llama, and what is published as LlamaForCausalLM: every window full, biases by option (attention_bias: q, k, v and o).
func init() {
	register(&family{modelType: "llama", architecture: "LlamaForCausalLM", keys: huggingFaceKeys, tensors: huggingFaceTensors, parse: parsePretrained,
		context: 2048, own: func(c *Config, k *fields, layers int) error {
			k.read("attention_bias", &c.QKVBias)
			c.OutputBias = c.QKVBias
			k.read("mlp_bias", &c.MLPBias)
			return c.uniform(k, layers, attention.Full)
		}})
}

// uniform gives every layer one window; layer_types, which the library writes beside it, must say the same.
func (c *Config) uniform(k *fields, layers, window int) error {
	c.base = every(layers, window)
	types, err := readLayerTypes(k, layers, window)
	if err == nil && types != nil && !slices.Equal(types, c.base) {
		err = fmt.Errorf("layer_types: layers of different kinds are not supported in model_type %s", c.ModelType)
	}
	if err != nil {
		return err
	}
	return k.err
}
