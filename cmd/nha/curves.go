package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"nha/bench"
	"nha/doctor"
)

func newBenchCurves() *cobra.Command {
	var o bench.Curves
	var size, depths, batches, batchDepth, memory, out, format string
	c := &cobra.Command{
		Use: "curves MODEL...", Short: "Time and memory against depth, as it is, with full windows and with windows of 64",
		Long: "Curves measures the time of a token, the time to the first token, the memory of a session and of the process against depth, and tokens/s\n" +
			"against sessions: for every model as it is, with all windows full and with all windows at 64. Depths are reached with synthetic states. With --out\n" +
			"it leaves curves.json, curves.csv, every chart as SVG and PNG, and bench.html, a page that stands alone. A MODEL is a directory, a\n" +
			".gguf file, org/name in the Hugging Face cache, or a preset with random weights.",
		Example: "  nha bench curves model.gguf --out curves\n" +
			"  nha bench curves runs/nha runs/transformer --depths 128..32K --batches 1,4,16 --format csv\n" +
			"  nha bench curves transformer --size 135m --backend cuda --depths 128..1M --out curves",
		RunE: func(c *cobra.Command, args []string) (err error) {
			named, err := bench.FindSize(size)
			o.Size, o.Models = named.Or(o.Size), args
			for _, list := range []struct {
				to   *[]int
				text string
				flag string
			}{{&o.Depths, depths, "depths"}, {&o.Batches, batches, "batches"}} {
				if err == nil {
					if *list.to, err = bench.ParseCounts(list.text); err != nil {
						err = fmt.Errorf("--%s: %w", list.flag, err)
					}
				}
			}
			for _, number := range []struct {
				to   *int
				text string
				flag string
			}{{&o.BatchDepth, batchDepth, "batch-depth"}, {&o.Memory, memory, "memory"}} {
				if err == nil {
					if *number.to, err = bench.ParseCount(number.text); err != nil {
						err = fmt.Errorf("--%s: %w", number.flag, err)
					}
				}
			}
			if err == nil {
				err = checkFormat(format)
			}
			if err == nil {
				err = o.Check()
			}
			if err != nil {
				return usageError{err}
			}
			if out != "" {
				if err := bench.PrepareOut(out); err != nil {
					return err
				}
			}
			return runCurves(c, &o, out, format)
		},
	}
	f := c.Flags()
	f.StringVar(&depths, "depths", "128..128K", "tokens before a step, and of a prompt: 128,512,2K or 128..128K, which doubles")
	f.StringVar(&batches, "batches", "1..16", "sessions in a step")
	f.StringVar(&batchDepth, "batch-depth", "2K", "tokens before a step of several sessions")
	f.IntVar(&o.Slots, "slots", 64, "slots given to a model without any where its windows are 64; 0: none, a sliding window alone")
	f.StringVar(&memory, "memory", "0", "bytes that states may take, such as 8G; 0: what the system says is free, 4G where it does not say")
	f.Float64Var(&o.Limit, "limit", 30, "leave out points of which one step or prompt would take more seconds")
	f.StringVar(&size, "size", "large", "shape of a preset: as nha bench decode")
	f.StringVar(&out, "out", "", "folder for curves.json, curves.csv, the charts and bench.html")
	f.StringVar(&format, "format", "markdown", "of the table: "+strings.Join(bench.Formats, ", "))
	timingFlag(f, &o.Timing)
	return jsonFlag(c)
}

// runCurves measures, prints and writes. What an interrupted measurement has is written too.
func runCurves(c *cobra.Command, o *bench.Curves, out, format string) error {
	b, err := openBackend()
	if err != nil {
		return err
	}
	defer b.Close()
	o.Command = commandLine()
	for _, f := range doctor.Host() {
		o.Machine = append(o.Machine, bench.Fact{Name: f.Name, Value: f.Value})
	}
	p := newProgress()
	o.Notice = func(s string) {
		if p.terminal {
			fmt.Fprintf(p, "\r%-110s", s)
		} else {
			fmt.Fprintln(p, s)
		}
	}
	var table bench.Ranking
	set, err := o.Run(c.Context(), b, func(point bench.CurvePoint) error {
		if flags.json {
			return printJSON(c, point)
		}
		return table.Row(point)
	})
	p.end()
	interrupted := errors.Is(err, context.Canceled)
	if err != nil && !interrupted {
		return err
	}
	if !flags.json {
		if err := table.Write(c.OutOrStdout(), format); err != nil {
			return err
		}
	}
	if out != "" && len(set.Points) > 0 {
		if err := set.Write(out); err != nil {
			return err
		}
		fmt.Fprintln(p, "written:", filepath.Join(out, bench.CurvesPage))
	}
	return err
}
