//go:build linux || darwin

package kernel

import (
	"os"
	"syscall"
	"testing"
)

// lonelyPage is a page of memory between two that may not be touched: a read or write outside ends the test with a fault.
func lonelyPage(t *testing.T) []byte {
	t.Helper()
	page := os.Getpagesize()
	b, err := syscall.Mmap(-1, 0, 3*page, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Munmap(b) })
	for _, edge := range [][]byte{b[:page], b[2*page:]} {
		if err := syscall.Mprotect(edge, syscall.PROT_NONE); err != nil {
			t.Fatal(err)
		}
	}
	return b[page : 2*page]
}
