package eval

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"

	"nha/atomicfile"
	"nha/plot"
)

// The result file of lm-evaluation-harness, so that its own table tools read it: results, group_subtasks, configs, versions, n-shot,
// higher_is_better, n-samples, and what the evaluation was made with.

// SharesFile is the shares of a text as JSON, beside the results.
const SharesFile = "slot_share.json"

var notInNames = regexp.MustCompile(`[^\w.-]+`)

// Write writes the report into DIR/MODEL: results_TIME.json in lm-evaluation-harness' form, and for the tasks text and share their
// curves as JSON, SVG and PNG. It returns the result file's path.
func (r *Report) Write(dir string) (string, error) {
	dir = filepath.Join(dir, notInNames.ReplaceAllString(r.Model, "_"))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	path := filepath.Join(dir, "results_"+r.Started.UTC().Format("2006-01-02T15-04-05.000000")+".json")
	if err := writeJSON(path, r.harness()); err != nil {
		return "", err
	}
	for _, t := range r.Tasks {
		if err := t.writeCurves(dir); err != nil {
			return "", err
		}
	}
	return path, nil
}

func writeJSON(path string, v any) error {
	return atomicfile.WriteFile(path, 0o644, func(w io.Writer) error {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		return e.Encode(v)
	})
}

// harness is the content of the result file.
func (r *Report) harness() map[string]any {
	results, members, groupResults := map[string]any{}, map[string][]string{}, map[string]any{}
	configs, versions, shots, better, samples := map[string]any{}, map[string]any{}, map[string]int{}, map[string]any{}, map[string]any{}
	for _, t := range slices.Concat(r.Tasks, r.Groups) {
		values, higher := map[string]any{"alias": t.Task}, map[string]bool{}
		for _, v := range t.Values {
			stderr := any("N/A")
			if !math.IsNaN(v.Stderr) {
				stderr = v.Stderr
			}
			values[v.Metric+",none"], values[v.Metric+"_stderr,none"], higher[v.Metric] = v.Value, stderr, !v.Lower
		}
		better[t.Task], shots[t.Task] = higher, 0
		if t.task == nil {
			groupResults[t.Task], results[t.Task], versions[t.Task] = values, values, 1
			for i := range Tasks {
				if Tasks[i].Group == t.Task {
					members[t.Task] = append(members[t.Task], Tasks[i].Name)
				}
			}
			continue
		}
		results[t.Task], versions[t.Task] = values, t.task.Version
		if members[t.Task] == nil {
			members[t.Task] = []string{}
		}
		configs[t.Task] = map[string]any{"task": t.Task, "dataset_path": t.task.Source.Repository, "dataset_name": t.task.Source.Config,
			"test_split": t.task.Source.Split, "output_type": t.task.Output, "num_fewshot": 0, "metadata": map[string]any{"version": t.task.Version}}
		samples[t.Task] = map[string]int{"original": t.Documents + t.Skipped, "effective": t.Documents, "truncated": t.Truncated}
	}
	limit := any(nil)
	if r.Limit > 0 {
		limit = r.Limit
	}
	return map[string]any{"results": results, "groups": groupResults, "group_subtasks": members, "configs": configs, "versions": versions, "n-shot": shots,
		"higher_is_better": better, "n-samples": samples,
		"config": map[string]any{"model": "nha", "model_args": map[string]any{"pretrained": r.Model, "windows": r.Windows, "backend": r.Backend},
			"limit": limit, "random_seed": r.Seed, "model_sha": r.Hash},
		"model_source": "nha", "model_name": r.Model, "model_name_sanitized": notInNames.ReplaceAllString(r.Model, "_"), "max_length": r.Context,
		"date": float64(r.Started.UnixMilli()) / 1000, "total_evaluation_time_seconds": fmt.Sprint(r.Elapsed.Seconds())}
}

// writeCurves writes what is more than a number.
func (t *TaskResult) writeCurves(dir string) error {
	if positions := t.Positions(); len(positions) > 0 {
		if err := writeJSON(filepath.Join(dir, t.Task+"_by_position.json"), positions); err != nil {
			return err
		}
		var x, y []float64
		for _, p := range positions {
			x, y = append(x, middle(p.From, p.To)), append(y, p.Loss)
		}
		c := plot.Chart{Title: "Loss by position", X: plot.Axis{Label: "position in the window, tokens", Log: true, Binary: true},
			Y: plot.Axis{Label: "nats per token"}, Series: []plot.Series{{X: x, Y: y, Points: true}}}
		if err := c.Write(filepath.Join(dir, t.Task+"_by_position")); err != nil {
			return err
		}
	}
	if t.Shares == nil {
		return nil
	}
	if err := writeJSON(filepath.Join(dir, SharesFile), t.Shares); err != nil {
		return err
	}
	charts := t.Shares.Charts()
	for name, c := range charts {
		if err := c.Write(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// middle is the middle of a bucket on a logarithmic axis.
func middle(from, to int) float64 { return math.Sqrt(float64(max(1, from)) * float64(to)) }

// Charts are the shares drawn: slot_share_layers by layer, with every head and the mean, and slot_share_positions against position, with every layer.
func (s *Shares) Charts() map[string]*plot.Chart {
	share := plot.Axis{Label: "share of attention that reads slots", Max: 1}
	layers := &plot.Chart{Title: "Slot share by layer", X: plot.Axis{Label: "layer", Whole: true}, Y: share}
	number := make([]float64, len(s.Layers))
	for i := range number {
		number[i] = float64(i)
	}
	for h := range s.Heads[0] {
		y := make([]float64, len(s.Heads))
		for i := range y {
			y[i] = s.Heads[i][h]
		}
		layers.Series = append(layers.Series, plot.Series{X: number, Y: y, Faint: true, Color: 1})
	}
	layers.Series[0].Name = "each head"
	layers.Series = append(layers.Series, plot.Series{Name: "mean over heads", X: number, Y: s.Layers, Points: true, Color: 1})
	positions := &plot.Chart{Title: "Slot share by position", X: plot.Axis{Label: "position, tokens", Log: true, Binary: true}, Y: share}
	var x, mean []float64
	for _, p := range s.Positions {
		x, mean = append(x, middle(p.From, p.To)), append(mean, p.Mean)
	}
	for i := range s.Layers {
		y := make([]float64, len(s.Positions))
		for k, p := range s.Positions {
			y[k] = p.Layers[i]
		}
		positions.Series = append(positions.Series, plot.Series{X: x, Y: y, Faint: true, Color: 2})
	}
	positions.Series[0].Name = "each layer"
	positions.Series = append(positions.Series, plot.Series{Name: "mean over layers", X: x, Y: mean, Points: true, Color: 2})
	return map[string]*plot.Chart{"slot_share_layers": layers, "slot_share_positions": positions}
}
