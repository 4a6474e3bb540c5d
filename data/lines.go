package data

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
)

// maxObject is the length of a line of JSON that is still believed.
const maxObject = 64 << 20

// Objects calls emit with every line of JSON of the files that paths stand for (as Spec.Paths; .gz and .zst too), blank lines left out. raw is valid
// until emit returns. An error of emit ends it and comes back with the file and the line.
func Objects(paths []string, emit func(file string, line int, raw []byte) error) error {
	files, err := Files(paths)
	if err != nil {
		return err
	}
	for _, path := range files {
		if err := objects(path, emit); err != nil {
			return err
		}
	}
	return nil
}

func objects(path string, emit func(file string, line int, raw []byte) error) error {
	format := formatOf(path)
	if format.kind != kindJSONL {
		return fmt.Errorf("%s: want lines of JSON in a .jsonl file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	r, done, err := decompress(&counter{f: f, read: new(atomic.Int64)}, format.compression)
	if err != nil {
		return fmt.Errorf("%s: not a .%s file: %w", path, format.compression, err)
	}
	defer done()
	lines, line := bufio.NewReaderSize(r, 1<<16), []byte(nil)
	for n := 1; ; n++ {
		line, err = appendLine(line[:0], lines, maxObject)
		if len(line) >= maxObject {
			return fmt.Errorf("%s: line %d is longer than %d MB", path, n, maxObject>>20)
		}
		if raw := bytes.TrimSpace(line); len(raw) > 0 {
			if err := emit(path, n, raw); err != nil {
				return fmt.Errorf("%s: line %d: %w", path, n, err)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return readError(path, err)
		}
	}
}
