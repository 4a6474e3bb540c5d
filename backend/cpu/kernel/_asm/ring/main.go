// Command ring writes the assembly that reads and writes the ring of keys and values, ring_amd64.s: rows turned by their positions and
// half-precision numbers widened and rounded, for AVX2 and AVX-512 from one text.
package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// A set is one instruction set: lanes float32 to a vector.
type set struct {
	name   string
	lanes  int
	vector func() reg.VecVirtual
}

var sets = []set{{"AVX2", 8, YMM}, {"AVX512", 16, ZMM}}

func main() {
	ConstraintExpr("amd64,!purego")
	for _, s := range sets {
		rotate(s, false)
		rotate(s, true)
		widen(s)
		narrow(s)
	}
	Generate()
}

// ahead is how far rows are fetched, in bytes: a call reads a few thousand.
const ahead = 4096

// rotate turns rows of 2 half columns, each by its row of the tables.
func rotate(s set, halves bool) {
	element, goType, size := "F32", "float32", 4
	if halves {
		element, goType, size = "F16", "uint16", 2
	}
	name := "ringRotate" + element + s.name
	TEXT(name, NOSPLIT, fmt.Sprintf("func(rows, half int, src *%s, cos, sin, dst *float32)", goType))
	Pragma("noescape")
	Doc(fmt.Sprintf("%s is RotateRows from %s, half a multiple of %d.", name, element, s.lanes))
	rows := Load(Param("rows"), GP64())
	half := Load(Param("half"), GP64())
	src := Load(Param("src"), GP64())
	cos := Load(Param("cos"), GP64())
	sin := Load(Param("sin"), GP64())
	dst := Load(Param("dst"), GP64())
	load := func(m Mem, v reg.VecVirtual) {
		if halves {
			VCVTPH2PS(m, v)
		} else {
			VMOVUPS(m, v)
		}
	}
	srcHalf, dstHalf, i := GP64(), GP64(), GP64()
	Label("row")
	LEAQ(Mem{Base: src, Index: half, Scale: uint8(size)}, srcHalf)
	LEAQ(Mem{Base: dst, Index: half, Scale: 4}, dstHalf)
	XORQ(i, i)
	Label("column")
	PREFETCHT0(Mem{Base: src, Index: i, Scale: uint8(size), Disp: ahead})
	PREFETCHT0(Mem{Base: srcHalf, Index: i, Scale: uint8(size), Disp: ahead})
	x, y, z, w := s.vector(), s.vector(), s.vector(), s.vector()
	load(Mem{Base: src, Index: i, Scale: uint8(size)}, x)
	load(Mem{Base: srcHalf, Index: i, Scale: uint8(size)}, y)
	c, t := s.vector(), s.vector()
	VMOVUPS(Mem{Base: cos, Index: i, Scale: 4}, c)
	VMOVUPS(Mem{Base: sin, Index: i, Scale: 4}, t)
	VMULPS(t, y, z)
	VFMSUB231PS(c, x, z)
	VMULPS(t, x, w)
	VFMADD231PS(c, y, w)
	VMOVUPS(z, Mem{Base: dst, Index: i, Scale: 4})
	VMOVUPS(w, Mem{Base: dstHalf, Index: i, Scale: 4})
	ADDQ(U8(s.lanes), i)
	CMPQ(i, half)
	JLT(LabelRef("column"))
	LEAQ(Mem{Base: srcHalf, Index: half, Scale: uint8(size)}, src)
	LEAQ(Mem{Base: dstHalf, Index: half, Scale: 4}, dst)
	LEAQ(Mem{Base: cos, Index: half, Scale: 4}, cos)
	LEAQ(Mem{Base: sin, Index: half, Scale: 4}, sin)
	DECQ(rows)
	JNZ(LabelRef("row"))
	VZEROUPPER()
	RET()
}

// widen and narrow convert vectors of lanes.
func widen(s set) {
	convert(s, "Widen", "src *uint16, dst *float32", func(src, dst, i reg.Register) {
		PREFETCHT0(Mem{Base: src, Index: i, Scale: 2, Disp: ahead})
		v := s.vector()
		VCVTPH2PS(Mem{Base: src, Index: i, Scale: 2}, v)
		VMOVUPS(v, Mem{Base: dst, Index: i, Scale: 4})
	})
}

func narrow(s set) {
	convert(s, "Narrow", "src *float32, dst *uint16", func(src, dst, i reg.Register) {
		v := s.vector()
		VMOVUPS(Mem{Base: src, Index: i, Scale: 4}, v)
		VCVTPS2PH(U8(0), v, Mem{Base: dst, Index: i, Scale: 2})
	})
}

func convert(s set, what, parameters string, body func(src, dst, i reg.Register)) {
	name := "ring" + what + "F16" + s.name
	TEXT(name, NOSPLIT, "func(n int, "+parameters+")")
	Pragma("noescape")
	Doc(fmt.Sprintf("%s is %sF16 for n numbers, a multiple of %d.", name, what, s.lanes))
	n := Load(Param("n"), GP64())
	src := Load(Param("src"), GP64())
	dst := Load(Param("dst"), GP64())
	i := GP64()
	XORQ(i, i)
	Label("loop")
	body(src, dst, i)
	ADDQ(U8(s.lanes), i)
	CMPQ(i, n)
	JLT(LabelRef("loop"))
	VZEROUPPER()
	RET()
}
