package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// eight is dot for eight rows at a time, of a type of 4 bits. A lane belongs to a row: the eight rows' words of four bytes are brought
// side by side, 12 shuffles a block, and then the products of a block, 30,720 at most, are summed in 16 bits before they are widened and scaled
// once for all eight rows; nothing is added across lanes. 10 instructions to 32 weights where dot spends 14: on Zen 3, in caches, 35e9
// weights of Q4_0 a second where dot does 22 (rows of 576) and 26 (1536).
//
// Rows lie without gaps, and what is fetched is a line that is eight rows and a bit ahead. Out of memory, one busy core, rows of 576: 9.5e9
// weights a second without that, 20.2 eight rows ahead, 21.6 and 22.4 with 2 and 4 KB more.
func eight(f format) {
	k := &kernel{format: f}
	name := "quantEight" + f.name + "AVX2"
	TEXT(name, NOSPLIT, "func(groups, blocks int, w *byte, wRow int, p *int8, dx, sx, out *float32)")
	Pragma("noescape")
	Doc(name + " is quantDotGeneric for groups of eight rows.")
	groups := Load(Param("groups"), GP64())
	w := Load(Param("w"), GP64())
	wRow := Load(Param("wRow"), GP64())
	out := Load(Param("out"), GP64())
	low := held("Low", each(15))
	ones := held("Ones", func(i int) byte { return byte(1 - i%2) })

	Label("group")
	p := Load(Param("p"), GP64())
	dx := Load(Param("dx"), GP64())
	sx := Load(Param("sx"), GP64())
	n := Load(Param("blocks"), GP64())
	next, third, sixth := GP64(), GP64(), GP64()
	LEAQ(Mem{Base: w, Index: wRow, Scale: 8}, next)
	LEAQ(Mem{Base: w, Index: wRow, Scale: 2}, third)
	ADDQ(wRow, third)
	LEAQ(Mem{Base: third, Index: wRow, Scale: 2}, sixth)
	ADDQ(wRow, sixth)
	row := func(i, at int) Mem {
		m := Mem{Base: []reg.Register{w, third, sixth}[i/3], Disp: at}
		if i%3 > 0 {
			m.Index, m.Scale = wRow, uint8(i%3)
		}
		return m
	}
	sum, correction := YMM(), YMM()
	VXORPS(sum, sum, sum)
	VXORPS(correction, correction, correction)

	Label("block")
	for at := 0; at < 8*f.bytes; at += 64 {
		PREFETCHT0(Mem{Base: next, Disp: ahead + at})
	}
	d, m := k.eightScales(row)
	s := YMM()
	VBROADCASTSS(Mem{Base: sx}, s)
	VFMADD231PS(s, m, correction)

	// Lanes of y[j] are rows j and j+4; afterwards word j of all rows.
	var y [4]reg.VecVirtual
	for j := range y {
		y[j] = YMM()
		VMOVDQU(row(j, f.quants), y[j].AsX())
		VINSERTI128(U8(1), row(j+4, f.quants), y[j], y[j])
	}
	pair := func(a, b reg.VecVirtual, lower, upper func(...Op)) (reg.VecVirtual, reg.VecVirtual) {
		l, u := YMM(), YMM()
		lower(b, a, l)
		upper(b, a, u)
		return l, u
	}
	unpackLD, unpackHD := func(o ...Op) { VPUNPCKLDQ(o[0], o[1], o[2]) }, func(o ...Op) { VPUNPCKHDQ(o[0], o[1], o[2]) }
	unpackLQ, unpackHQ := func(o ...Op) { VPUNPCKLQDQ(o[0], o[1], o[2]) }, func(o ...Op) { VPUNPCKHQDQ(o[0], o[1], o[2]) }
	t0, t1 := pair(y[0], y[1], unpackLD, unpackHD)
	t2, t3 := pair(y[2], y[3], unpackLD, unpackHD)
	y[0], y[1] = pair(t0, t2, unpackLQ, unpackHQ)
	y[2], y[3] = pair(t1, t3, unpackLQ, unpackHQ)

	var total reg.VecVirtual
	for j := range y {
		u, a, b := YMM(), YMM(), YMM()
		VPAND(low, y[j], u)
		VPSRLW(U8(4), y[j], y[j])
		VPAND(low, y[j], y[j])
		VPBROADCASTD(Mem{Base: p, Disp: 4 * j}, a)
		VPBROADCASTD(Mem{Base: p, Disp: 16 + 4*j}, b)
		VPMADDUBSW(a, u, a)
		VPMADDUBSW(b, y[j], b)
		VPADDW(b, a, a)
		if total != nil {
			VPADDW(total, a, a)
		}
		total = a
	}
	VPMADDWD(ones, total, total)
	VCVTDQ2PS(total, total)
	VBROADCASTSS(Mem{Base: dx}, s)
	VMULPS(s, d, d)
	VFMADD231PS(d, total, sum)
	for _, r := range []reg.Register{w, third, sixth} {
		ADDQ(U8(f.bytes), r)
	}
	ADDQ(U32(8*f.bytes), next)
	ADDQ(U8(32), p)
	ADDQ(U8(4), dx)
	ADDQ(U8(4), sx)
	DECQ(n)
	JNZ(LabelRef("block"))
	if f.minimum {
		VADDPS(correction, sum, sum)
	} else {
		VFMADD231PS(constant("Minus8", word(minus(8))), correction, sum)
	}
	VMOVUPS(sum, Mem{Base: out})
	ADDQ(U8(32), out)
	// Rows follow each other: a row's end is the next one's start.
	LEAQ(Mem{Base: w, Index: wRow, Scale: 8}, w)
	SUBQ(wRow, w)
	DECQ(groups)
	JNZ(LabelRef("group"))
	VZEROUPPER()
	RET()
}

// eightScales gathers the scales of eight rows' blocks, and their addends: the scales once more where there are none.
func (k *kernel) eightScales(row func(i, at int) Mem) (d, m reg.VecVirtual) {
	if !k.minimum {
		x := XMM()
		VMOVD(row(0, 0), x)
		for i := 1; i < 8; i++ {
			VPINSRW(U8(i), row(i, 0), x, x)
		}
		d = YMM()
		VCVTPH2PS(x, d)
		return d, d
	}
	var pairs [2]reg.VecVirtual
	for i, order := range [2][4]int{{0, 1, 4, 5}, {2, 3, 6, 7}} {
		x := XMM()
		VMOVD(row(order[0], 0), x)
		for lane := 1; lane < 4; lane++ {
			VPINSRD(U8(lane), row(order[lane], 0), x, x)
		}
		pairs[i] = YMM()
		VCVTPH2PS(x, pairs[i])
	}
	d, m = YMM(), YMM()
	VSHUFPS(U8(0x88), pairs[1], pairs[0], d)
	VSHUFPS(U8(0xdd), pairs[1], pairs[0], m)
	return d, m
}
