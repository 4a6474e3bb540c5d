//go:build !unix

package atomicfile

// SyncDir does nothing: this system has no way to force a folder to the disk.
func SyncDir(dir string) error { return nil }
