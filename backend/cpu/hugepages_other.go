//go:build !linux

package cpu

// preferHugePages does nothing here.
func preferHugePages([]byte) {}
