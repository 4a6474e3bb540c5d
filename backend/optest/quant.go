package optest

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"

	"nha/backend"
	"nha/tensor"
)

// Products and embeddings of quantised weights. The reference multiplies with the decoded weights w. Where activations x are rounded to
// 8 bits, 32 at a time with step max|x|/127, each is off by half a step at most, so an element of the product by
//
//	sum over blocks of (max|x| / 254) sum |w|      and what rounding in float32 adds: 2e-5 sum |x w|

var quantTypes = []tensor.DType{tensor.Q4_0, tensor.Q4_1, tensor.Q5_0, tensor.Q5_1, tensor.Q8_0, tensor.Q4_K, tensor.Q5_K, tensor.Q6_K}

// roundedRows is how many rows of activations the cpu backend rounds to 8 bits.
const roundedRows = 8

// drawBlocks is a tensor of random bits whose halves, the scales, are numbers of either sign between 2^-6 and 2^-4.
func drawBlocks(r *rand.Rand, t tensor.DType, s tensor.Shape) tensor.Tensor {
	x := tensor.New(t, s)
	b := x.Bytes()
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	halves := []int{0}
	switch t {
	case tensor.Q4_1, tensor.Q5_1, tensor.Q4_K, tensor.Q5_K:
		halves = []int{0, 2}
	case tensor.Q6_K:
		halves = []int{208}
	}
	_, size := t.Block()
	for at := 0; at < len(b); at += size {
		for _, h := range halves {
			binary.LittleEndian.PutUint16(b[at+h:], uint16(r.Uint32())&0x87ff|0x2400)
		}
	}
	return x
}

// quantised reports whether the case has quantised weights.
func (c *Case) quantised() bool {
	for _, x := range c.Inputs {
		if x.Blocks.Quantized() {
			return true
		}
	}
	return false
}

func quantMatmul(t tensor.DType, m, n, k int) *Case {
	c := matmul(backend.NT, m, n, k, true)
	c.Name = fmt.Sprintf("%v-%dx%dx%d", t, m, n, k)
	c.Inputs[1].Blocks, c.Backward, c.Wants = t, nil, nil
	c.Bound = func(b backend.Backend, in []tensor.Tensor, output int) []float64 {
		if b.Name() != "cpu" || m > roundedRows {
			return nil
		}
		x, w := in[0], make([]float32, n*k)
		tensor.Dequantize(w, in[1])
		var bound []float64
		for i := range m {
			for j := range n {
				most := 1e-5 // of the bias
				for p := 0; p < k; p += 32 {
					top, weight := 0.0, 0.0
					for l := p; l < p+32; l++ {
						a, v := math.Abs(x.Value(i*k+l)), math.Abs(float64(w[j*k+l]))
						top, weight, most = max(top, a), weight+v, most+2e-5*a*v
					}
					most += top / 254 * weight
				}
				bound = append(bound, float64(1+output)*most) // the second output is the product added to itself
			}
		}
		return bound
	}
	return c
}

func quantEmbed(t tensor.DType, rows, n int) *Case {
	c := embed(rows, n)
	c.Name = fmt.Sprintf("%v-%dx%d", t, rows, n)
	c.Inputs[0].Blocks, c.Backward, c.Wants = t, nil, nil
	return c
}
