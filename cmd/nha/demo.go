package main

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"nha/backend"
	"nha/demo"
)

func newDemo() *cobra.Command {
	var o demo.Options
	c := &cobra.Command{
		Use: "demo", Short: "Train NHA, GSA, sliding-window and Transformer models here and see who can recall, and read what one writes",
		Example: "  nha demo\n  nha demo --out /tmp/nha-demo --seed 2",
		Args:    exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			if o.RecallSteps < 0 || o.TextSteps < 0 {
				return usageError{fmt.Errorf("--recall-steps %d, --text-steps %d: must be at least 1, or 0 for the default", o.RecallSteps, o.TextSteps)}
			}
			if o.Backend, o.Threads = flags.backend, flags.threads; o.Backend == backend.Auto {
				o.Backend = "cpu" // whose numbers the documents show
			}
			var tables io.Writer = c.OutOrStdout()
			if flags.json {
				tables = os.Stderr
			}
			progress := newProgress()
			defer progress.end()
			r, err := demo.Run(c.Context(), o, tables, progress, progress.terminal)
			if err != nil {
				return err
			}
			if flags.json {
				return printJSON(c, r)
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&o.Out, "out", "nha-demo", "folder for the pictures, numbers and models")
	f.Uint64Var(&o.Seed, "seed", 1, "of models, tasks and samples; the same seed gives the same numbers")
	f.IntVar(&o.RecallSteps, "recall-steps", 0, "training steps of each recall model (default 700)")
	f.IntVar(&o.TextSteps, "text-steps", 0, "training steps of the language model (default 300)")
	return jsonFlag(c)
}
