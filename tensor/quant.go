package tensor

// Quantised blocks, ggml's: a row is cut into blocks of 32 or 256 elements that share scales.
//
//	Q4_0, Q5_0, Q8_0   x = d q              q signed, one half-precision d for 32 elements
//	Q4_1, Q5_1         x = d q + m          q unsigned, d and m for 32
//	Q4_K, Q5_K         x = d s q - e m      256 elements; s, m: six bits for every 32, d and e half-precision
//	Q6_K               x = d s q            256 elements; s: eight bits for every 16
//
// Every product below has at most 24 significant bits (11 of a half, 8 of a scale, 6 of q at the most), so it is exact in
// float32: neither the order of factors nor a fused multiply-add can change a bit of what Dequantize gives.

import (
	"encoding/binary"
	"fmt"
	"math"
)

// maxBlock is the longest block of any type, in elements.
const maxBlock = 256

// Dequantize decodes src, a host tensor of a quantised type, into dst of equal length. The result is that of ggml's
// dequantize_row functions to the bit.
func Dequantize(dst []float32, src Tensor) {
	if !src.DType.Quantized() || len(dst) != src.Len() {
		panic(fmt.Sprintf("tensor: dequantize %v %v into %d elements", src.DType, src.Shape, len(dst)))
	}
	decode := decoders[src.DType]
	n, size := src.DType.Block()
	for b := src.data; len(dst) > 0; dst, b = dst[n:], b[size:] {
		decode(dst[:n:n], b[:size:size])
	}
}

var decoders = [...]func(y []float32, b []byte){Q4_0: decodeQ4, Q4_1: decodeQ4Min, Q5_0: decodeQ5, Q5_1: decodeQ5Min, Q8_0: decodeQ8,
	Q4_K: decodeQ4K, Q5_K: decodeQ5K, Q6_K: decodeQ6K}

func half(b []byte) float32 { return F16ToF32(binary.LittleEndian.Uint16(b)) }

// decodeQ4: d, 16 bytes; the low nibbles are elements 0..15, the high ones 16..31.
func decodeQ4(y []float32, b []byte) {
	d := half(b)
	for j, q := range b[2:18] {
		y[j], y[j+16] = d*float32(int(q&15)-8), d*float32(int(q>>4)-8)
	}
}

// decodeQ4Min: d, m, 16 bytes.
func decodeQ4Min(y []float32, b []byte) {
	d, m := half(b), half(b[2:])
	for j, q := range b[4:20] {
		y[j], y[j+16] = d*float32(q&15)+m, d*float32(q>>4)+m
	}
}

// decodeQ5: d, the fifth bits of all 32 elements, 16 bytes.
func decodeQ5(y []float32, b []byte) {
	d, high := half(b), binary.LittleEndian.Uint32(b[2:])
	for j, q := range b[6:22] {
		y[j] = d * float32(int(q&15|byte(high>>j&1)<<4)-16)
		y[j+16] = d * float32(int(q>>4|byte(high>>(j+16)&1)<<4)-16)
	}
}

// decodeQ5Min: d, m, the fifth bits, 16 bytes.
func decodeQ5Min(y []float32, b []byte) {
	d, m, high := half(b), half(b[2:]), binary.LittleEndian.Uint32(b[4:])
	for j, q := range b[8:24] {
		y[j] = d*float32(q&15|byte(high>>j&1)<<4) + m
		y[j+16] = d*float32(q>>4|byte(high>>(j+16)&1)<<4) + m
	}
}

// decodeQ8: d, 32 signed bytes.
func decodeQ8(y []float32, b []byte) {
	d := half(b)
	for j, q := range b[2:34] {
		y[j] = d * float32(int8(q))
	}
}

// scaleMin is scale and minimum number j of 8, six bits each, out of the 12 bytes of Q4_K and Q5_K: the first four lie in
// the low bits of bytes 0..3 and 4..7, the others' low nibbles in bytes 8..11 and their upper two bits above the first four.
func scaleMin(packed []byte, j int) (scale, minimum float32) {
	if j < 4 {
		return float32(packed[j] & 63), float32(packed[j+4] & 63)
	}
	return float32(packed[j+4]&15 | packed[j-4]>>6<<4), float32(packed[j+4]>>4 | packed[j]>>6<<4)
}

// decodeQ4K: d, e, 12 bytes of scales, 128 bytes; 32 of them hold 64 elements, low nibbles first.
func decodeQ4K(y []float32, b []byte) {
	d, e, packed, quants := half(b), half(b[2:]), b[4:16], b[16:144]
	for j := range 8 {
		scale, minimum := scaleMin(packed, j)
		scale, minimum = d*scale, e*minimum
		for l, q := range quants[j/2*32:][:32] {
			y[32*j+l] = scale*float32(q>>(j%2*4)&15) - minimum
		}
	}
}

// decodeQ5K: d, e, 12 bytes of scales, 32 bytes of fifth bits (bit j is that of the j-th 32 elements), 128 bytes.
func decodeQ5K(y []float32, b []byte) {
	d, e, packed, high, quants := half(b), half(b[2:]), b[4:16], b[16:48], b[48:176]
	for j := range 8 {
		scale, minimum := scaleMin(packed, j)
		scale, minimum = d*scale, e*minimum
		for l, q := range quants[j/2*32:][:32] {
			y[32*j+l] = scale*float32(q>>(j%2*4)&15|high[l]>>j&1<<4) - minimum
		}
	}
}

// decodeQ6K: 128 bytes of low nibbles, 64 of upper bit pairs, 16 signed scales, d. Elements come in halves of 128; in a half
// 64 bytes hold the low nibbles of the first 64 elements and the high ones those of the last, 32 bytes the pairs.
func decodeQ6K(y []float32, b []byte) {
	d := half(b[208:])
	for h := range 2 {
		low, high, scales := b[64*h:][:64], b[128+32*h:][:32], b[192+8*h:][:8]
		for j := range 4 { // 32 elements with one shift
			for l := range 32 {
				q := int(low[j%2*32+l]>>(j/2*4)&15|high[l]>>(2*j)&3<<4) - 32
				y[128*h+32*j+l] = d * float32(int8(scales[2*j+l/16])) * float32(q)
			}
		}
	}
}

// Quantize encodes src into dst, a host tensor of type Q8_0 or Q4_0 and of equal length, as ggml's reference encoder does.
// Values must be finite: a block has no place for others.
func Quantize(dst Tensor, src []float32) {
	if dst.Len() != len(src) {
		panic(fmt.Sprintf("tensor: quantize %d elements into %v", len(src), dst.Shape))
	}
	var encode func(b []byte, x []float32)
	switch dst.DType {
	case Q8_0:
		encode = encodeQ8
	case Q4_0:
		encode = encodeQ4
	default:
		panic("tensor: no encoder for " + dst.DType.String())
	}
	n, size := dst.DType.Block()
	for b := dst.data; len(src) > 0; src, b = src[n:], b[size:] {
		encode(b[:size:size], src[:n:n])
	}
}

// encodeQ8: d = max|x| / 127, q = x / d to the nearest, halves away from zero.
func encodeQ8(b []byte, x []float32) {
	var most float32
	for _, v := range x {
		most = max(most, float32(math.Abs(float64(v))))
	}
	d := most / 127
	binary.LittleEndian.PutUint16(b, F32ToF16(d))
	inverse := reciprocal(d)
	for j, v := range x {
		b[2+j] = byte(int8(math.Round(float64(v * inverse))))
	}
}

// encodeQ4: the element of largest magnitude becomes -8, so d has the opposite sign; q = min(15, floor(x / d + 8.5)).
func encodeQ4(b []byte, x []float32) {
	var extreme, most float32
	for _, v := range x {
		if a := float32(math.Abs(float64(v))); a > most {
			extreme, most = v, a
		}
	}
	d := extreme / -8
	binary.LittleEndian.PutUint16(b, F32ToF16(d))
	inverse := reciprocal(d)
	for j := range 16 {
		b[2+j] = nibble(x[j], inverse) | nibble(x[j+16], inverse)<<4
	}
}

func nibble(x, inverse float32) byte {
	return byte(min(15, int8(float32(x*inverse)+8.5))) // the conversion keeps the product from being fused
}

func reciprocal(d float32) float32 {
	if d == 0 {
		return 0
	}
	return 1 / d
}
