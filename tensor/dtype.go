// Package tensor holds what every room shares: element types, shapes and dense row-major tensors on the host or on a
// device. It imports nothing of the project.
package tensor

import (
	"fmt"
	"math"
)

// DType is an element type. Its names are those of the safetensors format.
type DType uint8

// The element types that nha reads, writes or computes in.
const (
	Invalid DType = iota
	F64
	F32
	F16
	BF16
	I64
	I32
	U8

	// Quantised blocks, ggml's layouts and names: weights only. An element has no address of its own; a block has.
	Q4_0
	Q4_1
	Q5_0
	Q5_1
	Q8_0
	Q4_K
	Q5_K
	Q6_K
)

var dtypes = [...]struct {
	name            string
	elements, bytes int // of a block; one element where the type is not quantised
}{Invalid: {"invalid", 1, 0}, F64: {"F64", 1, 8}, F32: {"F32", 1, 4}, F16: {"F16", 1, 2}, BF16: {"BF16", 1, 2}, I64: {"I64", 1, 8}, I32: {"I32", 1, 4},
	U8: {"U8", 1, 1}, Q4_0: {"Q4_0", 32, 18}, Q4_1: {"Q4_1", 32, 20}, Q5_0: {"Q5_0", 32, 22}, Q5_1: {"Q5_1", 32, 24}, Q8_0: {"Q8_0", 32, 34},
	Q4_K: {"Q4_K", 256, 144}, Q5_K: {"Q5_K", 256, 176}, Q6_K: {"Q6_K", 256, 210}}

// Size is the number of bytes of one element. A quantised type has none: Bytes.
func (d DType) Size() int {
	if d.Quantized() {
		panic("tensor: an element of " + d.String() + " has no size")
	}
	return dtypes[d].bytes
}

// Block is the unit of storage: so many elements of a row in so many bytes. Rows are whole numbers of blocks.
func (d DType) Block() (elements, bytes int) { return dtypes[d].elements, dtypes[d].bytes }

// Bytes is the memory of n elements, which must be whole blocks.
func (d DType) Bytes(n int) int {
	if n%dtypes[d].elements != 0 {
		panic(fmt.Sprintf("tensor: %d elements are not whole blocks of %v", n, d))
	}
	return n / dtypes[d].elements * dtypes[d].bytes
}

// Quantized reports whether d stores blocks of small integers with scales.
func (d DType) Quantized() bool { return d >= Q4_0 }

// String is the safetensors name: F32, BF16, ...; ggml's for quantised types.
func (d DType) String() string { return dtypes[d].name }

// Float reports whether d is a floating-point type.
func (d DType) Float() bool { return d == F64 || d == F32 || d == F16 || d == BF16 }

// ParseDType reads a safetensors name (F32) or a Hugging Face config name (float32, bfloat16).
func ParseDType(name string) (DType, error) {
	switch name {
	case "F64", "float64":
		return F64, nil
	case "F32", "float32":
		return F32, nil
	case "F16", "float16":
		return F16, nil
	case "BF16", "bfloat16":
		return BF16, nil
	case "I64", "int64":
		return I64, nil
	case "I32", "int32":
		return I32, nil
	case "U8", "uint8":
		return U8, nil
	}
	return Invalid, fmt.Errorf("unknown dtype %q: use F64, F32, F16, BF16, I64, I32 or U8", name)
}

// BF16ToF32 widens a bfloat16; exact.
func BF16ToF32(b uint16) float32 { return math.Float32frombits(uint32(b) << 16) }

// F32ToBF16 rounds to the nearest bfloat16, ties to even; NaN stays NaN.
func F32ToBF16(f float32) uint16 {
	u := math.Float32bits(f)
	if u&0x7fffffff > 0x7f800000 {
		return uint16(u>>16) | 0x40
	}
	return uint16((u + 0x7fff + u>>16&1) >> 16)
}

// F16ToF32 widens an IEEE half; exact, subnormals included.
func F16ToF32(h uint16) float32 {
	sign, exponent, mantissa := uint32(h>>15)<<31, uint32(h>>10)&0x1f, uint32(h)&0x3ff
	switch {
	case exponent == 0x1f:
		return math.Float32frombits(sign | 0x7f800000 | mantissa<<13)
	case exponent != 0:
		return math.Float32frombits(sign | (exponent+112)<<23 | mantissa<<13)
	}
	f := float32(mantissa) * (1.0 / (1 << 24))
	return math.Float32frombits(sign | math.Float32bits(f))
}

// F32ToF16 rounds to the nearest IEEE half, ties to even; out of range becomes infinity.
func F32ToF16(f float32) uint16 {
	u := math.Float32bits(f)
	sign, u := uint16(u>>16)&0x8000, u&0x7fffffff
	switch {
	case u > 0x7f800000:
		return sign | 0x7e00
	case u >= 0x47800000: // 65536 and above, infinity
		return sign | 0x7c00
	case u < 0x38800000: // below 2^-14: subnormal, in units of 2^-24
		return sign | uint16(math.RoundToEven(float64(math.Float32frombits(u))*(1<<24)))
	}
	u += 0xfff + u>>13&1
	return sign | uint16((u-0x38000000)>>13) // a carry out of the mantissa reaches the exponent, and infinity, by itself
}
