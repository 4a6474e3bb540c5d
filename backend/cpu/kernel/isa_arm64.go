//go:build arm64 && !purego

package kernel

const (
	hasNEON   = true
	hasAVX2   = false
	hasAVX512 = false
)
