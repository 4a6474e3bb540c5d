package main

import (
	"fmt"
	"math"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// ahead is how far the kernels fetch. On Zen 3, 1e9 weights a second out of memory on one core: Q4_0 17 without, 23, 25 and 25 at
// 1, 2 and 4 KB (out of L1: 27); Q8_0 11, 13, 16 to 18 and 15 to 20 (26).
const ahead = 2048

// group is the bytes of 8 blocks of 32.
func (k *kernel) group() int {
	if k.super {
		return k.bytes
	}
	return 8 * k.bytes
}

func minus(n int) uint32 { return math.Float32bits(-float32(n)) }

// dot is the product of rows of weights with one row of 8-bit activations.
func dot(f format, vnni bool) {
	k := &kernel{format: f, vnni: vnni}
	if vnni && f.name == "Q8_0" { // its bytes made unsigned
		k.offset = 128
	}
	TEXT(k.function("Dot"), NOSPLIT, "func(rows, blocks int, w *byte, wRow int, p *int8, dx, sx, out *float32)")
	Pragma("noescape")
	Doc(k.function("Dot") + " is quantDotGeneric.")
	scratch := AllocLocal(64)
	rows := Load(Param("rows"), GP64())
	row := Load(Param("w"), GP64())
	wRow := Load(Param("wRow"), GP64())
	out := Load(Param("out"), GP64())
	k.prepare()
	if !vnni {
		k.masks.ones = held("Ones", func(i int) byte { return byte(1 - i%2) })
	}

	Label("row")
	k.w = GP64()
	MOVQ(row, k.w)
	p := Load(Param("p"), GP64())
	dx := Load(Param("dx"), GP64())
	sx := Load(Param("sx"), GP64())
	n := Load(Param("blocks"), GP64())
	acc := make([]reg.VecVirtual, 4)
	for i := range acc {
		acc[i] = YMM()
		VXORPS(acc[i], acc[i], acc[i])
	}
	correction := YMM() // sum of d sx, or of m sx
	VXORPS(correction, correction, correction)

	// block adds one block of 32, its 8 sums times scale.
	block := func(b int, u reg.VecVirtual, activations Mem, scale func(t reg.VecVirtual)) {
		t := k.multiply(b, u, activations, scratch)
		VCVTDQ2PS(t, t)
		scale(t)
	}
	broadcast := func(b int) func(t reg.VecVirtual) {
		return func(t reg.VecVirtual) {
			if vnni {
				VFMADD231PS_BCST(scratch.Offset(4*b), t, acc[b%4])
				return
			}
			s := YMM()
			VBROADCASTSS(scratch.Offset(4*b), s)
			VFMADD231PS(s, t, acc[b%4])
		}
	}
	advance := func(blocks, bytes int) {
		ADDQ(U32(bytes), k.w)
		ADDQ(U32(32*blocks), p)
		ADDQ(U32(4*blocks), dx)
		ADDQ(U32(4*blocks), sx)
	}
	if !f.super {
		SUBQ(U8(8), n)
		JLT(LabelRef("tail"))
	}
	Label("group")
	for at := 0; at < k.group(); at += 64 {
		PREFETCHT0(Mem{Base: k.w, Disp: ahead + at})
	}
	k.groupScales(scratch, dx, sx, correction)
	if f.super {
		k.openSuper(func(b int, u reg.VecVirtual) { block(b, u, Mem{Base: p, Disp: 32 * b}, broadcast(b)) })
		advance(8, f.bytes)
		SUBQ(U8(8), n)
		JNZ(LabelRef("group"))
	} else {
		for b := range 8 {
			block(b, k.open(b*f.bytes), Mem{Base: p, Disp: 32 * b}, broadcast(b))
		}
		advance(8, 8*f.bytes)
		SUBQ(U8(8), n)
		JGE(LabelRef("group"))
		Label("tail")
		ADDQ(U8(8), n)
		JZ(LabelRef("reduce"))
		Label("one")
		s := k.oneScale(dx, sx, correction)
		block(0, k.open(0), Mem{Base: p}, func(t reg.VecVirtual) { VFMADD231PS(s, t, acc[0]) })
		advance(1, f.bytes)
		DECQ(n)
		JNZ(LabelRef("one"))
		Label("reduce")
	}
	VADDPS(acc[1], acc[0], acc[0])
	VADDPS(acc[3], acc[2], acc[2])
	VADDPS(acc[2], acc[0], acc[0])
	switch {
	case f.super && f.minimum:
		VSUBPS(correction, acc[0], acc[0])
	case f.minimum:
		VADDPS(correction, acc[0], acc[0])
	case k.offset > 0:
		VFMADD231PS(constant(fmt.Sprintf("Minus%d", k.offset), word(minus(k.offset))), correction, acc[0])
	}
	half, other := acc[0].AsX(), XMM()
	VEXTRACTF128(U8(1), acc[0], other)
	VADDPS(other, half, half)
	for _, shuffle := range []int{0x0e, 0x01} {
		VPERMILPS(U8(shuffle), half, other)
		VADDPS(other, half, half)
	}
	VMOVSS(half, Mem{Base: out})
	ADDQ(U8(4), out)
	ADDQ(wRow, row)
	DECQ(rows)
	JNZ(LabelRef("row"))
	VZEROUPPER()
	RET()
}

// multiply is the 8 sums of four products each of u and the activations, as integers; of Q6_K times their 8-bit scales.
func (k *kernel) multiply(b int, u reg.VecVirtual, activations, scratch Mem) reg.VecVirtual {
	t := YMM()
	if k.vnni {
		if k.name == "Q8_0" {
			VPXOR(constant("Half", each(128)), u, u)
		}
		VPXOR(t, t, t)
		VPDPBUSD(activations, u, t)
		return t
	}
	ones := k.masks.ones
	if k.signed() { // |u| times the activation with u's sign
		VMOVDQU(activations, t)
		VPSIGNB(u, t, t)
		VPABSB(u, u)
		VPMADDUBSW(t, u, t)
	} else {
		VPMADDUBSW(activations, u, t)
	}
	if k.name == "Q6_K" {
		ones = YMM()
		VPBROADCASTD(scratch.Offset(32+4*b), ones)
		VPSHUFB(constant("Two", func(i int) byte { return byte(i/16*2 + i%2) }), ones, ones)
	}
	VPMADDWD(ones, t, t)
	return t
}

// groupScales writes the scales of 8 blocks, times those of the activations, to scratch, and adds to the correction.
func (k *kernel) groupScales(scratch Mem, dx, sx reg.Register, correction reg.VecVirtual) {
	var d reg.VecVirtual
	switch {
	case k.name == "Q6_K":
		d = k.sixScales(scratch.Offset(32))
	case k.super:
		var minima reg.VecVirtual
		d, minima = k.superScales()
		VFMADD231PS(Mem{Base: sx}, minima, correction)
	case k.minimum:
		// d and m of two blocks to a half register, in an order that one shuffle each sorts.
		var pairs [2]reg.VecVirtual
		for i, order := range [2][4]int{{0, 1, 4, 5}, {2, 3, 6, 7}} {
			x := XMM()
			VMOVD(Mem{Base: k.w, Disp: order[0] * k.bytes}, x)
			for lane := 1; lane < 4; lane++ {
				VPINSRD(U8(lane), Mem{Base: k.w, Disp: order[lane] * k.bytes}, x, x)
			}
			pairs[i] = YMM()
			VCVTPH2PS(x, pairs[i])
		}
		m := YMM()
		d = YMM()
		VSHUFPS(U8(0x88), pairs[1], pairs[0], d)
		VSHUFPS(U8(0xdd), pairs[1], pairs[0], m)
		VFMADD231PS(Mem{Base: sx}, m, correction)
	default:
		x := XMM()
		VMOVD(Mem{Base: k.w}, x)
		for b := 1; b < 8; b++ {
			VPINSRW(U8(b), Mem{Base: k.w, Disp: b * k.bytes}, x, x)
		}
		d = YMM()
		VCVTPH2PS(x, d)
		if k.offset > 0 {
			VFMADD231PS(Mem{Base: sx}, d, correction)
		}
	}
	VMULPS(Mem{Base: dx}, d, d)
	VMOVUPS(d, scratch)
}

// oneScale is groupScales for a single block: its scale in all lanes, its correction in one.
func (k *kernel) oneScale(dx, sx reg.Register, correction reg.VecVirtual) reg.VecVirtual {
	bits, x, d := GP32(), XMM(), YMM()
	first := func(at int) {
		MOVWLZX(Mem{Base: k.w, Disp: at}, bits)
		VMOVD(bits, x)
		VCVTPH2PS(x, d)
	}
	if k.minimum || k.offset > 0 {
		if k.minimum {
			first(2)
		} else {
			first(0)
		}
		s := XMM()
		VMOVSS(Mem{Base: sx}, s)
		VFMADD231PS(s.AsY(), d, correction)
	}
	first(0)
	VMULSS(Mem{Base: dx}, d.AsX(), d.AsX())
	VBROADCASTSS(d.AsX(), d)
	return d
}

// activate rounds activations to 8 bits, 32 at a time.
func activate() {
	TEXT("quantActivateAVX2", NOSPLIT, "func(blocks int, x *float32, p *int8, dx, sx *float32)")
	Pragma("noescape")
	Doc("quantActivateAVX2 is quantActivateGeneric.")
	blocks := Load(Param("blocks"), GP64())
	x := Load(Param("x"), GP64())
	p := Load(Param("p"), GP64())
	dx := Load(Param("dx"), GP64())
	sx := Load(Param("sx"), GP64())
	magnitude := held("Magnitude", word(1<<31-1))
	order := held("Order", func(i int) byte { return []byte{0, 4, 1, 5, 2, 6, 3, 7}[i/4] * byte(b2i(i%4 == 0)) })
	tiny := constant("Tiny", word(math.Float32bits(1.0/(1<<100))))
	part := constant("Part", word(math.Float32bits(1.0/127)))
	Label("block")
	v, m := make([]reg.VecVirtual, 4), make([]reg.VecVirtual, 4)
	for i := range v {
		v[i], m[i] = YMM(), YMM()
		VMOVUPS(Mem{Base: x, Disp: 32 * i}, v[i])
		VPAND(magnitude, v[i], m[i])
	}
	top := horizontal(m, VPMAXSD)
	d, inverse := XMM(), YMM()
	VMULSS(part, top, d)
	VMOVSS(d, Mem{Base: dx})
	VMAXSS(tiny, top, top)
	VMOVSS(constant("Most", word(math.Float32bits(127))), inverse.AsX())
	VDIVSS(top, inverse.AsX(), inverse.AsX())
	VBROADCASTSS(inverse.AsX(), inverse)
	for i := range v {
		VMULPS(inverse, v[i], v[i])
		VCVTPS2DQ(v[i], v[i])
		VMOVDQA(v[i], m[i])
	}
	VPACKSSDW(v[1], v[0], v[0])
	VPACKSSDW(v[3], v[2], v[2])
	VPACKSSWB(v[2], v[0], v[0])
	VPERMD(v[0], order, v[0])
	VMOVDQU(v[0], Mem{Base: p})
	sum := horizontal(m, VPADDD)
	VCVTDQ2PS(sum, sum)
	VMULSS(d, sum, sum)
	VMOVSS(sum, Mem{Base: sx})
	ADDQ(U32(128), x)
	ADDQ(U8(32), p)
	ADDQ(U8(4), dx)
	ADDQ(U8(4), sx)
	DECQ(blocks)
	JNZ(LabelRef("block"))
	VZEROUPPER()
	RET()
}

// horizontal folds four registers with op into lane 0 of one.
func horizontal(m []reg.VecVirtual, op func(...Op)) reg.VecVirtual {
	op(m[1], m[0], m[0])
	op(m[3], m[2], m[2])
	op(m[2], m[0], m[0])
	low, other := m[0].AsX(), XMM()
	VEXTRACTI128(U8(1), m[0], other)
	op(other, low, low)
	for _, shuffle := range []int{0x4e, 0xb1} {
		VPSHUFD(U8(shuffle), low, other)
		op(other, low, low)
	}
	return low.(reg.VecVirtual)
}
