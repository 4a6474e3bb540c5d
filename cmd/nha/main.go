// Command nha trains, runs and measures language models with Native Hybrid Attention. Every verb is a file: flags into
// options, then one call.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"nha/backend"
	_ "nha/backend/all"
)

// usageError is a mistake in the command line: exit code 2.
type usageError struct{ error }

func main() { os.Exit(run(os.Args[1:])) }

// run is the program for the given arguments; it returns the exit code: 0, 1 for an error, 2 for wrong usage.
func run(args []string) (code int) {
	defer func() {
		if f := recover(); f != nil {
			fault, ok := f.(backend.Fault)
			if !ok {
				panic(f)
			}
			fmt.Fprintf(os.Stderr, "nha: %v\n", fault)
			code = 1
		}
	}()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the program at once
	root, out := newRoot(), &output{w: os.Stdout}
	root.SetArgs(args)
	root.SetOut(out)
	c, err := root.ExecuteContextC(ctx)
	if err == nil {
		err = out.err
	}
	var usage usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &usage):
		fmt.Fprintf(os.Stderr, "nha: %v\nRun '%s --help'.\n", err, c.CommandPath())
		return 2
	case errors.Is(err, context.Canceled):
		err = errors.New("interrupted")
	}
	fmt.Fprintf(os.Stderr, "nha: %v\n", err)
	return 1
}

// output is standard output that remembers the first write that failed, so that a full disk is an error whoever printed.
type output struct {
	w   io.Writer
	err error
}

func (o *output) Write(p []byte) (int, error) {
	n, err := o.w.Write(p)
	if o.err == nil {
		o.err = err
	}
	return n, err
}

// common are the flags that every verb has.
type common struct {
	threads int
	backend string
	json    bool
}

var flags common

func newRoot() *cobra.Command {
	flags = common{}
	root := &cobra.Command{
		Use:           "nha",
		Short:         "Native Hybrid Attention: language models whose memory does not grow with the conversation",
		Long:          "nha trains, runs and measures language models with Native Hybrid Attention (arXiv 2510.07019): long-term context in a\nfew gated slots, short-term context in a sliding window, both read with one softmax.",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          noVerb,
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{flagError(err)} })
	backends := append([]string{backend.Auto}, backend.Names()...)
	p := root.PersistentFlags()
	p.IntVar(&flags.threads, "threads", 0, "threads to compute with; 0 means all (GOMAXPROCS)")
	p.StringVar(&flags.backend, "backend", backend.Auto, "where to compute: "+strings.Join(backends, ", "))
	root.PersistentPreRunE = func(c *cobra.Command, _ []string) error {
		if flags.threads < 0 {
			return usageError{fmt.Errorf("--threads %d: must be 0 (all) or more", flags.threads)}
		}
		if !slices.Contains(backends, flags.backend) {
			return usageError{fmt.Errorf("--backend %s: choose one of %s", flags.backend, strings.Join(backends, ", "))}
		}
		if flags.threads > 0 {
			runtime.GOMAXPROCS(flags.threads)
		}
		return windowsFromFile(c)
	}
	root.AddCommand(newVersion(), newDoctor(), newInspect(), newConvert(), newTokenizer(), newTrain(), newGenerate(), newChat(), newDemo(), newEval(), newBench(), newHybridize(), newTune(), newReport())
	root.SetHelpCommand(newHelp())
	root.InitDefaultCompletionCmd()
	if c, _, err := root.Find([]string{"completion"}); err == nil {
		c.Example = "  source <(nha completion bash)"
	}
	return root
}

// noVerb turns "nha word" into a usage error that names the word.
func noVerb(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("unknown verb %q", args[0])}
	}
	return nil
}

// flagError says in our words which flag has a value that cannot be.
func flagError(err error) error {
	var invalid *pflag.InvalidValueError
	if !errors.As(err, &invalid) {
		return err
	}
	f := invalid.GetFlag()
	want := map[string]string{"int": "a whole number", "int64": "a whole number", "uint64": "a whole number from 0", "float64": "a number", "bool": "true or false"}
	if kind, ok := want[f.Value.Type()]; ok {
		return fmt.Errorf("--%s %s: want %s", f.Name, invalid.GetValue(), kind)
	}
	return fmt.Errorf("--%s: %w", f.Name, invalid.Unwrap())
}

// exactly wants one argument for each name.
func exactly(names ...string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) == len(names) {
			return nil
		}
		want, got := "no arguments", "none"
		if len(names) > 0 {
			want = strings.Join(names, " and ")
		}
		if len(args) > 0 {
			got = fmt.Sprintf("%q", args)
		}
		return usageError{fmt.Errorf("%s takes %s, got %s", c.CommandPath(), want, got)}
	}
}

func newHelp() *cobra.Command {
	return &cobra.Command{
		Use: "help [VERB]", Short: "Say what a verb does", Example: "  nha help train",
		RunE: func(c *cobra.Command, args []string) error {
			verb, rest, err := c.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return usageError{fmt.Errorf("unknown verb %q", strings.Join(args, " "))}
			}
			verb.InitDefaultHelpFlag()
			return verb.Help()
		},
	}
}

// jsonFlag gives a verb --json.
func jsonFlag(c *cobra.Command) *cobra.Command {
	c.Flags().BoolVar(&flags.json, "json", false, "print one JSON object a line and nothing else on standard output")
	return c
}

// openBackend starts the backend of --backend; auto is the best there is.
func openBackend() (backend.Backend, error) {
	return backend.OpenBest(flags.backend, flags.threads, func(s string) { fmt.Fprintln(os.Stderr, "nha: "+s) })
}

func newVersion() *cobra.Command {
	return jsonFlag(&cobra.Command{
		Use: "version", Short: "Print the version, and what it was built with", Example: "  nha version",
		Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			version, revision := "(devel)", ""
			if info, ok := debug.ReadBuildInfo(); ok {
				version = info.Main.Version
				for _, s := range info.Settings {
					if s.Key == "vcs.revision" {
						revision = s.Value
					}
				}
			}
			if flags.json {
				return printJSON(c, map[string]string{"version": version, "revision": revision, "go": runtime.Version(), "system": runtime.GOOS + "/" + runtime.GOARCH})
			}
			if revision != "" {
				version += " " + revision
			}
			fmt.Fprintf(c.OutOrStdout(), "nha %s %s %s/%s\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return nil
		},
	})
}
