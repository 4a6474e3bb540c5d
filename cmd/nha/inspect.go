package main

import (
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"nha/model"
)

func newInspect() *cobra.Command {
	var windows string
	var context int
	c := &cobra.Command{
		Use: "inspect MODEL", Short: "Say what a model is made of, what a token costs and how many bytes its memory takes",
		Example: "  nha inspect runs/small\n  nha inspect SmolLM2-135M-Instruct.Q4_0.gguf\n  nha inspect runs/small --windows '3*32 full' --context 32768 --json",
		Args:    exactly("MODEL"),
		RunE: func(c *cobra.Command, args []string) error {
			path, err := model.Find(args[0])
			if err != nil {
				return err
			}
			cfg, err := model.ReadConfig(path)
			if err != nil {
				return err
			}
			if windows != "" {
				if err := cfg.ApplyWindows(windows); err != nil {
					return usageError{fmt.Errorf("--windows: %w", err)}
				}
			}
			if context < 1 {
				return usageError{fmt.Errorf("--context %d: must be at least 1", context)}
			}
			if err := model.CheckWeights(path, &cfg); err != nil {
				return err
			}
			a := cfg.Account(context)
			if flags.json {
				return printJSON(c, map[string]any{"model": args[0], "model_type": cfg.ModelType, "parameters": a.Parameters,
					"active_parameters": a.ActiveParameters, "trained_context": cfg.TrainedContext(),
					"embedding_parameters": a.EmbeddingParameters, "layers": cfg.NumHiddenLayers, "hidden_size": cfg.HiddenSize,
					"num_heads": cfg.NumHeads, "num_kv_heads": cfg.NumKVHeads, "head_dim": cfg.HeadDim, "num_slots": cfg.NumSlots,
					"windows": cfg.LayerWindows, "empty_slots": cfg.EmptySlots, "vocab_size": cfg.VocabSize, "context": context,
					"flops_per_token": a.FLOPsPerToken, "state_bytes": a.StateBytes, "kv_bytes": a.KVBytes, "layer_state_bytes": a.LayerStateBytes,
					"multiply_adds": a.MultiplyAdds, "operator_bytes": a.OperatorBytes})
			}
			out := func(name, value string) { fmt.Fprintf(c.OutOrStdout(), "%-24s %s\n", name, value) }
			out("model", fmt.Sprintf("%s, %d layers, hidden %d, vocabulary %d", cfg.ModelType, cfg.NumHiddenLayers, cfg.HiddenSize, cfg.VocabSize))
			out("heads", fmt.Sprintf("%d query, %d key/value, of %d", cfg.NumHeads, cfg.NumKVHeads, cfg.HeadDim))
			out("slots, windows", fmt.Sprintf("%d, %s (empty slots: %s)", cfg.NumSlots, cfg.LayerWindows, cfg.EmptySlots))
			if e := cfg.Experts; e.Count > 0 {
				out("experts", fmt.Sprintf("%d of %d for every token, in %d layers of %d", e.TopK, e.Count, cfg.NumHiddenLayers-len(e.DenseLayers), cfg.NumHiddenLayers))
				out("active parameters", grouped(a.ActiveParameters))
			}
			if n := cfg.TrainedContext(); n > 0 {
				out("positions", fmt.Sprintf("rotary, trained for %s tokens", grouped(n)))
			}
			out("parameters", fmt.Sprintf("%s, of them %s in embedding and head", grouped(a.Parameters), grouped(a.EmbeddingParameters)))
			out("FLOPs per token", grouped(a.FLOPsPerToken)+" forward")
			out("of them in the operator", grouped(2*a.MultiplyAdds)+" (2 x multiply-adds W(K+V) + M(K+V) a query head, M(K+V) a kv head)")
			out("operator bytes", grouped(a.OperatorBytes)+" a token in training's forward: q, k, v, z read, o written, float32")
			out(fmt.Sprintf("state at %d tokens", context), fmt.Sprintf("%s bytes a sequence, float32", grouped(a.StateBytes)))
			out("a Transformer's KV cache", fmt.Sprintf("%s bytes, %.1f times as much", grouped(a.KVBytes), float64(a.KVBytes)/float64(max(1, a.StateBytes))))
			return nil
		},
	}
	c.Flags().StringVar(&windows, "windows", "", "count for these windows instead of the model's, such as '7*64 full'")
	c.Flags().IntVar(&context, "context", 32768, "count memory and work at this many tokens")
	return jsonFlag(c)
}

// grouped writes 1234567 as 1,234,567.
func grouped(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
