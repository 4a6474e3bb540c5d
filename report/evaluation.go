package report

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"strings"

	"nha/bench"
	"nha/train"
)

var nan = math.NaN()

func known(x train.Number) bool { return !math.IsNaN(float64(x)) && !math.IsInf(float64(x), 0) }

// Evaluation is a result file, in lm-evaluation-harness' form.
type Evaluation struct {
	Name    string  `json:"name"`
	Model   string  `json:"model"`
	Windows string  `json:"windows,omitempty"`
	Limit   float64 `json:"limit,omitempty"` // documents of a task, where not all of them were asked
	Date    float64 `json:"date"`            // seconds since 1970
	Scores  []Score `json:"scores"`
}

// Score is one number of it; Stderr is null where there is none.
type Score struct {
	Task   string   `json:"task"`
	Metric string   `json:"metric"`
	Value  float64  `json:"value"`
	Stderr *float64 `json:"stderr"`
	Lower  bool     `json:"lower_is_better,omitempty"`
}

// readEvaluation reads a result file; one that is of something else, without results, is passed over.
func readEvaluation(path, name string) (*Evaluation, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var file struct {
		Results map[string]map[string]any `json:"results"`
		Groups  map[string]any            `json:"groups"`
		Higher  map[string]map[string]any `json:"higher_is_better"`
		Model   string                    `json:"model_name"`
		Date    float64                   `json:"date"`
		Config  struct {
			Limit     *float64 `json:"limit"`
			ModelArgs any      `json:"model_args"`
		} `json:"config"`
	}
	if err := json.Unmarshal(text, &file); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(file.Results) == 0 {
		return nil, nil
	}
	e := &Evaluation{Name: name, Model: cmp.Or(file.Model, name), Date: file.Date}
	if arguments, ok := file.Config.ModelArgs.(map[string]any); ok {
		e.Windows, _ = arguments["windows"].(string)
	}
	if file.Config.Limit != nil {
		e.Limit = *file.Config.Limit
	}
	tasks := slices.Sorted(maps.Keys(file.Results))
	slices.SortStableFunc(tasks, func(a, b string) int { // averages of groups first
		_, inA := file.Groups[a]
		_, inB := file.Groups[b]
		switch {
		case inA && !inB:
			return -1
		case inB && !inA:
			return 1
		}
		return 0
	})
	for _, task := range tasks {
		values := file.Results[task]
		for _, key := range slices.Sorted(maps.Keys(values)) {
			metric, filter, ok := strings.Cut(key, ",")
			v, number := values[key].(float64)
			if !ok || !number || strings.HasSuffix(metric, "_stderr") {
				continue
			}
			s := Score{Task: task, Metric: metric, Value: v}
			if stderr, ok := values[metric+"_stderr,"+filter].(float64); ok {
				s.Stderr = &stderr
			}
			if better, ok := file.Higher[task][metric].(bool); ok {
				s.Lower = !better
			}
			e.Scores = append(e.Scores, s)
		}
	}
	return e, nil
}

// table is the evaluations with a line for every model with its windows, the newest of every score, the best in bold.
func table(list []Evaluation) bench.PageTable {
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b Evaluation) int { return cmp.Compare(b.Date, a.Date) })
	type line struct {
		model, windows string
		limit          float64
	}
	type column struct{ task, metric string }
	scores, lower := map[line]map[column]Score{}, map[column]bool{}
	var lines []line
	var columns []column
	for _, e := range list {
		l := line{e.Model, e.Windows, e.Limit}
		if scores[l] == nil {
			scores[l] = map[column]Score{}
			lines = append(lines, l)
		}
		for _, s := range e.Scores {
			c := column{s.Task, s.Metric}
			if _, ok := lower[c]; !ok && !strings.HasPrefix(s.Metric, "loss@") {
				lower[c] = s.Lower
				columns = append(columns, c)
			}
			if _, ok := scores[l][c]; !ok {
				scores[l][c] = s
			}
		}
	}
	if len(columns) > 0 {
		slices.SortStableFunc(lines, func(a, b line) int {
			x, inA := scores[a][columns[0]]
			y, inB := scores[b][columns[0]]
			switch {
			case !inA || !inB:
				return compareBools(inB, inA)
			case lower[columns[0]]:
				return cmp.Compare(x.Value, y.Value)
			}
			return cmp.Compare(y.Value, x.Value)
		})
	}
	t := bench.PageTable{Head: []string{"model", "windows"}}
	for _, l := range lines {
		name := bench.ShortName(l.model)
		if l.limit > 0 {
			name += fmt.Sprintf(" (first %g documents)", l.limit)
		}
		t.Rows = append(t.Rows, []bench.Cell{{Text: name}, {Text: l.windows}})
	}
	for _, c := range columns {
		t.Head = append(t.Head, c.task+" "+c.metric)
		best, measured := math.NaN(), 0
		for _, l := range lines {
			if s, ok := scores[l][c]; ok {
				if measured++; math.IsNaN(best) || lower[c] && s.Value < best || !lower[c] && s.Value > best {
					best = s.Value
				}
			}
		}
		for i, l := range lines {
			cell := bench.Cell{}
			if s, ok := scores[l][c]; ok {
				cell.Text, cell.Best = fmt.Sprintf("%.4f", s.Value), measured > 1 && s.Value == best
				if s.Stderr != nil {
					cell.Text += fmt.Sprintf(" ± %.4f", *s.Stderr)
				}
			}
			t.Rows[i] = append(t.Rows[i], cell)
		}
	}
	return t
}

// compareBools puts true after false.
func compareBools(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}
