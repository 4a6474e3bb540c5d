package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"nha/convert"
	"nha/hybridize"
	"nha/model"
	"nha/tensor"
	"nha/weights"
)

// writeModel converts a model, or applies an adapter to it.
func writeModel(name, dir, adapter string, o convert.Options) (convert.Result, error) {
	if adapter != "" {
		return hybridize.Apply(adapter, name, dir, o)
	}
	path, err := model.Find(name)
	if err != nil {
		return convert.Result{}, err
	}
	return convert.Model(path, dir, o)
}

// The words of --dtype and --quantize.
var (
	convertTypes = map[string]tensor.DType{"": tensor.Invalid, "f32": tensor.F32, "f16": tensor.F16, "bf16": tensor.BF16}
	blockTypes   = map[string]tensor.DType{"": tensor.Invalid, "q8": tensor.Q8_0, "q4": tensor.Q4_0}
)

func newConvert() *cobra.Command {
	var o convert.Options
	var dtype, blocks, adapter string
	c := &cobra.Command{
		Use: "convert MODEL DIR", Short: "Write a model anew: GGUF to a directory, other number types, quantised",
		Long: "Convert writes the model, a Hugging Face directory or a GGUF file, into a new directory, with its tokenizer and chat template.\n" +
			"A GGUF's vocabulary becomes the tokenizer.json of its model, or stays one in tokenizer.gguf where none gives the same ids.\n" +
			"Without --dtype and --quantize every tensor keeps its type, a GGUF file's blocks too: such a directory is for nha. With --dtype\n" +
			"the directory is for every program that reads Hugging Face's. --quantize stores matrices in blocks of 32 numbers with one\n" +
			"scale, Q8_0 or Q4_0; norms, biases and gates stay as they are.",
		Example: "  nha convert model.gguf model-f32 --dtype f32\n  nha convert org/name small --quantize q8\n  nha convert --merge hybrid/adapter org/name hybrid",
		Args:    exactly("MODEL", "DIR"),
		RunE: func(c *cobra.Command, args []string) error {
			var ok bool
			if o.DType, ok = convertTypes[dtype]; !ok {
				return usageError{fmt.Errorf("--dtype %s: choose one of f32, f16, bf16", dtype)}
			}
			if o.Quantize, ok = blockTypes[blocks]; !ok {
				return usageError{fmt.Errorf("--quantize %s: choose q8 or q4", blocks)}
			}
			if adapter != "" {
				if o.Quantize != tensor.Invalid {
					return usageError{fmt.Errorf("--merge and --quantize: merge first, then quantise what came of it")}
				}
			}
			o.Context = c.Context()
			started := time.Now()
			r, err := writeModel(args[0], args[1], adapter, o)
			if err != nil {
				return err
			}
			took := time.Since(started)
			if r.Kept != "" {
				fmt.Fprintf(c.ErrOrStderr(), "nha: the tokenizer lies in %s, which nha alone reads: %s\n", weights.VocabularyName, r.Kept)
			}
			if flags.json {
				return printJSON(c, map[string]any{"model": args[1], "tensors": r.Tensors, "quantized": r.Quantized, "bytes": r.Bytes, "seconds": took.Seconds()})
			}
			fmt.Fprintf(c.OutOrStdout(), "%s: %d tensors, %d of them in blocks, %.1f MB, in %v\n", args[1], r.Tensors, r.Quantized, float64(r.Bytes)/1e6, took.Round(10*time.Millisecond))
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&dtype, "dtype", "", "numbers of the tensors that are not quantised: f32, f16 or bf16 (default: as they are)")
	f.StringVar(&blocks, "quantize", "", "store matrices in blocks: q8 (Q8_0) or q4 (Q4_0)")
	f.StringVar(&adapter, "merge", "", "apply the adapter in this directory (adapter_config.json) to MODEL, its base")
	f.BoolVar(&o.Force, "force", false, "replace the model that DIR holds")
	return jsonFlag(c)
}
