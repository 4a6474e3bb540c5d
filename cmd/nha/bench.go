package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"nha/attention"
	"nha/backend"
	"nha/bench"
	"nha/model"
)

// measurement is what a verb under bench runs once its flags are read.
type measurement interface {
	Check() error
	Run(ctx context.Context, b backend.Backend, emit bench.Emit) error
}

func newBench() *cobra.Command {
	c := &cobra.Command{
		Use: "bench", Short: "Measure speed: matrix products, the operator, training, decoding, curves",
		Long: "Bench prints medians, one line for every combination of the sizes given. The environment variable NHA_CPU forces an\n" +
			"instruction set of the cpu backend.",
		Example: "  nha bench gemm\n  nha bench decode --model runs/small --json",
		Args:    noVerb,
		RunE:    func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(newBenchGEMM(), newBenchOperator(), newBenchTrain(), newBenchDecode(), newBenchPrefill(), newBenchCurves())
	return c
}

// measure checks, opens the backend and prints the rows as they come.
func measure(c *cobra.Command, m measurement, err error) error {
	return measureAll(c, []measurement{m}, "", err)
}

// measureAll measures one after the other, and prints the rows as they come or, with a format, as one table at the end.
func measureAll(c *cobra.Command, list []measurement, format string, err error) error {
	if err == nil && format != "" {
		err = checkFormat(format)
	}
	for _, m := range list {
		if err == nil {
			err = m.Check()
		}
	}
	if err != nil {
		return usageError{err}
	}
	b, err := openBackend()
	if err != nil {
		return err
	}
	defer b.Close()
	var table bench.Ranking
	emit := (&bench.Table{W: c.OutOrStdout()}).Row
	switch {
	case flags.json:
		emit = func(row any) error { return printJSON(c, row) }
	case format != "":
		emit = table.Row
	}
	for _, m := range list {
		if err := m.Run(c.Context(), b, emit); err != nil {
			return err
		}
	}
	if flags.json {
		return nil
	}
	return table.Write(c.OutOrStdout(), format)
}

// checkFormat refuses what bench.Ranking does not write.
func checkFormat(format string) error {
	if !slices.Contains(bench.Formats, format) {
		return fmt.Errorf("--format %s: choose one of %s", format, strings.Join(bench.Formats, ", "))
	}
	return nil
}

// comparison are the flags of a verb that measures several models and gives one table.
type comparison struct {
	models       []string
	size, format string
}

func (k *comparison) flags(f *pflag.FlagSet) {
	f.StringSliceVar(&k.models, "model", []string{"nha"}, "presets (nha, gsa, window, transformer) with random weights, or models; they may also follow the verb")
	f.StringVar(&k.format, "format", "", "one table at the end, sorted, the best in bold: "+strings.Join(bench.Formats, ", ")+"; empty: rows as they come, markdown for several models")
}

// measure makes a measurement of every model.
func (k *comparison) measure(c *cobra.Command, args []string, s bench.ModelSize, of func(model string, s bench.ModelSize) measurement) error {
	var err error
	if len(args) > 0 {
		if c.Flags().Changed("model") {
			err = errors.New("give the models after the verb or with --model, not both")
		}
		k.models = args
	}
	if len(k.models) > 1 && k.format == "" {
		k.format = bench.Formats[0]
	}
	var list []measurement
	for _, name := range k.models {
		shape := s
		if bad := sizeOf(c, &shape, k.size, name); err == nil {
			err = bad
		}
		path := name
		if !bench.IsPreset(name) && err == nil { // org/name of the cache
			if found, bad := model.Find(name); bad == nil {
				path = found
			}
		}
		list = append(list, of(path, shape))
	}
	return measureAll(c, list, k.format, err)
}

func timingFlag(f *pflag.FlagSet, t *bench.Timing) {
	f.Float64Var(&t.Seconds, "seconds", 1, "measure every figure so long, and five times; at most five times as long")
}

func newBenchGEMM() *cobra.Command {
	var o bench.GEMM
	var ops, shapes []string
	var m, n, k []int
	c := &cobra.Command{
		Use: "gemm", Short: "Matrix products: GFLOP/s",
		Example: "  nha bench gemm\n  nha bench gemm --op nt --m 1,8,2048 --n 512 --k 512 --json\n  nha bench gemm --op nn,nt,tn --shapes 2048x704x256,2048x256x704",
		Args:    exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			err := gemmShapes(&o, ops, shapes, m, n, k)
			return measure(c, &o, err)
		},
	}
	f := c.Flags()
	f.StringSliceVar(&ops, "op", []string{"nn"}, "transpositions: nn, nt, tn")
	f.StringSliceVar(&shapes, "shapes", nil, "products as MxNxK; without these and --m, --n, --k cubes of 256, 512, 1024 and 2048")
	f.IntSliceVar(&m, "m", nil, "rows of C; every combination with --n and --k")
	f.IntSliceVar(&n, "n", nil, "columns of C")
	f.IntSliceVar(&k, "k", nil, "inner size")
	timingFlag(f, &o.Timing)
	return jsonFlag(c)
}

// gemmShapes fills o from the flags.
func gemmShapes(o *bench.GEMM, ops, shapes []string, m, n, k []int) error {
	for _, s := range ops {
		op, err := bench.ParseOp(s)
		if err != nil {
			return fmt.Errorf("--op: %w", err)
		}
		o.Ops = append(o.Ops, op)
	}
	for _, s := range shapes {
		shape, err := bench.ParseShape(s)
		if err != nil {
			return fmt.Errorf("--shapes: %w", err)
		}
		o.Shapes = append(o.Shapes, shape)
	}
	given := 0
	for _, list := range [][]int{m, n, k} {
		if len(list) > 0 {
			given++
		}
	}
	switch {
	case given == 0 && len(shapes) == 0:
		for _, edge := range []int{256, 512, 1024, 2048} {
			o.Shapes = append(o.Shapes, bench.Shape{M: edge, N: edge, K: edge})
		}
	case given == 3:
		for _, m := range m {
			for _, n := range n {
				for _, k := range k {
					o.Shapes = append(o.Shapes, bench.Shape{M: m, N: n, K: k})
				}
			}
		}
	case given > 0:
		return fmt.Errorf("--m, --n, --k: give all three or none")
	}
	return nil
}

func newBenchOperator() *cobra.Command {
	var o bench.Operator
	var windows []string
	c := &cobra.Command{
		Use: "operator", Short: "The operator: milliseconds forward and backward",
		Example: "  nha bench operator --T 2048,8192,32768\n  nha bench operator --T 2048 --W full --M 0\n  nha bench operator --B 8 --T 2048 --Hq 16 --K 64 --M 64 --W 32,64 --json",
		Args:    exactly(),
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if o.W, err = windowList(windows); err != nil {
				err = fmt.Errorf("--W: %w", err)
			}
			return measure(c, &o, err)
		},
	}
	f := c.Flags()
	f.IntSliceVar(&o.B, "B", []int{1}, "sequences")
	f.IntSliceVar(&o.T, "T", []int{512, 2048, 8192}, "tokens of each")
	f.IntSliceVar(&o.Hq, "Hq", []int{8}, "query heads")
	f.IntSliceVar(&o.H, "H", nil, "key/value heads; without it as many as query heads")
	f.IntSliceVar(&o.K, "K", []int{64}, "dimensions of a key")
	f.IntSliceVar(&o.V, "V", nil, "dimensions of a value; without it those of a key")
	f.IntSliceVar(&o.M, "M", []int{64}, "slots")
	f.StringSliceVar(&windows, "W", []string{"64"}, "windows: tokens, or full")
	timingFlag(f, &o.Timing)
	return jsonFlag(c)
}

func windowList(words []string) (list []int, err error) {
	for _, s := range words {
		w := attention.Full
		if s != "full" {
			if w, err = strconv.Atoi(s); err != nil {
				return nil, fmt.Errorf("window %q: use a number of tokens, or full", s)
			}
		}
		list = append(list, w)
	}
	return list, nil
}

// sizeFlags are those of modelFlags that a model directory has no use for.
var sizeFlags = []string{"size", "hidden-size", "layers", "heads", "kv-heads", "intermediate-size", "vocabulary", "slots"}

// modelFlags are the shape of a model, as `nha train` names them.
func modelFlags(f *pflag.FlagSet, s *bench.ModelSize, size *string, standard string) {
	var names []string
	for _, n := range bench.Sizes {
		names = append(names, n.Name)
	}
	f.StringVar(size, "size", standard, "shape of a preset: "+strings.Join(names, ", "))
	for _, n := range []struct {
		to         *int
		name, what string
	}{{&s.HiddenSize, "hidden-size", "instead of the size's"}, {&s.Layers, "layers", "instead of the size's"}, {&s.Heads, "heads", "query heads"},
		{&s.KVHeads, "kv-heads", "key/value heads; 0: the size's, or as --heads"}, {&s.IntermediateSize, "intermediate-size", "inner size of the MLP"},
		{&s.Vocabulary, "vocabulary", "tokens to choose from"}, {&s.Slots, "slots", "memory slots"}} {
		f.IntVar(n.to, n.name, 0, n.what)
	}
	f.StringVar(&s.Windows, "windows", "", "window of every layer, such as '32' or '7*64 full'; empty: the preset's")
}

func newBenchTrain() *cobra.Command {
	var o bench.Train
	var size string
	var profile bool
	c := &cobra.Command{
		Use: "train", Short: "Training steps: tokens/s, share of the peak, memory",
		Long: "Train measures whole steps (forward, backward, clipping, AdamW) on random tokens. mfu is 6 N tokens/s, N all parameters, over\n" +
			"peak_gflops: a card's published rate, else the best product of 2048 cubed in the same process. peak_bytes is how far resident memory grows over the\n" +
			"parameters; first_step_s is the time from nothing to the end of the first step.",
		Example: "  nha bench train --model transformer,nha --size small\n  nha bench train --model nha --size large --batch 1 --context 2048 --json",
		Args:    exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := bench.FindSize(size)
			o.Size = s.Or(o.Size)
			if profile {
				o.Profile = printProfile
			}
			return measure(c, &o, err)
		},
	}
	f := c.Flags()
	f.StringVar(&o.Recompute, "recompute", "", "what backward computes again: none, activations, blocks; empty: as nha train")
	f.StringVar(&o.Moments, "moments", "float32", "type of AdamW's moments: float32, or on a card bfloat16")
	f.BoolVar(&profile, "profile", false, "print on standard error how a step divides into ops, where the backend can say")
	f.StringSliceVar(&o.Models, "model", []string{"transformer", "nha"}, "presets: nha, gsa, window, transformer")
	modelFlags(f, &o.Size, &size, "small")
	f.IntVar(&o.Size.Batch, "batch", 0, "sequences of a step; 0: the size's")
	f.IntVar(&o.Size.Context, "context", 0, "tokens of each; 0: the size's")
	timingFlag(f, &o.Timing)
	return jsonFlag(c)
}

// printProfile is the table of a step's ops, down to a thousandth of it.
func printProfile(list []backend.OpTime) {
	sum := 0.0
	for _, t := range list {
		sum += t.MS
	}
	fmt.Fprintf(os.Stderr, "%8.3f ms in all\n", sum)
	for _, t := range list {
		if t.MS > sum/1000 {
			fmt.Fprintf(os.Stderr, "%8.3f ms %5.1f%% %5d x %s\n", t.MS, 100*t.MS/sum, t.Calls, t.Name)
		}
	}
}

func newBenchDecode() *cobra.Command {
	var o bench.Decode
	var k comparison
	c := &cobra.Command{
		Use: "decode [MODEL...]", Short: "Decode steps: milliseconds, tokens/s, memory, share of the read bandwidth",
		Long: "Decode measures steps of one token a session at some depth, with states that are filled, not read in. read_bytes is what a\n" +
			"step must read (weights that multiply, states); bandwidth_bytes_per_s is a streaming sum on all processors just before.",
		Example: "  nha bench decode --size 135m --dtype float32,bfloat16 --depth 128,131072\n  nha bench decode runs/nha runs/transformer --batch 1,8 --format markdown",
		RunE: func(c *cobra.Command, args []string) error {
			return k.measure(c, args, o.Size, func(model string, s bench.ModelSize) measurement {
				one := o
				one.Model, one.Size = model, s
				return &one
			})
		},
	}
	f := c.Flags()
	k.flags(f)
	modelFlags(f, &o.Size, &k.size, "large")
	f.StringSliceVar(&o.DTypes, "dtype", nil, "types of the weights: float32, bfloat16, float16; without it as a directory stores them, float32 for a preset")
	f.IntSliceVar(&o.Batches, "batch", []int{1}, "sessions in a step")
	f.IntSliceVar(&o.Depths, "depth", []int{128}, "tokens that each session has read before")
	timingFlag(f, &o.Timing)
	return jsonFlag(c)
}

func newBenchPrefill() *cobra.Command {
	var o bench.Prefill
	var k comparison
	c := &cobra.Command{
		Use: "prefill [MODEL...]", Short: "Reading a prompt: tokens/s, time to the first new token",
		Long:    "Prefill measures how long a prompt takes, from an empty state to the logits after its last token.",
		Example: "  nha bench prefill runs/nha runs/transformer --tokens 128,512,2048\n  nha bench prefill --size 135m --windows full --json",
		RunE: func(c *cobra.Command, args []string) error {
			return k.measure(c, args, o.Size, func(model string, s bench.ModelSize) measurement {
				one := o
				one.Model, one.Size = model, s
				return &one
			})
		},
	}
	f := c.Flags()
	k.flags(f)
	modelFlags(f, &o.Size, &k.size, "large")
	f.StringSliceVar(&o.DTypes, "dtype", nil, "types of the weights: float32, bfloat16, float16; without it as a model stores them, float32 for a preset")
	f.IntSliceVar(&o.Tokens, "tokens", []int{128, 512, 2048}, "lengths of prompts")
	f.IntVar(&o.Chunk, "chunk", 0, "tokens read at a time; 0: as generation does")
	timingFlag(f, &o.Timing)
	return jsonFlag(c)
}

// sizeOf completes s from the size of that name; flags that shape a preset are refused where the model has its own shape.
func sizeOf(c *cobra.Command, s *bench.ModelSize, size, model string) error {
	named, err := bench.FindSize(size)
	*s = named.Or(*s)
	for _, name := range sizeFlags {
		if c.Flags().Changed(name) && !bench.IsPreset(model) {
			err = fmt.Errorf("--%s: the model %s has its own; leave it out or give a preset", name, model)
		}
	}
	return err
}
