// Package atomicfile writes files that are never seen half-written.
//
// The contents go to a temporary file in the same folder, are forced to the disk, and only then take the file's name;
// the folder is forced to the disk last. A crash at any moment leaves the old file or the new one under the name, and at
// worst a temporary file ".NAME.tmp-RANDOM" beside it.
package atomicfile

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
)

// WriteFile replaces the file at path by what write writes, with permissions perm (before umask). When write or the disk
// fails, the old file is untouched, the temporary file is gone and the error names path.
func WriteFile(path string, perm fs.FileMode, write func(w io.Writer) error) error {
	f, err := createTemp(path, perm)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, cause(err))
	}
	renamed := false
	defer func() { // also when write panics
		if !renamed {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	b := bufio.NewWriterSize(f, 1<<18)
	if err := write(b); err != nil {
		return fmt.Errorf("write %s: %w", path, cause(err))
	}
	for _, step := range []func() error{b.Flush, f.Sync, f.Close, func() error { return os.Rename(f.Name(), path) }} {
		if err := step(); err != nil {
			return fmt.Errorf("write %s: %w", path, cause(err))
		}
	}
	renamed = true
	if err := SyncDir(filepath.Dir(path)); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// Write is WriteFile of data.
func Write(path string, perm fs.FileMode, data []byte) error {
	return WriteFile(path, perm, func(w io.Writer) error { _, err := w.Write(data); return err })
}

const mark = ".tmp-"

// createTemp is os.CreateTemp with permissions that respect the umask.
func createTemp(path string, perm fs.FileMode) (*os.File, error) {
	dir, name := filepath.Split(path)
	for {
		f, err := os.OpenFile(fmt.Sprintf("%s.%s%s%08x", dir, name, mark, rand.Uint32()), os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
		if !errors.Is(err, fs.ErrExist) {
			return f, err
		}
	}
}

// cause drops the name of the temporary file from err: the user asked for another one.
func cause(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) && strings.Contains(p.Path, mark) {
		return p.Err
	}
	var l *os.LinkError
	if errors.As(err, &l) && strings.Contains(l.Old, mark) {
		return l.Err
	}
	return err
}
