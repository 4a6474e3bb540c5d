//go:build !unix

package weights

import "fmt"

// load reads the file at path into memory: a file that is mapped cannot be replaced on Windows, and checkpoints are.
func load(path string) (data []byte, unmap func() error, err error) {
	f, size, err := open(path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	if data, err = readAll(f, size); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	return data, func() error { return nil }, nil
}
