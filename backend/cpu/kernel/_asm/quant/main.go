// Command quant writes the assembly for quantised weights, quant_amd64.s: dot products with 8-bit activations for AVX2 and for
// AVX-512 with VNNI, the widening of weights, the rounding of activations.
//
// A dot product goes over groups of 8 blocks of 32, a whole block of the types of 256. First the group's scales are made one vector,
// which also multiplies the group's sums of activations (what offsets and minima need), and kept in memory; then each block's
// integers meet its 32 activations, and its 8 partial sums are scaled by a broadcast from there.
package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// A format is one type of weights: its block's size, and where in it are the integers and, if any, their fifth bits.
type format struct {
	name         string
	bytes        int
	quants, high int
	minimum      bool // an addend, or a subtrahend, beside the scale
	offset       int  // what the stored integer is too large by
	super        bool // 256 elements
}

var formats = []format{
	{name: "Q4_0", bytes: 18, quants: 2, offset: 8},
	{name: "Q4_1", bytes: 20, quants: 4, minimum: true},
	{name: "Q5_0", bytes: 22, quants: 6, high: 2, offset: 16},
	{name: "Q5_1", bytes: 24, quants: 8, high: 4, minimum: true},
	{name: "Q8_0", bytes: 34, quants: 2},
	{name: "Q4_K", bytes: 144, quants: 16, minimum: true, super: true},
	{name: "Q5_K", bytes: 176, quants: 48, high: 16, minimum: true, super: true},
	{name: "Q6_K", bytes: 210, super: true},
}

func main() {
	ConstraintExpr("amd64,!purego")
	for _, f := range formats {
		dot(f, false)
		if f.name != "Q6_K" { // its scales change within a sum of VNNI
			dot(f, true)
		}
		if !f.super && f.high == 0 && f.name != "Q8_0" {
			eight(f)
		}
		widen(f)
	}
	activate()
	Generate()
}

var constants = map[string]Mem{}

// constant is 32 bytes of read-only data.
func constant(name string, at func(i int) byte) Mem {
	m, ok := constants[name]
	if !ok {
		m = GLOBL("quant"+name, RODATA|NOPTR)
		for i := range 32 {
			DATA(i, U8(at(i)))
		}
		constants[name] = m
	}
	return m
}

func held(name string, at func(i int) byte) reg.VecVirtual {
	v := YMM()
	VMOVDQU(constant(name, at), v)
	return v
}

func each(b byte) func(int) byte { return func(int) byte { return b } }

// word repeats a number of 4 bytes.
func word(w uint32) func(int) byte { return func(i int) byte { return byte(w >> (i % 4 * 8)) } }

// A kernel is one function under construction.
type kernel struct {
	format
	vnni  bool
	w     reg.Register
	masks struct{ low, shifts, spread, bits, sixteen, ones reg.VecVirtual }
}

func (k *kernel) prepare() {
	m := &k.masks
	if k.name != "Q8_0" {
		m.low = held("Low", each(15))
	}
	if !k.super && k.name != "Q8_0" {
		m.shifts = held("Shifts", func(i int) byte { return []byte{0, 4}[i/16] * byte(b2i(i%4 == 0)) })
	}
	if k.high > 0 {
		m.sixteen = held("Sixteen", each(16))
		if !k.super {
			m.spread = held("Spread", func(i int) byte { return byte(i / 8) })
			m.bits = held("Bits", func(i int) byte { return 1 << (i % 8) })
		}
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// open loads the stored integers of the block of 32 at offset at as bytes. For Q8_0 they are signed.
func (k *kernel) open(at int) reg.VecVirtual {
	u := YMM()
	if k.name == "Q8_0" {
		VMOVDQU(Mem{Base: k.w, Disp: at + k.quants}, u)
		return u
	}
	VBROADCASTI128(Mem{Base: k.w, Disp: at + k.quants}, u)
	VPSRLVD(k.masks.shifts, u, u)
	VPAND(k.masks.low, u, u)
	if k.high > 0 {
		h := YMM()
		VPBROADCASTD(Mem{Base: k.w, Disp: at + k.high}, h)
		VPSHUFB(k.masks.spread, h, h)
		VPAND(k.masks.bits, h, h)
		VPCMPEQB(k.masks.bits, h, h)
		VPAND(k.masks.sixteen, h, h)
		VPOR(h, u, u)
	}
	return u
}

// openSuper calls f with the integers of every block of 32 of a block of 256: unsigned but for Q6_K.
func (k *kernel) openSuper(f func(b int, u reg.VecVirtual)) {
	if k.name == "Q6_K" {
		k.openSix(f)
		return
	}
	var high reg.VecVirtual
	if k.high > 0 {
		high = YMM()
		VMOVDQU(Mem{Base: k.w, Disp: k.high}, high)
	}
	for b := range 8 {
		u := YMM()
		VMOVDQU(Mem{Base: k.w, Disp: k.quants + b/2*32}, u)
		if b%2 == 1 {
			VPSRLW(U8(4), u, u)
		}
		VPAND(k.masks.low, u, u)
		if k.high > 0 { // bit b comes to place 4
			h := YMM()
			switch {
			case b < 4:
				VPSLLW(U8(4-b), high, h)
			case b == 4:
				VMOVDQA(high, h)
			default:
				VPSRLW(U8(b-4), high, h)
			}
			VPAND(k.masks.sixteen, h, h)
			VPOR(h, u, u)
		}
		f(b, u)
	}
}

// openSix gives the integers of Q6_K, signed.
func (k *kernel) openSix(f func(b int, v reg.VecVirtual)) {
	pair, less := held("Pair", each(0x30)), held("Less", each(32))
	for b := range 8 {
		half, part := b/4, b%4
		u, h := YMM(), YMM()
		VMOVDQU(Mem{Base: k.w, Disp: 64*half + part%2*32}, u)
		if part >= 2 {
			VPSRLW(U8(4), u, u)
		}
		VPAND(k.masks.low, u, u)
		VMOVDQU(Mem{Base: k.w, Disp: 128 + 32*half}, h) // bits 2 part and up come to places 4 and 5
		switch {
		case part < 2:
			VPSLLW(U8(4-2*part), h, h)
		case part == 3:
			VPSRLW(U8(2), h, h)
		}
		VPAND(pair, h, h)
		VPOR(h, u, u)
		VPSUBB(less, u, u)
		f(b, u)
	}
}

// superScales makes d s_b and e m_b of the 8 blocks of Q4_K and Q5_K.
func (k *kernel) superScales() (scales, minima reg.VecVirtual) {
	x := XMM()
	VMOVD(Mem{Base: k.w}, x)
	VCVTPH2PS(x, x)
	d, e := YMM(), YMM()
	VBROADCASTSS(x, d)
	VPERMILPS(U8(1), x, x)
	VBROADCASTSS(x, e)
	var u [3]reg.GPVirtual
	for i := range u {
		u[i] = GP32()
		MOVL(Mem{Base: k.w, Disp: 4 + 4*i}, u[i])
	}
	// eight puts two words' bytes, the lower four numbers and the upper four, in a vector times factor.
	eight := func(six reg.Register, low reg.Register, factor reg.VecVirtual) reg.VecVirtual {
		first, second := GP32(), GP32()
		MOVL(six, first)
		ANDL(U32(0x3f3f3f3f), first)
		MOVL(six, second)
		SHRL(U8(2), second)
		ANDL(U32(0x30303030), second)
		ANDL(U32(0x0f0f0f0f), low)
		ORL(low, second)
		v, y := XMM(), YMM()
		VMOVD(first, v)
		VPINSRD(U8(1), second, v, v)
		VPMOVZXBD(v, y)
		VCVTDQ2PS(y, y)
		VMULPS(factor, y, y)
		return y
	}
	low := GP32()
	MOVL(u[2], low)
	SHRL(U8(4), u[2])
	return eight(u[0], low, d), eight(u[1], u[2], e)
}

// sixScales makes the 16 scales of Q6_K words at to, and returns d.
func (k *kernel) sixScales(to Mem) reg.VecVirtual {
	s := YMM()
	VPMOVSXBW(Mem{Base: k.w, Disp: 192}, s)
	VMOVDQU(s, to)
	bits, x, d := GP32(), XMM(), YMM()
	MOVWLZX(Mem{Base: k.w, Disp: 208}, bits) // the block's last bytes
	VMOVD(bits, x)
	VCVTPH2PS(x, x)
	VBROADCASTSS(x, d)
	return d
}

// function names a function of the format, to be told apart by instruction set.
func (k *kernel) function(what string) string {
	if k.vnni {
		return "quant" + what + k.name + "VNNI"
	}
	return "quant" + what + k.name + "AVX2"
}

// widen writes the float32 of whole blocks: a product and a sum of exact numbers.
func widen(f format) {
	k := &kernel{format: f}
	TEXT(k.function("Widen"), NOSPLIT, "func(blocks int, src *byte, dst *float32)")
	Pragma("noescape")
	Doc(k.function("Widen") + " decodes blocks of weights.")
	scratch := AllocLocal(64)
	blocks := Load(Param("blocks"), GP64())
	k.w = Load(Param("src"), GP64())
	dst := Load(Param("dst"), GP64())
	k.prepare()
	Label("block")
	// write decodes 32 elements, 16 with each scale, to place at.
	write := func(at int, u reg.VecVirtual, scale [2]reg.VecVirtual, addend reg.VecVirtual) {
		x := u.AsX()
		for i := range 4 {
			if i == 2 {
				x = XMM()
				VEXTRACTI128(U8(1), u, x)
			}
			from := x
			if i%2 == 1 {
				from = XMM()
				VPSRLDQ(U8(8), x, from)
			}
			y := YMM()
			if k.signed() {
				VPMOVSXBD(from, y)
			} else {
				VPMOVZXBD(from, y)
			}
			VCVTDQ2PS(y, y)
			if addend == nil {
				VMULPS(scale[i/2], y, y)
			} else {
				VFMADD213PS(addend, scale[i/2], y)
			}
			VMOVUPS(y, Mem{Base: dst, Disp: at*4 + 32*i})
		}
	}
	size := 32
	switch {
	case !f.super:
		x, d := XMM(), YMM()
		VMOVD(Mem{Base: k.w}, x)
		VCVTPH2PS(x, x)
		VBROADCASTSS(x, d)
		var addend reg.VecVirtual
		if f.minimum {
			addend = YMM()
			VPERMILPS(U8(1), x, x)
			VBROADCASTSS(x, addend)
		} else if f.offset > 0 {
			addend = YMM()
			VMULPS(constant(fmt.Sprintf("Minus%d", f.offset), word(minus(f.offset))), d, addend)
		}
		write(0, k.open(0), [2]reg.VecVirtual{d, d}, addend)
	case f.name == "Q6_K":
		size = 256
		d := k.sixScales(scratch)
		k.openSuper(func(b int, u reg.VecVirtual) {
			var scale [2]reg.VecVirtual
			for i := range scale {
				s, bits, x := YMM(), GP32(), XMM()
				MOVWLSX(scratch.Offset(4*b+2*i), bits)
				VMOVD(bits, x)
				VCVTDQ2PS(x, x)
				VBROADCASTSS(x, s)
				VMULPS(d, s, s)
				scale[i] = s
			}
			write(32*b, u, scale, nil)
		})
	default:
		size = 256
		scales, minima := k.superScales()
		VXORPS(constant("Sign", word(1<<31)), minima, minima)
		VMOVUPS(scales, scratch)
		VMOVUPS(minima, scratch.Offset(32))
		k.openSuper(func(b int, u reg.VecVirtual) {
			s, m := YMM(), YMM()
			VBROADCASTSS(scratch.Offset(4*b), s)
			VBROADCASTSS(scratch.Offset(32+4*b), m)
			write(32*b, u, [2]reg.VecVirtual{s, s}, m)
		})
	}
	ADDQ(U32(f.bytes), k.w)
	ADDQ(U32(4*size), dst)
	DECQ(blocks)
	JNZ(LabelRef("block"))
	VZEROUPPER()
	RET()
}

// signed reports whether open gives signed bytes.
func (k *kernel) signed() bool { return k.name == "Q8_0" || k.name == "Q6_K" }
