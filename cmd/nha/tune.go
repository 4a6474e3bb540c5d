package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"nha/hybridize"
)

func newTune() *cobra.Command {
	o := hybridize.DefaultTuneOptions()
	var budget string
	var choices []string
	c := &cobra.Command{
		Use: "tune MODEL", Short: "Find the window of every layer under a budget",
		Long: "Tune measures what every layer loses at its smallest window, alone, and then which windows together lose least: loss on a text and recall\n" +
			"of pass keys (the mean probability of a key's next token). The result is a file that --windows @FILE takes wherever a model is loaded. What was measured is kept beside it,\n" +
			"so that a search that was stopped goes on.\n\n" +
			"Budgets: full=6 (layers with the whole context), bytes=8M@32768 (of state at a length), ms=12.5@32768 (a decoding step at a depth, by a\n" +
			"table that is measured once).",
		Example: "  nha tune hybrid --budget full=6 --data book.txt --out windows.toml\n" +
			"  nha tune transferred --base org/name --budget bytes=8M@32768 --choices 64,256,full --data book.txt --out windows.toml",
		Args: exactly("MODEL"),
		RunE: func(c *cobra.Command, args []string) (err error) {
			o.Model = args[0]
			if budget == "" || len(o.Data) == 0 {
				return usageError{errors.New("tune needs --budget and --data")}
			}
			if o.Budget, err = hybridize.ParseBudget(budget); err != nil {
				return usageError{fmt.Errorf("--%w", err)}
			}
			if o.Choices, err = windowList(choices); err != nil {
				return usageError{fmt.Errorf("--choices: %w", err)}
			}
			o.Backend, o.Threads = flags.backend, flags.threads
			p := newProgress()
			defer p.end()
			o.Notice = func(s string) { fmt.Fprintln(p, s) }
			if p.terminal {
				o.Progress = func(stage string, done, of int) { fmt.Fprintf(p, "\r%s: %d of %d ", stage, done, of) }
			}
			r, err := hybridize.Tune(c.Context(), o)
			if err != nil {
				return err
			}
			p.end()
			if flags.json {
				return printJSON(c, tuneResult(&o, r))
			}
			fmt.Fprintf(c.OutOrStdout(), "%s: %s\nloss %.4f (every layer full %.4f), recall %.3f (%.3f), cost %.6g of %.6g\n", o.Out, r.Windows, r.Quality.Loss, r.Full.Loss, r.Quality.Recall,
				r.Full.Recall, r.Cost, o.Budget.Limit)
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&budget, "budget", "", "what the windows may cost: full=6, bytes=8M@32768 or ms=12.5@32768")
	f.StringVar(&o.Base, "base", "", "the base of the model: layers are measured with its attention where their window is not the model's own")
	f.StringSliceVar(&o.Data, "data", nil, "text whose loss is measured")
	f.StringVar(&o.Out, "out", "windows.toml", "file for the windows")
	f.BoolVar(&o.Apply, "apply", false, "write the windows into the model's config.json")
	f.StringSliceVar(&choices, "choices", []string{"64", "full"}, "windows that a layer may have")
	f.IntVar(&o.Context, "context", o.Context, "tokens of a row of text")
	f.IntVar(&o.Rows, "rows", o.Rows, "rows of text")
	f.IntVar(&o.RecallLength, "recall-length", o.RecallLength, "tokens of a pass key's text; 0: recall is not measured")
	f.IntVar(&o.RecallCount, "recall-count", o.RecallCount, "texts with a pass key")
	f.Float64Var(&o.RecallWeight, "recall-weight", o.RecallWeight, "nats that losing all recall is worth")
	f.StringVar(&o.Haystack, "haystack", "", "text that hides pass keys; without it a built-in essay")
	f.IntVar(&o.Exchanges, "exchanges", o.Exchanges, "joint choices to measure at most")
	f.IntSliceVar(&o.Pareto, "pareto", nil, "draw quality against bytes for so many full layers, such as 0,1,2,3,4,6,8")
	f.IntVar(&o.Randoms, "random", o.Randoms, "random placements for each of them")
	f.Uint64Var(&o.Seed, "seed", o.Seed, "of the text's rows, pass keys and random placements")
	return jsonFlag(c)
}

func tuneResult(o *hybridize.TuneOptions, r *hybridize.Tuned) map[string]any {
	return map[string]any{"model": o.Model, "windows": r.Windows, "loss": r.Quality.Loss, "recall": r.Quality.Recall, "full_loss": r.Full.Loss, "full_recall": r.Full.Recall, "cost": r.Cost,
		"budget": o.Budget.Limit, "sensitivity": r.Sensitivity, "points": r.Points}
}

// windowsFromFile replaces a --windows @FILE by the pattern in that file, which nha tune wrote.
func windowsFromFile(c *cobra.Command) error {
	f := c.Flags().Lookup("windows")
	if f == nil || len(f.Value.String()) < 2 || f.Value.String()[0] != '@' {
		return nil
	}
	name := f.Value.String()[1:]
	windows, err := hybridize.ReadWindows(name)
	if err != nil {
		return fmt.Errorf("--windows: %w", err)
	}
	return f.Value.Set(windows)
}
