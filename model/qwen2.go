package model

// Qwen2 and Qwen2.5: Llama's block with biases on q, k and v, and windows layer by layer.
func init() {
	register(&family{modelType: "qwen2", architecture: "Qwen2ForCausalLM", keys: huggingFaceKeys, tensors: huggingFaceTensors, parse: parsePretrained,
		context: 32768, own: func(c *Config, k *fields, layers int) error {
			c.QKVBias = true
			return c.readAlternating(k, layers)
		}})
}
