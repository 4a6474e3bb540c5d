package hybridize

import (
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"nha/atomicfile"
	"nha/plot"
)

// Write writes report.json, report.md and the charts layer_errors and slot_share (SVG and PNG) into a directory.
func (r *Report) Write(dir string) error {
	if err := atomicfile.WriteFile(filepath.Join(dir, reportName), 0o644, func(w io.Writer) error {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}); err != nil {
		return err
	}
	for name, chart := range map[string]*plot.Chart{"layer_errors": r.errorChart(), "slot_share": r.shareChart()} {
		if err := chart.Write(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return atomicfile.WriteFile(filepath.Join(dir, "report.md"), 0o644, func(w io.Writer) error {
		_, err := io.WriteString(w, r.markdown())
		return err
	})
}

func (r *Report) layers() (x []float64) {
	for i := range r.Layers {
		x = append(x, float64(i))
	}
	return x
}

func (r *Report) errorChart() *plot.Chart {
	c := &plot.Chart{Title: "Relative error of every layer's attention", X: plot.Axis{Label: "layer"}, Y: plot.Axis{Label: "|y - base|² / |base|²", Log: true}}
	for i, s := range r.Stages {
		c.Series = append(c.Series, plot.Series{Name: fmt.Sprintf("%d %s", i, s.Kind), X: r.layers(), Y: s.Errors, Points: true})
	}
	return c
}

func (r *Report) shareChart() *plot.Chart {
	var y []float64
	for _, l := range r.Layers {
		y = append(y, l.SlotShare)
	}
	return &plot.Chart{Title: "How much of the attention reads slots", X: plot.Axis{Label: "layer"}, Y: plot.Axis{Label: "slot share"},
		Series: []plot.Series{{X: r.layers(), Y: y, Points: true}}}
}

func (r *Report) markdown() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("# %s, hybridised\n", filepath.Base(strings.TrimRight(r.Base, "/")))
	line("Base %s (hash %.12s), windows `%s`, %d slots, on %s. %.0f s of training.\n", r.Base, r.BaseHash, r.Windows, r.Slots, r.Backend, r.Seconds)
	line("    %s\n", r.Command)
	line("## Stages\n")
	line("| stage | parameters | steps | tokens | seconds | loss | KL to the base | perplexity |")
	line("|---|---|---|---|---|---|---|---|")
	for _, s := range r.Stages {
		line("| %s | %d | %d | %d | %.0f | %.4g | %.4f | %.3f |", s.Kind, s.Parameters, s.Steps, s.Tokens, s.Seconds, s.Loss, s.KL, s.Perplexity)
	}
	line("\nKL and perplexity are of %s, after the stage; the base's perplexity there is %.3f.\n", r.MeasuredOn, r.BasePerplexity)
	if len(r.Tasks) > 0 {
		line("## Tasks\n\n| task | metric | base | hybrid |\n|---|---|---|---|")
		for _, t := range r.Tasks {
			line("| %s | %s | %.4f | %.4f |", t.Task, t.Metric, t.Base, t.Hybrid)
		}
		line("")
	}
	line("## Memory of a sequence\n\n| tokens | state of the hybrid | keys and values of the base | ratio |\n|---|---|---|---|")
	for _, m := range r.Bytes {
		line("| %d | %.2f MiB | %.2f MiB | %.3f |", m.Tokens, float64(m.State)/(1<<20), float64(m.KV)/(1<<20), float64(m.State)/float64(m.KV))
	}
	line("\n## Layers\n\n![errors](layer_errors.svg)\n\n![slot share](slot_share.svg)\n")
	head, rule := "| layer | window | slot share |", "|---|---|---|"
	for i, s := range r.Stages {
		head += fmt.Sprintf(" error after %d %s |", i, s.Kind)
		rule += "---|"
	}
	line("%s\n%s", head, rule)
	for i, l := range r.Layers {
		row := fmt.Sprintf("| %d | %s | %.3f |", i, l.Window, l.SlotShare)
		for _, s := range r.Stages {
			if l.full() {
				row += " |"
			} else {
				row += fmt.Sprintf(" %.4f |", s.Errors[i])
			}
		}
		line("%s", row)
	}
	return b.String()
}
