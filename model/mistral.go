package model

import "nha/attention"

// Mistral: Llama's block with one sliding window for all layers. The library counts the current token in it, as W does; null
// is full attention, an absent key is 4096.
func init() {
	register(&family{modelType: "mistral", architecture: "MistralForCausalLM", keys: huggingFaceKeys, tensors: huggingFaceTensors, parse: parsePretrained,
		context: 131072, own: func(c *Config, k *fields, layers int) error {
			window, ok := readSlidingWindow(k, 4096)
			if !ok {
				window = attention.Full
			}
			return c.uniform(k, layers, window)
		}})
}
