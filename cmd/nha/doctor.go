package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"nha/backend"
	"nha/doctor"
)

func newDoctor() *cobra.Command {
	var vectors, golden, tokenizer, cases string
	c := &cobra.Command{
		Use: "doctor", Short: "Say what this machine offers, and check every backend against independent truth",
		Example: "  nha doctor\n  nha doctor --vectors testdata/vectors\n  nha doctor --golden testdata/golden --json\n  nha doctor --tokenizer model.gguf --cases cases.jsonl.gz",
		Args:    exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			if (tokenizer == "") != (cases == "") {
				return usageError{errors.New("doctor needs --tokenizer and --cases together")}
			}
			if tokenizer != "" {
				if err := checkTokenizer(c, tokenizer, cases); err != nil {
					return err
				}
				if vectors == "" && golden == "" {
					return nil
				}
			}
			if vectors == "" && golden == "" {
				return printMachine(c)
			}
			backends, err := allBackends()
			if err != nil {
				return err
			}
			lines, wrong, first := 0, 0, ""
			report := func(l doctor.Line) {
				if !l.OK && first == "" {
					first = fmt.Sprintf("%s of %s on %s", l.Tensor, l.Case, l.Backend)
				}
				if lines++; flags.json {
					_ = printJSON(c, l) // a closed pipe ends the program anyway
				} else {
					fmt.Fprintln(c.OutOrStdout(), l)
				}
			}
			for _, check := range []struct {
				dir string
				run func(string, []backend.Backend, func(doctor.Line)) (int, error)
			}{{vectors, doctor.Vectors}, {golden, doctor.Golden}} {
				if check.dir == "" {
					continue
				}
				n, err := check.run(check.dir, backends, report)
				if wrong += n; err != nil {
					return err
				}
			}
			if wrong > 0 {
				return fmt.Errorf("%d of %d tensors are outside their limits, first %s", wrong, lines, first)
			}
			if !flags.json {
				fmt.Fprintf(c.OutOrStdout(), "all %d tensors within their limits\n", lines)
			}
			return nil
		},
	}
	c.Flags().StringVar(&vectors, "vectors", "", "recompute every *.safetensors of this folder of operator vectors")
	c.Flags().StringVar(&golden, "golden", "", "recompute this model directory with expected.safetensors and expected.json, or a folder of some")
	c.Flags().StringVar(&tokenizer, "tokenizer", "", "hold this tokenizer.json, its folder or a GGUF against --cases")
	c.Flags().StringVar(&cases, "cases", "", `lines {"text", "ids", "decoded"}, plain or .gz, from another program`)
	return jsonFlag(c)
}

func printMachine(c *cobra.Command) error {
	for _, f := range doctor.Machine() {
		if flags.json {
			if err := printJSON(c, f); err != nil {
				return err
			}
			continue
		}
		fmt.Fprintln(c.OutOrStdout(), f)
	}
	return nil
}

// allBackends is the backend of --backend, or with auto every one that opens here.
func allBackends() ([]backend.Backend, error) {
	if flags.backend != "auto" {
		b, err := openBackend()
		return []backend.Backend{b}, err
	}
	var list []backend.Backend
	for _, name := range backend.Names() {
		if b, err := backend.Open(name, flags.threads); err == nil { // doctor without a check says why one does not open
			list = append(list, b)
		}
	}
	return list, nil
}
