package data

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
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

// Open opens a file to be read, decompressed as its name says (.gz, .zst).
func Open(path string) (io.ReadCloser, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	compression := formatOf(path).compression
	r, done, err := decompress(f, compression)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: not a .%s file: %w", path, compression, err), f.Close())
	}
	return &opened{r, f, done}, nil
}

// opened is a file with its decompressor.
type opened struct {
	io.Reader
	f    *os.File
	done func()
}

func (o *opened) Close() error {
	o.done()
	return o.f.Close()
}

func objects(path string, emit func(file string, line int, raw []byte) error) error {
	format := formatOf(path)
	if format.kind != kindJSONL {
		return fmt.Errorf("%s: want lines of JSON in a .jsonl file", path)
	}
	r, err := Open(path)
	if err != nil {
		return err
	}
	defer r.Close()
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
