// Package mapfile maps files into memory, read-only. Where the system has no such call, or where a mapping would keep a
// file from being replaced (Windows), it reads them instead.
package mapfile

import (
	"fmt"
	"io"
	"os"
	"unsafe"
)

// Open is the contents of the regular file at path, at an address that suits every element type, and the function that
// gives the memory back. The mapping outlives the file's name, not its truncation: writers must replace a file, as
// atomicfile does, and never shorten one in place. Writing to the memory faults.
func Open(path string) (data []byte, unmap func() error, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	size := info.Size()
	switch {
	case !info.Mode().IsRegular():
		return nil, nil, fmt.Errorf("%s: not a regular file", path)
	case int64(int(size)) != size:
		return nil, nil, fmt.Errorf("%s: %d bytes do not fit this machine's address space", path, size)
	case size == 0: // which mmap refuses
		return []byte{}, func() error { return nil }, nil
	}
	if data, unmap, err = load(f, int(size)); err != nil {
		return nil, nil, fmt.Errorf("%s: map %d bytes: %w", path, size, err)
	}
	return data, unmap, nil
}

// Read reads size bytes of r into memory that is aligned for every element type.
func Read(r io.Reader, size int) ([]byte, error) {
	words := make([]uint64, size/8+1)
	data := unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), size)
	_, err := io.ReadFull(r, data)
	return data, err
}
