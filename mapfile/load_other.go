//go:build !unix

package mapfile

import "os"

func load(f *os.File, size int) (data []byte, unmap func() error, err error) {
	data, err = Read(f, size)
	return data, func() error { return nil }, err
}
