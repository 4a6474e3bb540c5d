package tensor_test

import (
	"bytes"
	"math"
	"math/rand/v2"
	"testing"

	"nha/tensor"
	"nha/weights"
)

// TestQuantizeRoundTrip: a block encoded and decoded is off by at most half a step, and a second time not at all.
func TestQuantizeRoundTrip(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, c := range []struct {
		dtype tensor.DType
		steps float64 // from 0 to the largest magnitude
	}{{tensor.Q8_0, 127}, {tensor.Q4_0, 8}} {
		x := make([]float32, 64*32)
		for i := range x {
			x[i] = float32(r.NormFloat64())
		}
		clear(x[:32])
		q := tensor.New(c.dtype, tensor.Of(64, 32))
		tensor.Quantize(q, x)
		y := make([]float32, len(x))
		tensor.Dequantize(y, q)
		for b := 0; b < len(x); b += 32 {
			var most float64
			for _, v := range x[b : b+32] {
				most = max(most, math.Abs(float64(v)))
			}
			limit := most/c.steps/2 + most/2048 // the scale is rounded to a half
			if c.dtype == tensor.Q4_0 {
				limit += most / c.steps / 2 // 8 steps on the side opposite to the extreme do not exist
			}
			for i := b; i < b+32; i++ {
				if d := math.Abs(float64(x[i] - y[i])); d > limit {
					t.Fatalf("%v: element %d is %v, was %v: off by %v, limit %v", c.dtype, i, y[i], x[i], d, limit)
				}
				if q.Value(i) != float64(y[i]) {
					t.Fatalf("%v: Value(%d) is %v, Dequantize says %v", c.dtype, i, q.Value(i), y[i])
				}
			}
		}
	}
}

// TestConvertQuantized: Convert rounds what Dequantize gives, in every float type and in pieces, and encodes from all of them.
func TestConvertQuantized(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	const n = 3 * 4096 / 2
	x := make([]float32, n)
	for _, d := range []tensor.DType{tensor.Q4_0, tensor.Q4_1, tensor.Q5_0, tensor.Q5_1, tensor.Q8_0, tensor.Q4_K, tensor.Q5_K, tensor.Q6_K} {
		q := tensor.New(d, tensor.Of(6, n/6))
		elements, size := d.Block()
		for i := range q.Bytes() {
			q.Bytes()[i] = byte(r.Uint32())
		}
		for b := range n / elements { // scales stay finite
			block := q.Bytes()[b*size:][:size]
			for _, at := range []int{1, 3, size - 1} {
				block[at] &= 0xbf
			}
		}
		tensor.Dequantize(x, q)
		for _, to := range []tensor.DType{tensor.F32, tensor.F16, tensor.BF16, tensor.F64} {
			y := tensor.New(to, q.Shape)
			tensor.Convert(y, q)
			one := tensor.New(to, tensor.Of(1))
			for i, v := range x {
				one.SetValue(0, float64(v))
				if y.Value(i) != one.Value(0) {
					t.Fatalf("%v as %v: element %d is %v, want %v", d, to, i, y.Value(i), one.Value(0))
				}
			}
		}
	}
	for _, from := range []tensor.DType{tensor.F32, tensor.F16, tensor.BF16} {
		source := tensor.New(from, tensor.Of(6, n/6))
		for i := range n {
			source.SetValue(i, r.NormFloat64())
			x[i] = float32(source.Value(i))
		}
		got, want := tensor.New(tensor.Q8_0, source.Shape), tensor.New(tensor.Q8_0, source.Shape)
		tensor.Convert(got, source)
		tensor.Quantize(want, x)
		if string(got.Bytes()) != string(want.Bytes()) {
			t.Errorf("Q8_0 from %v differs from Quantize", from)
		}
	}
}

// TestBlocksTruth: blocks of every type decode, and values encode, as ggml says to the bit (scripts/gguf-truth wrote the file).
func TestBlocksTruth(t *testing.T) {
	f, err := weights.Open("testdata/quant.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	get := func(name string) tensor.Tensor {
		x, ok := f.Tensor(name)
		if !ok {
			t.Fatalf("no tensor %s", name)
		}
		return x
	}
	for _, d := range []tensor.DType{tensor.Q4_0, tensor.Q4_1, tensor.Q5_0, tensor.Q5_1, tensor.Q8_0, tensor.Q4_K, tensor.Q5_K, tensor.Q6_K} {
		want := get(d.String() + ".values")
		got := make([]float32, want.Len())
		tensor.Dequantize(got, tensor.FromBytes(d, want.Shape, get(d.String()+".blocks").Bytes()))
		for i, x := range want.F32() {
			if math.Float32bits(got[i]) != math.Float32bits(x) {
				t.Fatalf("%v: element %d is %v, want %v", d, i, got[i], x)
			}
		}
	}
	source := get("source")
	for _, d := range []tensor.DType{tensor.Q8_0, tensor.Q4_0} {
		got := tensor.New(d, source.Shape)
		tensor.Quantize(got, source.F32())
		if !bytes.Equal(got.Bytes(), get(d.String()+".encoded").Bytes()) {
			t.Errorf("%v is encoded to other bytes", d)
		}
	}
}
