package eval

import (
	"cmp"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"nha/markdown"
)

// Line is one number of a report, as --json prints it; Stderr is null where there is none.
type Line struct {
	Model     string   `json:"model"`
	Task      string   `json:"task"`
	Metric    string   `json:"metric"`
	Value     float64  `json:"value"`
	Stderr    *float64 `json:"stderr"`
	N         int      `json:"n"`
	Truncated int      `json:"truncated,omitempty"` // requests that lost their left end to the context
	Skipped   int      `json:"skipped,omitempty"`   // rows that the protocol leaves out
}

// Lines are a report's numbers, tasks before groups.
func (r *Report) Lines() (list []Line) {
	for _, t := range slices.Concat(r.Tasks, r.Groups) {
		for _, v := range t.Values {
			l := Line{Model: r.Model, Task: t.Task, Metric: v.Metric, Value: v.Value, N: v.N, Truncated: t.Truncated, Skipped: t.Skipped}
			if !math.IsNaN(v.Stderr) {
				l.Stderr = &v.Stderr
			}
			list = append(list, l)
		}
	}
	return list
}

// Formats are what WriteTable knows.
var Formats = []string{"markdown", "csv", "json"}

// WriteTable writes the numbers of one model a line each, and of several as one table with a line a model: sorted by the
// first group's average, or the first metric, the best of each column in bold.
func WriteTable(w io.Writer, format string, reports []*Report) error {
	if format == "json" {
		var lines []Line
		for _, r := range reports {
			lines = append(lines, r.Lines()...)
		}
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(lines)
	}
	var cells [][]string
	if len(reports) == 1 {
		cells = single(reports[0])
	} else {
		cells = several(reports, format == "markdown")
	}
	if format == "csv" {
		c := csv.NewWriter(w)
		if err := c.WriteAll(cells); err != nil {
			return err
		}
		return c.Error()
	}
	return markdown.Table(w, cells)
}

func single(r *Report) [][]string {
	cells := [][]string{{"task", "metric", "value", "stderr", "n", "notes"}}
	for _, t := range slices.Concat(r.Tasks, r.Groups) {
		notes := t.notes()
		for _, v := range t.Values {
			cells = append(cells, []string{t.Task, v.Metric, number(v.Value), number(v.Stderr), fmt.Sprint(v.N), strings.Join(notes, "; ")})
			notes = nil
		}
	}
	return cells
}

// notes are what must be known of a task's documents.
func (t *TaskResult) notes() (list []string) {
	if t.Truncated > 0 {
		list = append(list, fmt.Sprintf("%d requests longer than the context, their left ends cut", t.Truncated))
	}
	if t.Skipped > 0 {
		list = append(list, fmt.Sprintf("%d rows left out by the protocol", t.Skipped))
	}
	return list
}

// number writes a value with four digits behind the point, nothing for NaN.
func number(x float64) string {
	if math.IsNaN(x) {
		return ""
	}
	return fmt.Sprintf("%.4f", x)
}

func several(reports []*Report, bold bool) [][]string {
	type column struct {
		task, metric string
		lower        bool
	}
	var columns []column
	seen := map[[2]string]bool{}
	for _, r := range reports {
		for _, t := range slices.Concat(r.Groups, r.Tasks) {
			for _, v := range t.Values {
				if key := [2]string{t.Task, v.Metric}; !seen[key] && !strings.HasPrefix(v.Metric, "loss@") {
					seen[key] = true
					columns = append(columns, column{t.Task, v.Metric, v.Lower})
				}
			}
		}
	}
	rows := slices.Clone(reports)
	if len(columns) > 0 {
		by := columns[0]
		worth := func(r *Report) float64 {
			v, ok := r.Value(by.task, by.metric)
			switch {
			case !ok || math.IsNaN(v.Value):
				return math.Inf(-1)
			case by.lower:
				return -v.Value
			}
			return v.Value
		}
		slices.SortStableFunc(rows, func(a, b *Report) int { return cmp.Compare(worth(b), worth(a)) })
	}
	cells := [][]string{{"model"}}
	for _, r := range rows {
		cells = append(cells, []string{r.Model})
	}
	for _, c := range columns {
		cells[0] = append(cells[0], strings.TrimSpace(c.task+" "+c.metric))
		best := math.NaN()
		for _, r := range rows {
			if v, ok := r.Value(c.task, c.metric); ok && (math.IsNaN(best) || c.lower && v.Value < best || !c.lower && v.Value > best) {
				best = v.Value
			}
		}
		for i, r := range rows {
			v, ok := r.Value(c.task, c.metric)
			text := ""
			if ok {
				text = number(v.Value)
			}
			if bold && ok && v.Value == best {
				text = "**" + text + "**"
			}
			cells[i+1] = append(cells[i+1], text)
		}
	}
	return withNotes(cells, rows)
}

// withNotes adds a column with the notes of every model's tasks, where there are any.
func withNotes(cells [][]string, rows []*Report) [][]string {
	notes := make([]string, len(rows))
	any := false
	for i, r := range rows {
		for _, t := range r.Tasks {
			if list := t.notes(); len(list) > 0 {
				notes[i] += "; " + t.Task + ": " + strings.Join(list, ", ")
				any = true
			}
		}
	}
	if !any {
		return cells
	}
	cells[0] = append(cells[0], "notes")
	for i, text := range notes {
		cells[i+1] = append(cells[i+1], strings.TrimPrefix(text, "; "))
	}
	return cells
}
