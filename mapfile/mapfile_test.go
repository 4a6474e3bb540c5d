package mapfile

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"
)

func TestOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a")
	for _, size := range []int{0, 1, 7, 8, 9, 5000} {
		want := bytes.Repeat([]byte{byte(size)}, size)
		if err := os.WriteFile(path, want, 0o644); err != nil {
			t.Fatal(err)
		}
		data, unmap, err := Open(path)
		if err != nil || !bytes.Equal(data, want) {
			t.Fatalf("%d bytes: %v (%v)", size, data, err)
		}
		if size > 0 && uintptr(unsafe.Pointer(&data[0]))%8 != 0 {
			t.Fatal("misaligned")
		}
		if err := unmap(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOpenErrors(t *testing.T) {
	dir := t.TempDir()
	if _, _, err := Open(filepath.Join(dir, "absent")); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	if _, _, err := Open(dir); err == nil || !strings.Contains(err.Error(), dir+": not a regular file") {
		t.Fatal(err)
	}
}

func TestRead(t *testing.T) {
	for size := range 20 {
		want := bytes.Repeat([]byte{1}, size)
		got, err := Read(bytes.NewReader(want), size)
		if err != nil || !bytes.Equal(got, want) || uintptr(unsafe.Pointer(unsafe.SliceData(got)))%8 != 0 {
			t.Fatalf("%d bytes: %v (%v)", size, got, err)
		}
	}
	if _, err := Read(strings.NewReader("abc"), 4); err == nil {
		t.Fatal("a file that shrank was read")
	}
}
