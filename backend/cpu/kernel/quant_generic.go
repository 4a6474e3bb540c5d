package kernel

import "encoding/binary"

// The quantised types in Go: what the assembly computes, and all there is on machines without any. A decoder opens one block
// into its integers; everything else follows from those.

// quantOpen is an opened block: w_i = scale_(i/16) q_i - least_(i/32).
type quantOpen struct {
	q     [256]int8
	scale [16]float32
	least [8]float32
}

var quantOpeners = [quantTypes]func(o *quantOpen, b []byte){
	Q4_0: openQ4_0, Q4_1: openQ4_1, Q5_0: openQ5_0, Q5_1: openQ5_1, Q8_0: openQ8_0, Q4_K: openQ4_K, Q5_K: openQ5_K, Q6_K: openQ6_K}

func init() {
	register("generic", func() {
		quantActivate = quantActivateGeneric
		for t := range quantTypes {
			quants[t] = quantKernel{quantDotGeneric(t), quantWidenGeneric(t)}
		}
	})
}

func quantDotGeneric(t Quant) func(rows, blocks int, w []byte, wRow int, p []int8, dx, sx []float32, out []float32) {
	open, layout := quantOpeners[t], quantLayout[t]
	return func(rows, blocks int, w []byte, wRow int, p []int8, dx, sx []float32, out []float32) {
		var o quantOpen
		for i := range rows {
			sum, at := float32(0), w[i*wRow:]
			for b := 0; b < blocks; b += layout.elements / quantBlock {
				open(&o, at)
				at = at[layout.bytes:]
				for j := range layout.elements / quantBlock {
					x, q := p[(b+j)*quantBlock:(b+j+1)*quantBlock], o.q[j*quantBlock:(j+1)*quantBlock]
					var low, high int32
					for l := range 16 {
						low += int32(x[l]) * int32(q[l])
						high += int32(x[l+16]) * int32(q[l+16])
					}
					sum += dx[b+j]*(o.scale[2*j]*float32(low)+o.scale[2*j+1]*float32(high)) - o.least[j]*sx[b+j]
				}
			}
			out[i] = sum
		}
	}
}

func quantWidenGeneric(t Quant) func(dst []float32, src []byte) {
	open, layout := quantOpeners[t], quantLayout[t]
	return func(dst []float32, src []byte) {
		var o quantOpen
		for ; len(dst) > 0; dst, src = dst[layout.elements:], src[layout.bytes:] {
			open(&o, src)
			for i := range dst[:layout.elements] {
				dst[i] = o.scale[i/16]*float32(o.q[i]) - o.least[i/32]
			}
		}
	}
}

func quantHalf(b []byte) float32 { return gemmFromF16(binary.LittleEndian.Uint16(b)) }

// nibbles opens 16 bytes, low nibbles first, with fifth bits from high, less offset.
func (o *quantOpen) nibbles(b []byte, high uint32, offset int8) {
	for i, v := range b[:16] {
		o.q[i] = int8(v&15|byte(high>>i&1)<<4) - offset
		o.q[i+16] = int8(v>>4|byte(high>>(i+16)&1)<<4) - offset
	}
}

// of sets the scale and the addend of a block of 32.
func (o *quantOpen) of(d, m float32) { o.scale[0], o.scale[1], o.least[0] = d, d, -m }

func openQ4_0(o *quantOpen, b []byte) { o.of(quantHalf(b), 0); o.nibbles(b[2:], 0, 8) }
func openQ4_1(o *quantOpen, b []byte) { o.of(quantHalf(b), quantHalf(b[2:])); o.nibbles(b[4:], 0, 0) }
func openQ5_0(o *quantOpen, b []byte) {
	o.of(quantHalf(b), 0)
	o.nibbles(b[6:], binary.LittleEndian.Uint32(b[2:]), 16)
}

func openQ5_1(o *quantOpen, b []byte) {
	o.of(quantHalf(b), quantHalf(b[2:]))
	o.nibbles(b[8:], binary.LittleEndian.Uint32(b[4:]), 0)
}

func openQ8_0(o *quantOpen, b []byte) {
	o.of(quantHalf(b), 0)
	for i, v := range b[2:34] {
		o.q[i] = int8(v)
	}
}

// minima opens the scales and minima of Q4_K and Q5_K: d, e and 12 bytes of six-bit numbers, the last four of each split.
func (o *quantOpen) minima(b []byte) {
	d, e, packed := quantHalf(b), quantHalf(b[2:]), b[4:16]
	for j := range 4 {
		lower := [2]byte{packed[j] & 63, packed[j+4] & 63}
		upper := [2]byte{packed[j+8]&15 | packed[j]>>6<<4, packed[j+8]>>4 | packed[j+4]>>6<<4}
		for i, pair := range [2][2]byte{lower, upper} {
			at := j + 4*i
			o.scale[2*at], o.least[at] = d*float32(pair[0]), e*float32(pair[1])
			o.scale[2*at+1] = o.scale[2*at]
		}
	}
}

func openQ4_K(o *quantOpen, b []byte) {
	o.minima(b)
	for j := range 8 {
		for l, v := range b[16+j/2*32:][:32] {
			o.q[32*j+l] = int8(v >> (j % 2 * 4) & 15)
		}
	}
}

func openQ5_K(o *quantOpen, b []byte) {
	o.minima(b)
	high := b[16:48]
	for j := range 8 {
		for l, v := range b[48+j/2*32:][:32] {
			o.q[32*j+l] = int8(v>>(j%2*4)&15 | high[l]>>j&1<<4)
		}
	}
}

// openQ6_K: of each half of 128, 64 bytes hold low nibbles (the low ones of elements 0..63, the high ones of 64..127) and 32 the upper
// pairs of bits, two bits for every 32 elements.
func openQ6_K(o *quantOpen, b []byte) {
	d := quantHalf(b[208:])
	for i, s := range b[192:208] {
		o.scale[i] = d * float32(int8(s))
	}
	clear(o.least[:])
	for half := range 2 {
		low, high := b[64*half:], b[128+32*half:]
		for i := range 128 {
			o.q[128*half+i] = int8(low[i%64]>>(i/64*4)&15|high[i%32]>>(i/32*2)&3<<4) - 32
		}
	}
}
