//go:build arm64 && !purego

package kernel

func init() {
	register("neon", func() { vectors.dot, vectors.axpy = vectorDotNEON, vectorAxpyNEON })
}

//go:noescape
func vectorDotNEON(x, y []float32) float32

//go:noescape
func vectorAxpyNEON(y []float32, a float32, x []float32)
