package main

import (
	"cmp"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"nha/report"
)

func newReport() *cobra.Command {
	var out string
	c := &cobra.Command{
		Use: "report DIR", Short: "Collect the runs below a folder into one page",
		Long: "Report looks below DIR for training runs (metrics.jsonl), results of nha eval --output (results_*.json), curves of nha bench curves --out\n" +
			"(curves.json) and conversions of nha hybridize (report.json), and writes report.html, a page that stands alone, and report.json.",
		Example: "  nha report runs\n  nha report runs --out pages --json",
		Args:    exactly("DIR"),
		RunE: func(c *cobra.Command, args []string) error {
			r, err := report.Collect(args[0])
			if err != nil {
				return err
			}
			to := cmp.Or(out, args[0])
			if err := r.Write(to); err != nil {
				return err
			}
			path := filepath.Join(to, report.PageFile)
			if flags.json {
				return printJSON(c, map[string]any{"page": path, "training": len(r.Training), "evaluations": len(r.Evaluations), "curves": len(r.Curves), "conversions": len(r.Conversions)})
			}
			fmt.Fprintf(c.OutOrStdout(), "%s: %s\n", path, r)
			return nil
		},
	}
	c.Flags().StringVar(&out, "out", "", "folder for the page instead of DIR")
	return jsonFlag(c)
}
