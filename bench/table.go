package bench

import (
	"fmt"
	"io"
	"reflect"
	"strings"
)

// Table writes rows for people: the fields' names once, then a line a row, as they come.
type Table struct {
	W      io.Writer
	widths []int
}

// Row writes a struct with JSON names; all rows are of one type.
func (t *Table) Row(row any) error {
	v := reflect.ValueOf(row)
	var names, cells []string
	for i := range v.NumField() {
		name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		names, cells = append(names, name), append(cells, cell(name, v.Field(i)))
	}
	if t.widths == nil {
		for i := range names {
			t.widths = append(t.widths, max(len(names[i]), len(cells[i])+1, 7))
		}
		if err := t.line(names); err != nil {
			return err
		}
	}
	return t.line(cells)
}

func (t *Table) line(cells []string) error {
	var b strings.Builder
	for i, c := range cells {
		fmt.Fprintf(&b, "%*s ", t.widths[i], c)
	}
	_, err := fmt.Fprintln(t.W, strings.TrimRight(b.String(), " "))
	return err
}

// cell is a number as people read it: bytes in MiB, rates in GB/s, the rest with four digits.
func cell(name string, v reflect.Value) string {
	switch {
	case strings.HasSuffix(name, "bytes"):
		return fmt.Sprintf("%.1f MiB", float64(v.Int())/(1<<20))
	case strings.HasSuffix(name, "bytes_per_s"):
		return fmt.Sprintf("%.2f GB/s", v.Float()/1e9)
	case v.Kind() == reflect.Float64:
		return fmt.Sprintf("%.4g", v.Float())
	}
	return fmt.Sprint(v.Interface())
}
