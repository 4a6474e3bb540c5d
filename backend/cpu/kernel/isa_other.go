//go:build purego || (!amd64 && !arm64)

package kernel

const (
	hasNEON   = false
	hasAVX2   = false
	hasAVX512 = false
)
