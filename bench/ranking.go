package bench

import (
	"cmp"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"

	"nha/markdown"
)

// Formats are what Ranking writes.
var Formats = []string{"markdown", "csv", "json"}

// better says of a row's fields which way is better: 1 more, -1 less. Fields that are not in it are what a row is of.
var better = map[string]int{"tokens_per_s": 1, "step_ms": -1, "ms": -1, "state_bytes": -1, "resident_bytes": -1, "bandwidth_share": 1}

// conditions are the fields that rows must share to be compared, in the order of the table.
var conditions = []string{"curve", "tokens", "depth", "batch"}

// Ranking collects the rows of several models and writes them as one table: sorted by what they share, the fastest first, the best of
// every column in bold (in Markdown).
type Ranking struct {
	rows []rankedRow
}

type rankedRow struct {
	row    any
	fields map[string]reflect.Value
	names  []string
}

// Row takes a struct with JSON names; all rows are of one type.
func (k *Ranking) Row(row any) error {
	r := rankedRow{row: row, fields: map[string]reflect.Value{}}
	v := reflect.ValueOf(row)
	for i := range v.NumField() {
		name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		r.names, r.fields[name] = append(r.names, name), v.Field(i)
	}
	k.rows = append(k.rows, r)
	return nil
}

// compare orders two values of one field.
func compareFields(a, b reflect.Value) int {
	switch a.Kind() {
	case reflect.Int:
		return cmp.Compare(a.Int(), b.Int())
	case reflect.Float64:
		return cmp.Compare(a.Float(), b.Float())
	}
	return cmp.Compare(a.String(), b.String())
}

// skipped reports whether a row has no figures.
func (r *rankedRow) skipped() bool {
	v, ok := r.fields["skipped"]
	return ok && v.String() != ""
}

// alike compares what two rows must share.
func alike(a, b *rankedRow) int {
	for _, name := range conditions {
		if v, ok := a.fields[name]; ok {
			if c := compareFields(v, b.fields[name]); c != 0 {
				return c
			}
		}
	}
	return 0
}

func (k *Ranking) sort() {
	slices.SortStableFunc(k.rows, func(a, b rankedRow) int {
		if c := alike(&a, &b); c != 0 {
			return c
		}
		return compareFields(b.fields["tokens_per_s"], a.fields["tokens_per_s"])
	})
}

// Write writes the table.
func (k *Ranking) Write(w io.Writer, format string) error {
	k.sort()
	if format == "json" {
		list := make([]any, len(k.rows))
		for i, r := range k.rows {
			list[i] = r.row
		}
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		return e.Encode(list)
	}
	if len(k.rows) == 0 {
		return nil
	}
	head := k.rows[0].names
	if format == "csv" {
		cells := [][]string{head}
		for _, r := range k.rows {
			var line []string
			for _, name := range head {
				line = append(line, fmt.Sprint(r.fields[name].Interface()))
			}
			cells = append(cells, line)
		}
		return csv.NewWriter(w).WriteAll(cells)
	}
	if !slices.ContainsFunc(k.rows, func(r rankedRow) bool { return r.skipped() }) {
		head = slices.DeleteFunc(slices.Clone(head), func(name string) bool { return name == "skipped" })
	}
	cells, names := [][]string{head}, k.shortNames()
	for i := range k.rows {
		r := &k.rows[i]
		var line []string
		for _, name := range head {
			text := cell(name, r.fields[name])
			if name == "model" {
				text = names[text]
			}
			text = strings.ReplaceAll(text, "|", `\|`)
			switch {
			case better[name] != 0 && r.skipped():
				text = ""
			case k.best(r, name):
				text = "**" + text + "**"
			}
			line = append(line, text)
		}
		cells = append(cells, line)
	}
	return markdown.Table(w, cells)
}

// shortNames are the models without their folders, where that still tells them apart.
func (k *Ranking) shortNames() map[string]string {
	names, taken := map[string]string{}, map[string]string{}
	for _, r := range k.rows {
		if v, ok := r.fields["model"]; ok {
			long := v.String()
			short := ShortName(long)
			if other, ok := taken[short]; ok && other != long {
				names[other], short = other, long
			}
			taken[short], names[long] = long, short
		}
	}
	return names
}

// best reports whether no row that can be compared is better in a field, and one is worse.
func (k *Ranking) best(r *rankedRow, name string) bool {
	worse := false
	if better[name] == 0 || r.skipped() {
		return false
	}
	for i := range k.rows {
		other := &k.rows[i]
		if other.skipped() || alike(r, other) != 0 {
			continue
		}
		switch c := better[name] * compareFields(r.fields[name], other.fields[name]); {
		case c < 0:
			return false
		case c > 0:
			worse = true
		}
	}
	return worse
}
