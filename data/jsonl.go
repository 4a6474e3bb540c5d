package data

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"
)

const maxLine = 1 << 30

// readJSONL reads one JSON object a line; blank lines are left out.
func readJSONL(r io.Reader, path, field string, emit func(Document) error) error {
	b := bufio.NewReaderSize(r, 1<<16)
	var line []byte
	var offset int64
	for number := 1; ; number++ {
		var err error
		line, err = appendLine(line[:0], b, maxLine)
		if err == bufio.ErrBufferFull {
			return fmt.Errorf("%s: line %d is longer than %d bytes: not a JSONL file?", path, number, maxLine)
		}
		if err != nil && err != io.EOF {
			return readError(path, err)
		}
		size := len(line)
		if number == 1 {
			line = bytes.TrimPrefix(line, []byte("\uFEFF"))
		}
		if len(bytes.TrimSpace(line)) > 0 {
			text, parseErr := parseLine(line, field)
			var syntax *json.SyntaxError
			switch {
			case !utf8.Valid(line):
				return notText(path, offset+int64(invalidAt(line)))
			case err == io.EOF && errors.As(parseErr, &syntax) && syntax.Offset >= int64(len(line)):
				return fmt.Errorf("%s: line %d is cut in the middle: truncated?", path, number)
			case parseErr != nil:
				return fmt.Errorf("%s: line %d: %w", path, number, parseErr)
			}
			if err := emit(Document{Text: text, Source: path, Line: number}); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		offset += int64(size)
	}
}

// parseLine is the text of {"field": "text", ...}.
func parseLine(line []byte, field string) (string, error) {
	var object map[string]json.RawMessage
	if err := json.Unmarshal(line, &object); err != nil || object == nil {
		return "", fmt.Errorf("not a JSON object: %w", err)
	}
	value, ok := object[field]
	if !ok {
		return "", fmt.Errorf("no field %q (there is: %s)", field, strings.Join(slices.Sorted(maps.Keys(object)), ", "))
	}
	var text string
	if len(value) == 0 || value[0] != '"' {
		return "", fmt.Errorf("field %q is not a string", field)
	}
	return text, json.Unmarshal(value, &text)
}
