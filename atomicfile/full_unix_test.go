//go:build unix

package atomicfile

import (
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// A disk that takes no more, here a limit on the size of a file: the error names the file, and nothing is left of the try.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.txt")
	if err := WriteFile(path, 0o644, text("old")); err != nil {
		t.Fatal(err)
	}
	signal.Ignore(syscall.SIGXFSZ)
	defer signal.Reset(syscall.SIGXFSZ)
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	small := limit
	small.Cur = 1 << 20
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &small); err != nil {
		t.Fatal(err)
	}
	err := WriteFile(path, 0o644, text(strings.Repeat("new", 1<<20)))
	buffered := WriteFile(path, 0o644, text(strings.Repeat("n", 1<<20+1))) // fails when the rest of the buffer is written
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{err, buffered} {
		if err == nil || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), mark) {
			t.Errorf("error %v", err)
		}
	}
	if got, err := os.ReadFile(path); string(got) != "old" {
		t.Errorf("%d bytes under the name (%v)", len(got), err)
	}
	mustHold(t, dir, path, "old")
}
