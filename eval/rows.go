package eval

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/parquet-go/parquet-go"

	"nha/data"
)

// row is one row of a dataset. Fields of objects in it are named by their path, "choices.text"; a list of objects is read as an
// object of lists, so that JSONL and parquet files of one dataset look alike. Values are string, int64, float64, bool or a
// []any of them.
type row struct {
	file   string
	unit   string // line or row: what number counts, from 1
	number int
	fields map[string]any
}

// errorf is an error that says where the row stands.
func (r *row) errorf(format string, args ...any) error {
	return fmt.Errorf("%s: %s: %w", r.file, r.place(), fmt.Errorf(format, args...))
}

func (r *row) place() string { return fmt.Sprintf("%s %d", r.unit, r.number) }

func (r *row) missing(key string) error {
	return r.errorf("no field %q (there is: %s)", key, strings.Join(slices.Sorted(maps.Keys(r.fields)), ", "))
}

// text is a field that holds a string.
func (r *row) text(key string) (string, error) {
	v, ok := r.fields[key]
	if !ok || v == nil {
		return "", r.missing(key)
	}
	s, ok := v.(string)
	if !ok {
		return "", r.errorf("field %q is %v, want a string", key, v)
	}
	return s, nil
}

// texts is several fields that hold strings.
func (r *row) textsOf(keys ...string) ([]string, error) {
	list := make([]string, len(keys))
	for i, key := range keys {
		var err error
		if list[i], err = r.text(key); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// list is a field that holds a list of strings.
func (r *row) list(key string) ([]string, error) {
	v, ok := r.fields[key]
	if !ok || v == nil {
		return nil, r.missing(key)
	}
	values, ok := v.([]any)
	if !ok {
		return nil, r.errorf("field %q is %v, want a list of strings", key, v)
	}
	list := make([]string, len(values))
	for i, v := range values {
		if list[i], ok = v.(string); !ok {
			return nil, r.errorf("field %q: entry %d is %v, want a string", key, i+1, v)
		}
	}
	return list, nil
}

// integer is a field that holds a whole number, or a string that spells one.
func (r *row) integer(key string) (int, error) {
	switch v := r.fields[key].(type) {
	case int64:
		return int(v), nil
	case float64:
		if v == float64(int(v)) {
			return int(v), nil
		}
	case string:
		if n, err := strconv.Atoi(strip(v)); err == nil {
			return n, nil
		}
	case nil:
		return 0, r.missing(key)
	}
	return 0, r.errorf("field %q is %v, want a whole number", key, r.fields[key])
}

// readRows calls emit with the rows of a JSONL or parquet file until it says stop.
func readRows(path string, emit func(*row) (more bool, err error)) error {
	if filepath.Ext(strings.ToLower(path)) == ".parquet" {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		return readParquet(f, info.Size(), path, emit)
	}
	r, err := data.Open(path)
	if err != nil {
		return err
	}
	defer r.Close()
	return readJSONL(r, path, emit)
}

// maxLine is the longest line of a JSONL file that is read.
const maxLine = 256 << 20

func readJSONL(r io.Reader, path string, emit func(*row) (bool, error)) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	for number := 1; lines.Scan(); number++ {
		line := bytes.TrimSpace(lines.Bytes())
		if number == 1 {
			line = bytes.TrimPrefix(line, []byte("\uFEFF"))
		}
		if len(line) == 0 {
			continue
		}
		x := &row{file: path, unit: "line", number: number, fields: map[string]any{}}
		if !utf8.Valid(line) {
			return x.errorf("not valid UTF-8")
		}
		var object map[string]any
		d := json.NewDecoder(bytes.NewReader(line))
		d.UseNumber()
		switch err := d.Decode(&object); {
		case err != nil:
			return x.errorf("not a JSON object: %w", err)
		case object == nil:
			return x.errorf("not a JSON object but null")
		}
		if err := trailing(d); err != nil {
			return x.errorf("%w", err)
		}
		flatten(x.fields, "", object)
		if more, err := emit(x); err != nil || !more {
			return err
		}
	}
	switch err := lines.Err(); {
	case errors.Is(err, bufio.ErrTooLong):
		return fmt.Errorf("%s: a line is longer than %d bytes: not a JSONL file?", path, maxLine)
	case err != nil:
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// trailing complains of what follows a line's object.
func trailing(d *json.Decoder) error {
	if _, err := d.Token(); err != io.EOF {
		return errors.New("more than one JSON object")
	}
	return nil
}

// flatten puts the fields of an object into fields, by path.
func flatten(fields map[string]any, prefix string, object map[string]any) {
	for key, v := range object {
		key = prefix + key
		switch v := v.(type) {
		case map[string]any:
			flatten(fields, key+".", v)
		case []any:
			columns := map[string]any{}
			for i := range v {
				if o, ok := v[i].(map[string]any); ok {
					for k, x := range o {
						list, _ := columns[key+"."+k].([]any)
						columns[key+"."+k] = append(list, scalar(x))
					}
				}
				v[i] = scalar(v[i])
			}
			if len(columns) > 0 {
				maps.Copy(fields, columns)
			} else {
				fields[key] = v
			}
		default:
			fields[key] = scalar(v)
		}
	}
}

// scalar turns a JSON number into int64 where it is whole, else float64.
func scalar(v any) any {
	n, ok := v.(json.Number)
	if !ok {
		return v
	}
	if i, err := n.Int64(); err == nil {
		return i
	}
	f, _ := n.Float64()
	return f
}

// readParquet assembles rows from the leaf columns; lists of lists, which no dataset here has, are left out.
func readParquet(r io.ReaderAt, size int64, path string, emit func(*row) (bool, error)) (err error) {
	done, inDecoder := 0, true
	defer func() { // the decoder trusts the file: a damaged page may panic it
		if p := recover(); p != nil {
			if !inDecoder {
				panic(p)
			}
			err = fmt.Errorf("%s: damaged parquet file near row %d: %v", path, done+1, p)
		}
	}()
	file, err := parquet.OpenFile(r, size, parquet.SkipPageIndex(true), parquet.SkipBloomFilters(true))
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	for _, group := range file.RowGroups() {
		rows := make([]*row, group.NumRows())
		for i := range rows {
			rows[i] = &row{file: path, unit: "row", number: done + i + 1, fields: map[string]any{}}
		}
		for _, names := range file.Schema().Columns() {
			column, _ := file.Schema().Lookup(names...)
			if column.MaxRepetitionLevel > 1 {
				continue
			}
			if err := readColumn(group.ColumnChunks()[column.ColumnIndex], column, columnName(names), rows); err != nil {
				return fmt.Errorf("%s: column %q: %w", path, columnName(names), err)
			}
		}
		for _, x := range rows {
			inDecoder = false
			more, err := emit(x)
			if err != nil || !more {
				return err
			}
			inDecoder = true
		}
		done += len(rows)
	}
	return nil
}

// columnName is a leaf's path without the groups that the format puts between a list and its elements.
func columnName(path []string) string {
	var keep []string
	for i, p := range path {
		if p == "list" && i+2 == len(path) && (path[i+1] == "element" || path[i+1] == "item") {
			break
		}
		keep = append(keep, p)
	}
	return strings.Join(keep, ".")
}

// readColumn adds one leaf column to all rows of a group.
func readColumn(chunk parquet.ColumnChunk, column parquet.LeafColumn, name string, rows []*row) error {
	pages := chunk.Pages()
	defer pages.Close()
	values := make([]parquet.Value, 256)
	at := -1
	for {
		page, err := pages.ReadPage()
		if err == io.EOF {
			if at != len(rows)-1 {
				return fmt.Errorf("%d values for %d rows", at+1, len(rows))
			}
			return nil
		}
		if err != nil {
			return err
		}
		for reader := page.Values(); ; {
			n, err := reader.ReadValues(values)
			for _, v := range values[:n] {
				if v.RepetitionLevel() == 0 {
					if at++; at >= len(rows) {
						return fmt.Errorf("more values than the %d rows", len(rows))
					}
				}
				fields := rows[max(at, 0)].fields
				if column.MaxRepetitionLevel == 0 {
					fields[name] = value(v)
					continue
				}
				list, _ := fields[name].([]any)
				if list == nil {
					list = []any{}
				}
				if v.DefinitionLevel() == column.MaxDefinitionLevel {
					list = append(list, value(v))
				}
				fields[name] = list
			}
			if err == io.EOF {
				break
			}
			if err != nil {
				return err
			}
		}
		parquet.Release(page)
	}
}

func value(v parquet.Value) any {
	switch {
	case v.IsNull():
		return nil
	case v.Kind() == parquet.Boolean:
		return v.Boolean()
	case v.Kind() == parquet.Int32:
		return int64(v.Int32())
	case v.Kind() == parquet.Int64:
		return v.Int64()
	case v.Kind() == parquet.Float:
		return float64(v.Float())
	case v.Kind() == parquet.Double:
		return v.Double()
	}
	return string(v.ByteArray())
}
