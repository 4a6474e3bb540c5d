package bench

import (
	"runtime"

	"nha/backend/cpu/kernel"
)

// streamBytes is far more than any cache holds.
const streamBytes = 256 << 20

// stream sums a range of a buffer in each task: as one stream, or as two halves multiplied.
type stream struct {
	x     []float32
	parts int
	two   bool
	sums  []float64
}

func (s *stream) Do(_, i int) {
	x := s.x[len(s.x)*i/s.parts : len(s.x)*(i+1)/s.parts]
	if half := len(x) / 2; s.two {
		s.sums[i] = float64(kernel.Dot(x[:half], x[half:2*half]))
	} else {
		s.sums[i] = float64(kernel.Sum(x))
	}
}

// readBandwidth is the bytes a second at which all processors together read memory: the best pass over a buffer much larger
// than the caches, summed by the kernels in use.
func readBandwidth(bytes, passes int) float64 {
	pool := kernel.NewPool(runtime.GOMAXPROCS(0))
	defer pool.Close()
	s := &stream{x: make([]float32, bytes/4), parts: 16 * pool.Threads()}
	for i := range s.x {
		s.x[i] = 1 // memory that was never written may be one page of zeros
	}
	s.sums = make([]float64, s.parts)
	best := 0.0
	for i := range passes {
		s.two = i%2 == 1
		best = max(best, float64(bytes)/elapsed(func() { pool.Run(s.parts, s) }))
	}
	return best
}
