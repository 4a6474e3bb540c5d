package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"nha/hybridize"
	"nha/train"
)

func newHybridize() *cobra.Command {
	var o hybridize.Options
	var file string
	var data []string
	given := hybridize.DefaultRecipe()
	c := &cobra.Command{
		Use: "hybridize BASE", Short: "Turn a pretrained model into an NHA model",
		Long: "Hybridize gives every layer of a pretrained model slots with a gate, and windows as told, keeps its weights, and writes a directory that\n" +
			"all verbs read. With --data it then trains: first every layer's attention on the base's own layer inputs, then the whole on\n" +
			"the base's predictions. --from goes on from an earlier conversion, so that attention is transferred once and placements of full layers are\n" +
			"tried from there. A recipe file (--config) says all of that in detail; BASE and the other flags override it. Ctrl-C saves and stops;\n" +
			"the same command goes on. A report (report.md, report.json, charts) stands beside the model.",
		Example: "  nha hybridize org/name --windows '4*64 full' --out hybrid\n" +
			"  nha hybridize model.gguf --windows 64 --data books/ --dtype bf16 --out hybrid\n" +
			"  nha hybridize org/name --from probe --windows @windows.toml --data books/ --out hybrid\n" +
			"  nha hybridize org/name --config recipe.toml --windows @windows.toml --out hybrid --tasks passkey,lambada_openai --task-data datasets",
		Args: exactly("BASE"),
		RunE: func(c *cobra.Command, args []string) error {
			if o.Out == "" {
				return usageError{errors.New("hybridize needs --out")}
			}
			o.Recipe = given
			if file != "" {
				var err error
				if o.Recipe, err = hybridize.ReadRecipe(file); err != nil {
					return err
				}
			}
			o.Base = args[0]
			for name, set := range map[string]func(){
				"from": func() { o.From = given.From }, "windows": func() { o.Windows = given.Windows }, "slots": func() { o.Slots = given.Slots }, "gates": func() { o.Gates = given.Gates },
				"seed": func() { o.Seed = given.Seed }, "context": func() { o.Context = given.Context }, "batch": func() { o.Batch = given.Batch },
				"validation": func() { o.Validation = given.Validation }, "dtype": func() { o.DType = given.DType },
				"data": func() { o.Data = []hybridize.Data{{Files: data}} },
			} {
				if c.Flags().Changed(name) {
					set()
				}
			}
			switch {
			case file == "" && len(data) == 0:
				o.Stages = nil
			case file == "" && o.From != "": // attention has been transferred there
				o.Stages = o.Stages[1:]
			}
			if d, ok := convertTypes[o.DType]; ok && o.DType != "" {
				o.DType = d.String()
			}
			if err := o.Check(); err != nil && file == "" {
				return usageError{err}
			}
			o.Backend, o.Threads, o.Command = flags.backend, flags.threads, commandLine()
			p := newProgress()
			defer p.end()
			o.Reporter = &train.Text{W: p, Terminal: p.terminal}
			r, err := hybridize.Run(c.Context(), o)
			if err != nil {
				return err
			}
			p.end()
			if flags.json {
				return json.NewEncoder(c.OutOrStdout()).Encode(r)
			}
			last := r.Stages[len(r.Stages)-1]
			fmt.Fprintf(c.OutOrStdout(), "%s: windows %s, %d slots; KL to the base %.4f, perplexity %.3f (the base %.3f) on %s; trained for %v. See %s/report.md\n", o.Out, r.Windows, r.Slots, last.KL,
				last.Perplexity, r.BasePerplexity, r.MeasuredOn,
				(time.Duration(r.Seconds * float64(time.Second))).Round(time.Second), o.Out)
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&file, "config", "", "a TOML recipe")
	f.StringVar(&o.Out, "out", "", "directory of the hybrid")
	f.BoolVar(&o.Force, "force", false, "replace the model that --out holds")
	f.StringVar(&given.From, "from", "", "go on from this conversion of BASE; layers with another window than there begin with the base's attention")
	f.StringVar(&given.Windows, "windows", given.Windows, "window of every layer: 64, full, a pattern such as '4*64 full', or @FILE of nha tune")
	f.IntVar(&given.Slots, "slots", given.Slots, "memory slots of every kv head; 0: none, windows alone")
	f.StringVar(&given.Gates, "gates", given.Gates, "how gates start: spread (of time scales), keys (from the key projection), random")
	f.StringVar(&given.DType, "dtype", "", "of the weights written: f32, f16, bf16 (default: as the base has them, f32 from a GGUF file)")
	f.StringSliceVar(&data, "data", nil, "text to train on: files, folders, patterns (.txt, .jsonl, .parquet; .gz, .zst)")
	f.StringSliceVar(&given.Validation, "validation", nil, "text to validate on; without it a part of the data is held out")
	f.IntVar(&given.Context, "context", given.Context, "tokens of a row")
	f.IntVar(&given.Batch, "batch", given.Batch, "rows of a batch")
	f.Uint64Var(&given.Seed, "seed", given.Seed, "of the order of the text and of random gates")
	f.StringSliceVar(&o.Tasks, "tasks", nil, "measure these tasks of nha eval on the base and on the hybrid, for the report")
	f.StringVar(&o.TaskData, "task-data", "", "folder with the tasks' datasets")
	f.IntVar(&o.Limit, "limit", 0, "documents of a task; 0: all")
	f.StringVar(&o.Haystack, "haystack", "", "text that hides pass keys; without it a built-in essay")
	return jsonFlag(c)
}

// commandLine is how this program was called, to be copied into a shell.
func commandLine() string {
	words := []string{"nha"}
	for _, a := range os.Args[1:] {
		words = append(words, quoted(a))
	}
	return strings.Join(words, " ")
}

// quoted is a word as a shell reads it.
func quoted(word string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:=,@%+"
	if word != "" && strings.Trim(word, plain) == "" {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}
