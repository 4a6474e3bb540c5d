package attention

import (
	"math"
	"sync"
)

// Rope is rotary position embedding in the rotate-half convention over the whole head dimension: pair (i, i + K/2) turns by
// position * frequency_i. Logits depend on differences of positions alone, so an operator with a finite window may count
// positions from anywhere; tables then stay small however long the sequence is.
type Rope struct {
	frequencies []float64 // K/2
	mu          sync.Mutex
	cos32       []float32 // [rows, K/2]
	sin32       []float32
}

// NewRope is the usual table: frequency_i = theta^(-2i/K). K must be even.
func NewRope(keyDim int, theta float64) *Rope {
	f := make([]float64, keyDim/2)
	for i := range f {
		f[i] = math.Pow(theta, -2*float64(i)/float64(keyDim))
	}
	return NewRopeFrequencies(f)
}

// NewRopeFrequencies is a table of given frequencies in radians per token, one for each pair.
func NewRopeFrequencies(f []float64) *Rope { return &Rope{frequencies: f} }

// Dim is K.
func (r *Rope) Dim() int { return 2 * len(r.frequencies) }

// Frequency is the angle in radians by which pair i turns from one token to the next.
func (r *Rope) Frequency(i int) float64 { return r.frequencies[i] }

// Table is cosines and sines in float32 (computed in float64) for positions 0 to at least rows-1, row-major [rows, K/2]. It
// is shared and grows; callers only read.
func (r *Rope) Table(rows int) (cos, sin []float32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	half := len(r.frequencies)
	if have := len(r.cos32) / half; have < rows {
		rows = max(rows, 2*have, 256)
		cos, sin := make([]float32, rows*half), make([]float32, rows*half)
		copy(cos, r.cos32)
		copy(sin, r.sin32)
		for p := have; p < rows; p++ {
			for i, f := range r.frequencies {
				s, c := math.Sincos(float64(p) * f)
				cos[p*half+i], sin[p*half+i] = float32(c), float32(s)
			}
		}
		r.cos32, r.sin32 = cos, sin
	}
	return r.cos32, r.sin32
}
