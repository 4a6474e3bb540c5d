package cpu

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"nha/backend"
	"nha/tensor"
)

// TestHalfPrecisionWeights: matmul nt and embed read weights in half precision as if they had been widened first, for one row
// and for many, on every instruction set; no other product takes them.
func TestHalfPrecisionWeights(t *testing.T) {
	b, err := Open(2)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	r := rand.New(rand.NewPCG(1, 2))
	random := func(d tensor.DType, dims ...int) tensor.Tensor {
		x := tensor.New(d, tensor.Of(dims...))
		for i := range x.Len() {
			x.SetValue(i, r.NormFloat64())
		}
		return x
	}
	eachSet(t, func(t *testing.T) {
		for _, d := range []tensor.DType{tensor.BF16, tensor.F16} {
			for _, m := range []int{1, 5, 70} {
				name := fmt.Sprintf("%v %d rows", d, m)
				x, w, bias := random(tensor.F32, m, 130), random(d, 37, 130), random(tensor.F32, 37)
				wide := tensor.New(tensor.F32, w.Shape)
				tensor.Convert(wide, w)
				got := random(tensor.F32, m, 37)
				want := got.Clone()
				backend.MatMul(b, backend.NT, backend.Gradient{Tensor: got, Add: true}, x, w, bias)
				backend.MatMul(b, backend.NT, backend.Gradient{Tensor: want, Add: true}, x, wide, bias)
				if e := tensor.MaxError(got, want); !(e <= 1e-6) {
					t.Errorf("%s: matmul is off by %.2g", name, e)
				}
				ids := tensor.FromI32([]int32{36, 0, 36}, 3)
				rows, wideRows := tensor.New(tensor.F32, tensor.Of(3, 130)), tensor.New(tensor.F32, tensor.Of(3, 130))
				backend.Embed(b, rows, w, ids)
				backend.Embed(b, wideRows, wide, ids)
				if tensor.MaxError(rows, wideRows) != 0 {
					t.Errorf("%s: embed differs", name)
				}
			}
		}
	})
	defer func() {
		if recover() == nil {
			t.Error("matmul nn took weights in half precision")
		}
	}()
	backend.MatMul(b, backend.NN, backend.Gradient{Tensor: random(tensor.F32, 2, 3)}, random(tensor.F32, 2, 4), random(tensor.BF16, 4, 3), tensor.Tensor{})
}
