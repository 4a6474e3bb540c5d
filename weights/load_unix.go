//go:build unix

package weights

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// load maps the file at path. The mapping outlives the file's name, not its truncation: writers must replace a file, as
// Write does, and never shorten one in place.
func load(path string) (data []byte, unmap func() error, err error) {
	f, size, err := open(path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	if size == 0 {
		return nil, func() error { return nil }, nil // which mmap refuses; the header check says what is wrong
	}
	data, err = unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: map %d bytes: %w", path, size, err)
	}
	return data, func() error { return unix.Munmap(data) }, nil
}
