package model

// Qwen3: an RMSNorm over each head of q and k before RoPE, heads of 128 unless given, biases by option, windows layer by layer.
func init() {
	register(&family{modelType: "qwen3", architecture: "Qwen3ForCausalLM", keys: huggingFaceKeys, tensors: huggingFaceTensors, parse: parsePretrained,
		context: 32768, own: func(c *Config, k *fields, layers int) error {
			if c.HeadDim == 0 {
				c.HeadDim = 128
			}
			c.readQwen3Attention(k)
			return c.readAlternating(k, layers)
		}})
}

func (c *Config) readQwen3Attention(k *fields) {
	c.QKNorm = true
	k.read("attention_bias", &c.QKVBias)
	c.OutputBias = c.QKVBias
}
