package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"nha/train"
)

func newTrain() *cobra.Command {
	var file, resume string
	values := map[string]*option{}
	c := &cobra.Command{
		Use: "train", Short: "Train a language model on text",
		Long: "Train makes a run directory: checkpoints (Hugging Face directories with the optimiser's state), metrics.jsonl, loss.svg, loss.png,\n" +
			"run.toml with every option, and at the end the model itself. Ctrl-C saves and stops; --resume goes on to the same bits.\n" +
			"Every flag but --config and --resume is a key of the run file (learning_rate = 1e-3); flags override the file.",
		Example: "  nha train --data books/ --out runs/small\n  nha train --data books.jsonl.zst --tokenizer tok --preset nha --steps 2000 --out runs/nha\n" +
			"  nha train --resume runs/nha\n  nha train --config run.toml --seed 2 --out runs/second",
		Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			o, err := trainOptions(c, file, resume, values)
			if err != nil {
				return err
			}
			progress := newProgress()
			defer progress.end()
			var r train.Reporter = &train.Text{W: progress, Terminal: progress.terminal}
			if flags.json {
				r = jsonReporter{Reporter: r, encoder: json.NewEncoder(c.OutOrStdout())}
			}
			result, err := train.Run(c.Context(), o, r)
			if err != nil {
				return err
			}
			fmt.Fprintf(os.Stderr, "%s: %d steps, %d tokens in %v; write with it: nha generate %s --prompt ...\n", result.Dir, result.Steps, result.Tokens,
				result.Elapsed.Round(time.Second), result.Dir)
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&file, "config", "", "a TOML run file with the keys below")
	f.StringVar(&resume, "resume", "", "go on with the run in this directory")
	for _, k := range train.Keys() {
		if k.Name == "backend" || k.Name == "threads" {
			continue // every verb has them
		}
		v := newOption(k)
		if values[k.Name] = v; v.kind == "bool" {
			f.VarPF(v, flagName(k.Name), "", k.Help).NoOptDefVal = "true"
			continue
		}
		f.Var(v, flagName(k.Name), k.Help)
	}
	return jsonFlag(c)
}

func flagName(key string) string { return strings.ReplaceAll(key, "_", "-") }

// option is the flag of a key of the run file: a text that train.Options.Set reads, and what help calls it.
type option struct{ text, kind string }

func newOption(k train.Key) *option {
	kind := "text"
	if _, err := strconv.ParseBool(k.Default); err == nil && len(k.Default) > 1 {
		kind = "bool"
	} else if _, err := strconv.ParseFloat(k.Default, 64); err == nil {
		kind = "number"
	}
	return &option{text: k.Default, kind: kind}
}

func (o *option) String() string     { return o.text }
func (o *option) Set(s string) error { o.text = s; return nil }
func (o *option) Type() string       { return o.kind }

// trainOptions are the defaults, then the run file or the run to resume, then the flags.
func trainOptions(c *cobra.Command, file, resume string, values map[string]*option) (o train.Options, err error) {
	switch {
	case file != "" && resume != "":
		return o, usageError{errors.New("--config and --resume: a resumed run has its own run file; give one of them")}
	case file != "":
		o, err = train.ReadOptions(file)
	case resume != "":
		o, err = train.ResumeOptions(resume)
	default:
		o = train.DefaultOptions()
	}
	if err != nil {
		return o, err
	}
	for _, k := range train.Keys() {
		if v, ok := values[k.Name]; ok && c.Flags().Changed(flagName(k.Name)) {
			if err := o.Set(k.Name, v.text); err != nil {
				return o, usageError{fmt.Errorf("--%s: %w", flagName(k.Name), err)}
			}
		}
	}
	if c.Flags().Changed("threads") {
		o.Threads = flags.threads
	}
	if c.Flags().Changed("backend") {
		o.Backend = flags.backend
	}
	if o.Out == "" || len(o.Data) == 0 {
		return o, usageError{errors.New("train needs --data and --out, on the command line or in the run file, or --resume")}
	}
	if err = o.Resolve(); err != nil && file == "" && resume == "" {
		err = usageError{err} // every value is from the command line
	}
	return o, err
}

// jsonReporter prints the lines of metrics.jsonl on standard output as they come.
type jsonReporter struct {
	train.Reporter
	encoder *json.Encoder
}

func (r jsonReporter) Step(s train.Report) {
	if r.Reporter.Step(s); s.Logged {
		_ = r.encoder.Encode(s.Line) // a closed pipe ends the program anyway
	}
}
