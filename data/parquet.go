package data

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/parquet-go/parquet-go"
)

// readParquet reads the text column of a parquet file, a page at a time; nulls are left out.
func readParquet(r io.ReaderAt, size int64, path, field string, emit func(Document) error) (err error) {
	row, inDecoder := 0, true
	defer func() { // the decoder trusts the file: a damaged page may panic it
		if p := recover(); p != nil {
			if !inDecoder {
				panic(p)
			}
			err = fmt.Errorf("%s: damaged parquet file near row %d: %v", path, row+1, p)
		}
	}()
	file, err := parquet.OpenFile(r, size, parquet.SkipPageIndex(true), parquet.SkipBloomFilters(true))
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	column, ok := file.Schema().Lookup(field)
	if !ok {
		var names []string
		for _, c := range file.Schema().Columns() {
			names = append(names, strings.Join(c, "."))
		}
		return fmt.Errorf("%s: no column %q (there is: %s)", path, field, strings.Join(names, ", "))
	}
	if column.MaxRepetitionLevel > 0 || column.Node.Type().Kind() != parquet.ByteArray {
		return fmt.Errorf("%s: column %q is %v, want one string a row", path, field, column.Node.Type())
	}
	values := make([]parquet.Value, 256)
	for _, group := range file.RowGroups() {
		pages := group.ColumnChunks()[column.ColumnIndex].Pages()
		err := eachValue(pages, values, func(v parquet.Value) error {
			row++
			text := v.ByteArray()
			if !utf8.Valid(text) {
				return fmt.Errorf("%s: row %d: column %q is not UTF-8 text", path, row, field)
			}
			inDecoder = false // and stays so when emit panics
			err := emit(Document{Text: string(text), Source: path, Line: row})
			inDecoder = true
			return err
		})
		if pageErr := (*pageError)(nil); errors.As(err, &pageErr) {
			err = fmt.Errorf("%s: near row %d: %w", path, row+1, pageErr.error)
		}
		if err = errors.Join(err, pages.Close()); err != nil {
			return err
		}
	}
	return nil
}

// pageError is an error of the decoder, as opposed to one of the caller.
type pageError struct{ error }

func eachValue(pages parquet.Pages, values []parquet.Value, do func(parquet.Value) error) error {
	for {
		page, err := pages.ReadPage()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return &pageError{err}
		}
		reader := page.Values()
		for {
			n, err := reader.ReadValues(values)
			for _, v := range values[:n] {
				if err := do(v); err != nil {
					return err
				}
			}
			if err == io.EOF {
				break
			}
			if err != nil {
				return &pageError{err}
			}
		}
		parquet.Release(page)
	}
}
