// Command nha trains, runs and measures language models with Native Hybrid Attention. Every verb is a file: flags into
// options, then one call.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"nha/backend"
	_ "nha/backend/all"
)

// usageError is a mistake in the command line: exit code 2.
type usageError struct{ error }

// silent ends the program with exit code 1 when everything has been said already.
var silent = errors.New("")

func main() { os.Exit(run(os.Args[1:])) }

// run is the program for the given arguments; it returns the exit code: 0, 1 for an error, 2 for wrong usage.
func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := newRoot()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	var usage usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &usage):
		fmt.Fprintf(os.Stderr, "nha: %v\nRun 'nha --help' or 'nha VERB --help'.\n", err)
		return 2
	case !errors.Is(err, silent):
		fmt.Fprintf(os.Stderr, "nha: %v\n", err)
	}
	return 1
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
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	p := root.PersistentFlags()
	p.IntVar(&flags.threads, "threads", 0, "threads to compute with; 0 means all (GOMAXPROCS)")
	p.StringVar(&flags.backend, "backend", "auto", "where to compute: auto, cpu or ref")
	root.PersistentPreRunE = func(*cobra.Command, []string) error {
		if flags.threads < 0 {
			return usageError{fmt.Errorf("--threads %d: must be 0 (all) or more", flags.threads)}
		}
		if flags.threads > 0 {
			runtime.GOMAXPROCS(max(flags.threads, 1))
		}
		return nil
	}
	root.AddCommand(newVersion(), newDoctor(), newInspect(), newTokenizer(), newTrain(), newGenerate(), newDemo())
	return root
}

// noVerb turns "nha word" into a usage error that names the word.
func noVerb(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("unknown verb %q", args[0])}
	}
	return nil
}

// exactly wants n arguments, named for the error.
func exactly(names ...string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) != len(names) {
			return usageError{fmt.Errorf("%s takes %d arguments (%v), got %d", c.CommandPath(), len(names), names, len(args))}
		}
		return nil
	}
}

// jsonFlag gives a verb --json.
func jsonFlag(c *cobra.Command) *cobra.Command {
	c.Flags().BoolVar(&flags.json, "json", false, "print one JSON object a line and nothing else on standard output")
	return c
}

// openBackend starts the backend of --backend; auto is the best there is.
func openBackend() (backend.Backend, error) {
	return backend.Open(backendName(), flags.threads)
}

// backendName is --backend, with auto resolved to the best there is.
func backendName() string {
	if flags.backend == "auto" {
		return "cpu"
	}
	return flags.backend
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
			fmt.Fprintf(c.OutOrStdout(), "nha %s %s %s %s/%s\n", version, revision, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return nil
		},
	})
}
