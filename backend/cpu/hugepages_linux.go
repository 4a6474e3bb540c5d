package cpu

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

const hugePage = 2 << 20

// preferHugePages asks for pages of 2 MiB behind a large buffer that nothing has touched yet: with pages of 4 KiB a stream of
// weights loses the prefetcher and the TLB at every page. A refusal costs speed alone.
func preferHugePages(b []byte) {
	if len(b) < 2*hugePage {
		return
	}
	address := uintptr(unsafe.Pointer(unsafe.SliceData(b)))
	from := (hugePage - address%hugePage) % hugePage
	to := uintptr(len(b)) - (address+uintptr(len(b)))%hugePage
	if from < to {
		_ = unix.Madvise(b[from:to], unix.MADV_HUGEPAGE)
	}
}
