//go:build unix

package atomicfile

import (
	"errors"
	"os"
	"syscall"
)

// SyncDir forces the entries of a folder (a rename, a removal) to the disk.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, errors.ErrUnsupported) {
		return err // some network file systems cannot sync a folder; that is not the user's mistake
	}
	return nil
}
