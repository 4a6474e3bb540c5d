package data

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// Spec says where the text is.
type Spec struct {
	// Paths are files, folders (every file in them, recursively, but hidden ones) and glob patterns; folders and patterns
	// are walked in the order of their names. What a file is, its name says: .jsonl, .ndjson and .json hold one JSON
	// object a line; .parquet a table; anything else is text. All but parquet may be compressed (.gz, .zst).
	Paths []string
	// Field is the JSONL field or the parquet column with the text; "" means "text".
	Field string
	// Separator is a line that stands between the documents of a text file; "" makes every text file one document.
	Separator string
}

func (s Spec) field() string {
	if s.Field == "" {
		return "text"
	}
	return s.Field
}

// Document is one text, or a piece of a long one.
type Document struct {
	Text   string
	Source string // the file
	Line   int    // the line (of a parquet file: the row) where it begins, from 1
	// Continues: the same document goes on in the next item. Long text files come in pieces of about a megabyte, cut where
	// a tokenizer cuts too.
	Continues bool
}

// Documents streams the documents of spec, in order; documents without any text are left out. It ends at the first error,
// which names the file and the place in it.
func Documents(spec Spec) iter.Seq2[Document, error] {
	return func(yield func(Document, error) bool) {
		stop := errors.New("stop")
		files, err := Files(spec.Paths)
		for _, path := range files {
			if err == nil {
				err = readFile(path, spec, new(atomic.Int64), func(d Document) error {
					if !yield(d, nil) {
						return stop
					}
					return nil
				})
			}
		}
		if err != nil && !errors.Is(err, stop) {
			yield(Document{}, err)
		}
	}
}

// Files lists the files that paths (files, folders, patterns) stand for. A path that stands for no file is an error.
func Files(paths []string) ([]string, error) {
	if len(paths) == 0 {
		return nil, errors.New("no data: name a file, a folder or a pattern")
	}
	var files []string
	for _, path := range paths {
		info, err := os.Stat(path)
		before := len(files)
		switch {
		case err == nil && info.IsDir():
			if files, err = appendFolder(files, path); err != nil {
				return nil, err
			}
		case err == nil:
			files = append(files, path)
		case errors.Is(err, fs.ErrNotExist) && strings.ContainsAny(path, "*?["):
			matches, err := filepath.Glob(path)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", path, err)
			}
			slices.Sort(matches)
			for _, match := range matches {
				if info, err := os.Stat(match); err != nil {
					return nil, err
				} else if info.IsDir() {
					if files, err = appendFolder(files, match); err != nil {
						return nil, err
					}
				} else {
					files = append(files, match)
				}
			}
		default:
			return nil, err
		}
		if len(files) == before {
			return nil, fmt.Errorf("%s: no data files there", path)
		}
	}
	return files, nil
}

func appendFolder(files []string, root string) ([]string, error) {
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if path != root && strings.HasPrefix(d.Name(), ".") {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		info, err := os.Stat(path) // through links to files, as download caches lay them; links to folders may be loops
		if err != nil {
			return err
		}
		if info.Mode().IsRegular() {
			files = append(files, path)
		}
		return nil
	})
	return files, err
}

// format is what a file's name says about it.
type format struct{ kind, compression string }

const (
	kindText    = "text"
	kindJSONL   = "jsonl"
	kindParquet = "parquet"
)

func formatOf(path string) format {
	var f format
	name := strings.ToLower(path)
	switch ext := filepath.Ext(name); ext {
	case ".gz", ".zst":
		f.compression, name = ext[1:], strings.TrimSuffix(name, ext)
	}
	switch filepath.Ext(name) {
	case ".jsonl", ".ndjson", ".json":
		f.kind = kindJSONL
	case ".parquet":
		f.kind = kindParquet
	default:
		f.kind = kindText
	}
	return f
}

// readFile calls emit with the documents of one file and adds what it reads of it, compressed, to read.
func readFile(path string, spec Spec, read *atomic.Int64, emit func(Document) error) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s: not a regular file", path)
	case info.Size() == 0:
		return fmt.Errorf("%s: empty file", path)
	}
	documents := 0
	count := func(d Document) error {
		if d.Text == "" {
			return nil
		}
		documents++
		return emit(d)
	}
	format := formatOf(path)
	c := &counter{f: f, read: read}
	switch {
	case format.kind == kindParquet && format.compression != "":
		err = fmt.Errorf("%s: parquet files are compressed inside: decompress this one", path)
	case format.kind == kindParquet:
		err = readParquet(c, info.Size(), path, spec.field(), count)
	default:
		var r io.Reader
		var done func()
		if r, done, err = decompress(c, format.compression); err != nil {
			err = fmt.Errorf("%s: not a .%s file: %w", path, format.compression, err)
			break
		}
		defer done()
		if format.kind == kindJSONL {
			err = readJSONL(r, path, spec.field(), count)
		} else {
			err = readText(r, path, spec.Separator, count)
		}
	}
	if err == nil && documents == 0 {
		err = fmt.Errorf("%s: holds no text", path)
	}
	return err
}

// counter counts what is read of a file.
type counter struct {
	f    *os.File
	read *atomic.Int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.f.Read(p)
	c.read.Add(int64(n))
	return n, err
}

func (c *counter) ReadAt(p []byte, offset int64) (int, error) {
	n, err := c.f.ReadAt(p, offset)
	c.read.Add(int64(n))
	return n, err
}

// maxWindow is how far back a .zst file may refer, and so the memory it may cost: four times what `zstd --long` asks for.
const maxWindow = 512 << 20

func decompress(r io.Reader, compression string) (io.Reader, func(), error) {
	switch compression {
	case "gz":
		z, err := gzip.NewReader(r)
		return z, func() {}, err
	case "zst":
		z, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	}
	return r, func() {}, nil
}

// readError names the file of an error of the stream below.
func readError(path string, err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%s: the compressed data ends in the middle: truncated?", path)
	}
	return fmt.Errorf("%s: %w", path, err)
}

// appendLine appends the next line, its end included, or at most limit bytes of it, to dst.
func appendLine(dst []byte, r *bufio.Reader, limit int) ([]byte, error) {
	start := len(dst)
	for {
		piece, err := r.ReadSlice('\n')
		dst = append(dst, piece...)
		if err != bufio.ErrBufferFull || len(dst)-start >= limit {
			return dst, err
		}
	}
}
