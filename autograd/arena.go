package autograd

import (
	"math/bits"

	"nha/backend"
	"nha/tensor"
)

// arena hands out a backend's memory and takes it back for reuse: a training step asks for the same sizes as the step
// before, so after the first nothing is allocated. Sizes are rounded up to one of eight classes between powers of two, so
// that the varying lengths of generation find each other's blocks too.
type arena struct {
	b     backend.Backend
	free  map[int][]tensor.Tensor // blocks (U8) by size class
	bytes int                     // held in all, in use or free
}

// class rounds n up to a multiple of an eighth of its power of two, at least 64 bytes.
func class(n int) int {
	n = max(n, 64)
	step := 1 << max(0, bits.Len(uint(n-1))-4)
	step = max(step, 64)
	return (n + step - 1) / step * step
}

func (a *arena) alloc(d tensor.DType, s tensor.Shape) (view, block tensor.Tensor) {
	c := class(s.Len() * d.Size())
	if list := a.free[c]; len(list) > 0 {
		block = list[len(list)-1]
		a.free[c] = list[:len(list)-1]
	} else {
		block = a.b.Alloc(tensor.U8, tensor.Of(c))
		a.bytes += c
	}
	return block.Reinterpret(d, s), block
}

func (a *arena) release(block tensor.Tensor) {
	if block.Present() {
		a.free[block.Len()] = append(a.free[block.Len()], block)
	}
}

func (a *arena) close() {
	for _, list := range a.free {
		for _, block := range list {
			a.b.Free(block)
		}
	}
	clear(a.free)
	a.bytes = 0
}
