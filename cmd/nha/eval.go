package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"nha/atomicfile"
	"nha/eval"
	"nha/model"
)

// evalOptions are the flags of eval beside what eval.Options holds.
type evalOptions struct {
	eval.Options
	windows, samples, output, format, export, where string
	noResume                                        bool
}

func newEval() *cobra.Command {
	var o evalOptions
	c := &cobra.Command{
		Use: "eval MODEL...", Short: "Measure models on the field's tasks",
		Long: "Eval gives the numbers that lm-evaluation-harness, the recall tasks of prefix-linear-attention and RULER give. Datasets are read as they\n" +
			"are published from the folder --data; --where TASK says which files that takes. Groups (commonsense, recall, ruler) stand for their tasks\n" +
			"and give their average. An evaluation that was interrupted goes on where it stopped when it is started again.\n\n" +
			"Tasks: " + strings.Join(eval.Names(), ", ") + ".",
		Example: "  nha eval runs/small --tasks lambada_openai,arc_easy --data datasets\n" +
			"  nha eval base tuned --tasks commonsense --data datasets --format csv\n" +
			"  nha eval runs/small --tasks ruler --lengths 4096,8192 --limit 50\n" +
			"  nha eval runs/small --tasks text,share --data book.txt --context 8192 --output results\n" +
			"  nha eval --where hellaswag",
		Args: func(c *cobra.Command, args []string) error {
			if o.where != "" {
				return exactly()(c, args)
			}
			if len(args) == 0 {
				return usageError{errors.New("nha eval takes one MODEL or more, got none")}
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error { return runEval(c, args, o) },
	}
	f := c.Flags()
	f.StringSliceVar(&o.Tasks, "tasks", nil, "tasks and groups, such as commonsense,text")
	f.StringVar(&o.Data, "data", "", "folder with the datasets' files, or the one file that is wanted")
	f.IntVar(&o.Limit, "limit", 0, "documents of a task, at each length; 0: all")
	f.StringVar(&o.windows, "windows", "", "windows instead of the model's, such as '7*64 full'")
	f.IntVar(&o.Context, "context", 0, "tokens that the model reads at most; 0: the model's max_position_embeddings")
	f.IntVar(&o.Stride, "stride", 0, "of task text: windows move on by so many tokens; 0: disjoint")
	f.IntSliceVar(&o.Lengths, "lengths", nil, "tokens of recall, ruler and passkey documents, in place of the tasks' own")
	f.Uint64Var(&o.Seed, "seed", 42, "of generated samples")
	f.StringVar(&o.Haystack, "haystack", "", "text that hides needles and pass keys; without it a built-in essay")
	f.IntVar(&o.BatchTokens, "batch-tokens", 0, "tokens of a forward; 0: chosen by the backend")
	f.StringVar(&o.samples, "samples", "", "write every document with the model's answers to this JSONL file")
	f.StringVar(&o.output, "output", "", "write lm-evaluation-harness' result file, and curves, below this folder")
	f.StringVar(&o.format, "format", "markdown", "of the table: "+strings.Join(eval.Formats, ", "))
	f.StringVar(&o.export, "export", "", "write the documents and their requests to this JSONL file and ask nothing")
	f.StringVar(&o.where, "where", "", "say which files this task or group wants and where they are to be had")
	f.BoolVar(&o.noResume, "no-resume", false, "do not keep answers for an evaluation that is interrupted")
	return jsonFlag(c)
}

func runEval(c *cobra.Command, models []string, o evalOptions) error {
	if o.where != "" {
		tasks, err := eval.Select(strings.Split(o.where, ","))
		if err != nil {
			return usageError{fmt.Errorf("--where: %w", err)}
		}
		for _, t := range tasks {
			fmt.Fprint(c.OutOrStdout(), t.Where())
		}
		return nil
	}
	if _, err := eval.Select(o.Tasks); err != nil {
		return usageError{fmt.Errorf("--tasks: %w", err)}
	}
	if !slices.Contains(eval.Formats, o.format) {
		return usageError{fmt.Errorf("--format %s: choose one of %s", o.format, strings.Join(eval.Formats, ", "))}
	}
	if !o.noResume {
		if user, err := os.UserCacheDir(); err == nil {
			o.Cache = filepath.Join(user, "nha", "eval")
		}
	}
	b, err := openBackend()
	if err != nil {
		return err
	}
	defer b.Close()
	p := newProgress()
	o.Progress = func(x eval.Progress) { evalProgress(p, x) }
	var reports []*eval.Report
	var samples []eval.Sample
	o.Sample = func(s eval.Sample) error {
		if o.samples != "" {
			samples = append(samples, s)
		}
		return nil
	}
	for _, name := range models {
		r, err := evalModel(c.Context(), name, &o, func(path string) (*model.Model, error) {
			return model.Load(path, b, model.LoadOptions{Windows: o.windows})
		})
		p.end()
		if err != nil {
			if errors.Is(err, context.Canceled) && o.Cache != "" {
				return errors.New("interrupted: what was answered is kept, the same command goes on from here")
			}
			return err
		}
		if r == nil {
			continue // exported
		}
		reports = append(reports, r)
		if o.output != "" {
			path, err := r.Write(o.output)
			if err != nil {
				return err
			}
			fmt.Fprintln(os.Stderr, "written:", path)
		}
	}
	if o.samples != "" && o.export == "" {
		err := atomicfile.WriteFile(o.samples, 0o644, func(w io.Writer) error {
			e := json.NewEncoder(w)
			e.SetEscapeHTML(false)
			for _, s := range samples {
				if err := e.Encode(s); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	switch {
	case len(reports) == 0:
		return nil
	case flags.json:
		for _, r := range reports {
			for _, l := range r.Lines() {
				if err := printJSON(c, l); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return eval.WriteTable(c.OutOrStdout(), o.format, reports)
}

// evalModel measures one model, or exports what it would be asked.
func evalModel(ctx context.Context, name string, o *evalOptions, load func(path string) (*model.Model, error)) (*eval.Report, error) {
	path, err := model.Find(name)
	if err != nil {
		return nil, err
	}
	m, err := load(path)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	tk, err := loadTokenizer(path)
	if err != nil {
		return nil, err
	}
	if err := m.Config.CheckTokenizer(tk.VocabSize()); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if o.export == "" {
		return eval.Run(ctx, m, tk, name, o.Options)
	}
	return nil, atomicfile.WriteFile(o.export, 0o644, func(w io.Writer) error { return eval.Export(ctx, m, tk, w, o.Options) })
}

// evalProgress is a bar with rate and time left, drawn over itself on a terminal; elsewhere there is one line a task.
func evalProgress(p *progress, x eval.Progress) {
	if !p.terminal && x.Done < x.Total {
		return
	}
	const width = 24
	full := width * x.Done / max(1, x.Total)
	line := fmt.Sprintf("%s (%d/%d)  [%s%s] %d%%  %d documents  %.0f tokens/s", x.Task, x.Index, x.Tasks, strings.Repeat("#", full), strings.Repeat(".", width-full),
		100*x.Done/max(1, x.Total), x.Documents, x.TokensPerS)
	if x.Done < x.Total {
		line += fmt.Sprintf("  %s left", x.Left.Round(time.Second))
	}
	if p.terminal {
		fmt.Fprintf(p, "\r%-110s", line)
	} else {
		fmt.Fprintln(p, line)
	}
	if x.Done == x.Total {
		p.end()
	}
}
