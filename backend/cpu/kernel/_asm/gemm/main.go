// Command gemm writes the assembly of the matrix products, gemm_amd64.s, for AVX2 and AVX-512 from one text: the sets
// differ in the width of a vector and in how many accumulators their registers hold.
package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// A set is one instruction set: lanes float32 to a vector, rows x 2 vectors of accumulators in the tile of the packed
// product, dotRows x 4 in that of the skinny one.
type set struct {
	name    string
	lanes   int
	rows    int
	dotRows int
	vector  func() reg.VecVirtual
}

var sets = []set{
	{name: "AVX2", lanes: 8, rows: 6, dotRows: 3, vector: YMM},
	{name: "AVX512", lanes: 16, rows: 12, dotRows: 6, vector: ZMM},
}

// elements are the types that weights are stored in, with their bytes.
var elements = []struct {
	name, goType string
	bytes        int
}{
	{"F32", "float32", 4}, {"BF16", "uint16", 2}, {"F16", "uint16", 2},
}

func main() {
	ConstraintExpr("amd64,!purego")
	for _, s := range sets {
		tile(s)
		for _, e := range elements {
			dot(s, e.name, e.goType, e.bytes)
			if e.bytes == 2 {
				dotEach(s, e.name, e.goType, e.bytes)
			}
		}
	}
	for _, e := range elements {
		transpose(e.name, e.goType, e.bytes)
	}
	copyRows()
	Generate()
}

// bytes loads a stride given in elements and makes it bytes.
func bytes(parameter string, size int) reg.Register {
	r := Load(Param(parameter), GP64())
	shift := map[int]uint64{2: 1, 4: 2}[size]
	SHLQ(U8(shift), r)
	return r
}

// bases returns one pointer for every three rows: row i is bases[i/3] + (i%3)*stride, which x86 addresses by itself.
func bases(first, stride reg.Register, rows int) []reg.Register {
	out := []reg.Register{first}
	for i := 3; i < rows; i += 3 {
		next := GP64()
		LEAQ(Mem{Base: out[len(out)-1], Index: stride, Scale: 2}, next)
		ADDQ(stride, next)
		out = append(out, next)
	}
	return out
}

func row(bases []reg.Register, stride reg.Register, i int) Mem {
	m := Mem{Base: bases[i/3]}
	if i%3 > 0 {
		m.Index, m.Scale = stride, uint8(i%3)
	}
	return m
}

// tile is the micro-kernel: an outer product of rows x 2 vectors for every step of k. The operands keep their own strides,
// so packed and plain memory take the same code.
func tile(s set) {
	name := "gemmTile" + s.name
	TEXT(name, NOSPLIT, "func(rows, k int, a []float32, aRow, aCol int, b []float32, bRow int, c []float32, cRow int, alpha float32, bias []float32, add int)")
	Doc(fmt.Sprintf("%s is gemmTileGeneric for tiles of up to %d x %d.", name, s.rows, 2*s.lanes))
	rows := Load(Param("rows"), GP64())
	k := Load(Param("k"), GP64())
	a := Load(Param("a").Base(), GP64())
	aRow := bytes("aRow", 4)
	aCol := bytes("aCol", 4)
	b := Load(Param("b").Base(), GP64())
	bRow := bytes("bRow", 4)
	c := Load(Param("c").Base(), GP64())
	cRow := bytes("cRow", 4)
	for n := s.rows - 1; n > 0; n-- {
		CMPQ(rows, U8(n))
		JE(LabelRef(fmt.Sprintf("rows%d", n)))
	}
	for n := s.rows; n > 0; n-- {
		if n < s.rows {
			Label(fmt.Sprintf("rows%d", n))
		}
		tileRows(s, n, k, a, aRow, aCol, b, bRow, c, cRow)
	}
}

func tileRows(s set, rows int, k, a, aRow, aCol, b, bRow, c, cRow reg.Register) {
	label := func(what string) string { return fmt.Sprintf("%s%d", what, rows) }
	width := 4 * s.lanes
	cs := bases(c, cRow, rows)
	for i := range rows {
		PREFETCHT0(row(cs, cRow, i))
	}
	as := bases(a, aRow, rows)
	acc := make([][2]reg.VecVirtual, rows)
	for i := range acc {
		for j := range acc[i] {
			acc[i][j] = s.vector()
			VXORPS(acc[i][j], acc[i][j], acc[i][j])
		}
	}
	step := func() {
		b0, b1 := s.vector(), s.vector()
		VMOVUPS(Mem{Base: b}, b0)
		VMOVUPS(Mem{Base: b, Disp: width}, b1)
		for i := range rows {
			x := s.vector()
			VBROADCASTSS(row(as, aRow, i), x)
			VFMADD231PS(b0, x, acc[i][0])
			VFMADD231PS(b1, x, acc[i][1])
		}
		ADDQ(bRow, b)
		for _, p := range as {
			ADDQ(aCol, p)
		}
	}
	const unroll = 4
	SUBQ(U8(unroll), k)
	JLT(LabelRef(label("tail")))
	Label(label("loop"))
	for range unroll {
		step()
	}
	SUBQ(U8(unroll), k)
	JGE(LabelRef(label("loop")))
	Label(label("tail"))
	ADDQ(U8(unroll), k)
	JZ(LabelRef(label("scale")))
	Label(label("one"))
	step()
	DECQ(k)
	JNZ(LabelRef(label("one")))

	Label(label("scale"))
	alpha := s.vector()
	address, err := Param("alpha").Resolve()
	if err != nil {
		panic(err)
	}
	VBROADCASTSS(address.Addr, alpha)
	for i := range acc {
		for j := range acc[i] {
			VMULPS(alpha, acc[i][j], acc[i][j])
		}
	}
	bias := Load(Param("bias").Base(), GP64())
	TESTQ(bias, bias)
	JZ(LabelRef(label("sum")))
	for j := range 2 {
		v := s.vector()
		VMOVUPS(Mem{Base: bias, Disp: j * width}, v)
		for i := range acc {
			VADDPS(v, acc[i][j], acc[i][j])
		}
	}
	Label(label("sum"))
	add := Load(Param("add"), GP64())
	TESTQ(add, add)
	JZ(LabelRef(label("store")))
	for i := range acc {
		for j := range acc[i] {
			VADDPS(row(cs, cRow, i).Offset(j*width), acc[i][j], acc[i][j])
		}
	}
	Label(label("store"))
	for i := range acc {
		for j := range acc[i] {
			VMOVUPS(acc[i][j], row(cs, cRow, i).Offset(j*width))
		}
	}
	VZEROUPPER()
	RET()
}

// load reads lanes weights at m as float32.
func load(element string, m Mem, v reg.VecVirtual) {
	switch element {
	case "F32":
		VMOVUPS(m, v)
	case "BF16":
		VPMOVZXWD(m, v)
		VPSLLD(U8(16), v, v)
	case "F16":
		VCVTPH2PS(m, v)
	}
}

// dot multiplies up to dotRows rows of x with four rows of w, both along k: w passes through once, x stays in L1.
func dot(s set, element, goType string, size int) {
	name := "gemvDot" + element + s.name
	TEXT(name, NOSPLIT, fmt.Sprintf("func(rows, k int, x []float32, xRow int, w []%s, wRow int, out []float32, outRow int)", goType))
	Doc(fmt.Sprintf("%s is gemvDotGeneric for %s weights, up to %d rows of x, and k a multiple of %d.", name, element, s.dotRows, s.lanes))
	rows := Load(Param("rows"), GP64())
	k := Load(Param("k"), GP64())
	x := Load(Param("x").Base(), GP64())
	xRow := bytes("xRow", 4)
	w := Load(Param("w").Base(), GP64())
	wRow := bytes("wRow", size)
	out := Load(Param("out").Base(), GP64())
	outRow := bytes("outRow", 4)
	for n := s.dotRows - 1; n > 0; n-- {
		CMPQ(rows, U8(n))
		JE(LabelRef(fmt.Sprintf("rows%d", n)))
	}
	for n := s.dotRows; n > 0; n-- {
		if n < s.dotRows {
			Label(fmt.Sprintf("rows%d", n))
		}
		dotRows(s, element, size, n, k, x, xRow, w, wRow, out, outRow)
	}
}

func dotRows(s set, element string, size, rows int, k, x, xRow, w, wRow, out, outRow reg.Register) {
	label := func(what string) string { return fmt.Sprintf("%s%d", what, rows) }
	xs := bases(x, xRow, rows)
	ws := bases(w, wRow, 4)
	// Rows are short streams, which the hardware foresees late, and converting leaves the window of instructions in flight little
	// room for loads: each line of halves fetches the one four rows on. For float32 that costs 5%.
	var aheads []reg.Register
	if size == 2 {
		ahead := GP64()
		LEAQ(Mem{Base: w, Index: wRow, Scale: 4}, ahead)
		aheads = bases(ahead, wRow, 4)
	}
	// One row of x alone makes four chains of additions, too few to hide their latency: two steps are kept apart.
	sums := 1
	if rows == 1 {
		sums = 2
	}
	acc := make([][4][]reg.VecVirtual, rows)
	for i := range acc {
		for j := range 4 {
			for range sums {
				v := s.vector()
				VXORPS(v, v, v)
				acc[i][j] = append(acc[i][j], v)
			}
		}
	}
	steps := sums
	if size == 2 {
		steps = max(sums, 64/(size*s.lanes)) // a line of every row of w
	}
	step := func(u int) {
		xv := make([]reg.VecVirtual, rows)
		for i := range xv {
			xv[i] = s.vector()
			VMOVUPS(row(xs, xRow, i).Offset(4*s.lanes*u), xv[i])
		}
		for j := range 4 {
			wv := s.vector()
			load(element, row(ws, wRow, j).Offset(size*s.lanes*u), wv)
			for i := range rows {
				VFMADD231PS(wv, xv[i], acc[i][j][u%sums])
			}
		}
	}
	advance := func(n int) {
		for _, p := range xs {
			ADDQ(U32(4*s.lanes*n), p)
		}
		for _, p := range append(ws[:2:2], aheads...) {
			ADDQ(U32(size*s.lanes*n), p)
		}
	}
	SUBQ(U8(s.lanes*steps), k)
	JLT(LabelRef(label("tail")))
	Label(label("loop"))
	for j := range 4 {
		if size == 2 {
			PREFETCHT1(row(aheads, wRow, j))
		}
	}
	for u := range steps {
		step(u)
	}
	advance(steps)
	SUBQ(U8(s.lanes*steps), k)
	JGE(LabelRef(label("loop")))
	Label(label("tail"))
	if steps > 1 {
		ADDQ(U8(s.lanes*steps), k)
		JZ(LabelRef(label("reduce")))
		Label(label("one"))
		step(0)
		advance(1)
		SUBQ(U8(s.lanes), k)
		JNZ(LabelRef(label("one")))
		Label(label("reduce"))
	}
	for i := range acc {
		var v [4]reg.VecVirtual
		for j := range 4 {
			for u := 1; u < sums; u++ {
				VADDPS(acc[i][j][u], acc[i][j][0], acc[i][j][0])
			}
			v[j] = acc[i][j][0]
		}
		// Horizontal additions exist for the lower 16 registers only; interleaving does for all.
		low, high := s.vector(), s.vector()
		for j := 0; j < 4; j += 2 {
			VUNPCKLPS(v[j+1], v[j], low)
			VUNPCKHPS(v[j+1], v[j], high)
			VADDPS(low, high, v[j])
		}
		VUNPCKLPD(v[2], v[0], low)
		VUNPCKHPD(v[2], v[0], high)
		VADDPS(low, high, low)
		half := XMM()
		if s.lanes == 16 {
			upper := YMM()
			VEXTRACTF64X4(U8(1), low, upper)
			VADDPS(upper, low.AsY(), low.AsY())
			VEXTRACTF32X4(U8(1), low.AsY(), half)
		} else {
			VEXTRACTF128(U8(1), low, half)
		}
		VADDPS(half, low.AsX(), half)
		VMOVUPS(half, Mem{Base: out})
		if i < rows-1 {
			ADDQ(outRow, out)
		}
	}
	VZEROUPPER()
	RET()
}

// ahead is how far dotEach fetches, over the ends of rows.
const ahead = 2048

// dotEach multiplies one row of x with rows of w one after the other.
func dotEach(s set, element, goType string, size int) {
	name := "gemvEach" + element + s.name
	TEXT(name, NOSPLIT, fmt.Sprintf("func(rows, k int, x []float32, w []%s, wRow int, out []float32)", goType))
	Doc(fmt.Sprintf("%s is gemvEachGeneric for %s weights and k a multiple of %d.", name, element, s.lanes))
	rows := Load(Param("rows"), GP64())
	k := Load(Param("k"), GP64())
	x := Load(Param("x").Base(), GP64())
	w := Load(Param("w").Base(), GP64())
	wRow := bytes("wRow", size)
	out := Load(Param("out").Base(), GP64())
	const sums = 4
	steps := max(sums, 128/(size*s.lanes)) // two lines of w

	Label("row")
	xAt, wAt, n := GP64(), GP64(), GP64()
	MOVQ(x, xAt)
	MOVQ(w, wAt)
	MOVQ(k, n)
	acc := make([]reg.VecVirtual, sums)
	for i := range acc {
		acc[i] = s.vector()
		VXORPS(acc[i], acc[i], acc[i])
	}
	step := func(u int) {
		v := s.vector()
		load(element, Mem{Base: wAt, Disp: size * s.lanes * u}, v)
		VFMADD231PS(Mem{Base: xAt, Disp: 4 * s.lanes * u}, v, acc[u%sums])
	}
	advance := func(steps int) {
		ADDQ(U32(4*s.lanes*steps), xAt)
		ADDQ(U32(size*s.lanes*steps), wAt)
	}
	SUBQ(U8(s.lanes*steps), n)
	JLT(LabelRef("tail"))
	Label("loop")
	for at := 0; at < size*s.lanes*steps; at += 64 {
		PREFETCHT0(Mem{Base: wAt, Disp: ahead + at})
	}
	for u := range steps {
		step(u)
	}
	advance(steps)
	SUBQ(U8(s.lanes*steps), n)
	JGE(LabelRef("loop"))
	Label("tail")
	ADDQ(U8(s.lanes*steps), n)
	JZ(LabelRef("reduce"))
	Label("one")
	step(0)
	advance(1)
	SUBQ(U8(s.lanes), n)
	JNZ(LabelRef("one"))
	Label("reduce")
	VADDPS(acc[1], acc[0], acc[0])
	VADDPS(acc[3], acc[2], acc[2])
	VADDPS(acc[2], acc[0], acc[0])
	if s.lanes == 16 {
		upper := YMM()
		VEXTRACTF64X4(U8(1), acc[0], upper)
		VADDPS(upper, acc[0].AsY(), acc[0].AsY())
	}
	low, other := acc[0].AsX(), XMM()
	if s.lanes == 16 {
		VEXTRACTF32X4(U8(1), acc[0].AsY(), other)
	} else {
		VEXTRACTF128(U8(1), acc[0], other)
	}
	VADDPS(other, low, low)
	for _, shuffle := range []int{0x0e, 0x01} {
		VPERMILPS(U8(shuffle), low, other)
		VADDPS(other, low, low)
	}
	VMOVSS(low, Mem{Base: out})
	ADDQ(U8(4), out)
	ADDQ(wRow, w)
	DECQ(rows)
	JNZ(LabelRef("row"))
	VZEROUPPER()
	RET()
}

// transpose lays 8 rows of src side by side: both sets pack with it, as a wider one would wait for memory no less.
func transpose(element, goType string, size int) {
	name := "gemmTranspose" + element + "AVX2"
	TEXT(name, NOSPLIT, fmt.Sprintf("func(blocks int, src []%s, srcRow int, dst []float32, dstRow int)", goType))
	Doc(fmt.Sprintf("%s is gemmTransposeGeneric for %s.", name, element))
	blocks := Load(Param("blocks"), GP64())
	src := Load(Param("src").Base(), GP64())
	srcRow := bytes("srcRow", size)
	dst := Load(Param("dst").Base(), GP64())
	dstRow := bytes("dstRow", 4)
	srcs := bases(src, srcRow, 8)
	Label("block")
	// Afterwards v[i] holds columns 0..3 of rows i and i+4, v[i+4] columns 4..7.
	var v [8]reg.VecVirtual
	if element == "F32" {
		for half := range 2 {
			for i := range 4 {
				v[i+4*half] = YMM()
				VMOVUPS(row(srcs, srcRow, i).Offset(16*half), v[i+4*half].AsX())
				VINSERTF128(U8(1), row(srcs, srcRow, i+4).Offset(16*half), v[i+4*half], v[i+4*half])
			}
		}
	} else {
		for i := range 4 {
			low, high := YMM(), YMM()
			load(element, row(srcs, srcRow, i), low)
			load(element, row(srcs, srcRow, i+4), high)
			v[i], v[i+4] = YMM(), YMM()
			VPERM2F128(U8(0x20), high, low, v[i])
			VPERM2F128(U8(0x31), high, low, v[i+4])
		}
	}
	for half := range 2 {
		r := v[4*half : 4*half+4]
		t0, t1, t2, t3 := YMM(), YMM(), YMM(), YMM()
		VUNPCKLPS(r[1], r[0], t0)
		VUNPCKHPS(r[1], r[0], t1)
		VUNPCKLPS(r[3], r[2], t2)
		VUNPCKHPS(r[3], r[2], t3)
		for _, pair := range [2][2]reg.VecVirtual{{t0, t2}, {t1, t3}} {
			low, high := YMM(), YMM()
			VUNPCKLPD(pair[1], pair[0], low)
			VUNPCKHPD(pair[1], pair[0], high)
			for _, column := range []reg.VecVirtual{low, high} {
				VMOVUPS(column, Mem{Base: dst})
				ADDQ(dstRow, dst)
			}
		}
	}
	for _, p := range srcs {
		ADDQ(U32(8*size), p)
	}
	DECQ(blocks)
	JNZ(LabelRef("block"))
	VZEROUPPER()
	RET()
}

// copyRows moves a column of short rows. Loads are masked, so they stop at width; stores are whole, which fills with zeros and,
// where rows lie closer than 16, is put right by the next row.
func copyRows() {
	lanes := GLOBL("gemmLanes", RODATA|NOPTR)
	for i := range 16 {
		DATA(4*i, U32(i))
	}
	TEXT("gemmCopyAVX2", NOSPLIT, "func(rows, width int, src []float32, srcRow int, dst []float32, dstRow int)")
	Doc("gemmCopyAVX2 is gemmCopyGeneric.")
	rows := Load(Param("rows"), GP64())
	width := Load(Param("width"), GP64())
	src := Load(Param("src").Base(), GP64())
	srcRow := bytes("srcRow", 4)
	dst := Load(Param("dst").Base(), GP64())
	dstRow := bytes("dstRow", 4)
	n, m0, m1 := YMM(), YMM(), YMM()
	VMOVD(width.(reg.GPVirtual).As32(), n.AsX())
	VPBROADCASTD(n.AsX(), n)
	VPCMPGTD(lanes, n, m0)
	VPCMPGTD(lanes.Offset(32), n, m1)
	for _, vectors := range []int{2, 1} {
		loop := fmt.Sprintf("copy%d", vectors)
		if vectors == 2 {
			CMPQ(width, U8(8))
			JLE(LabelRef("copy1"))
		}
		Label(loop)
		for j := range vectors {
			v := YMM()
			// Rows may be pages apart, where the hardware foresees nothing.
			if j == 0 {
				PREFETCHT0(Mem{Base: src, Index: srcRow, Scale: 8})
			}
			VMASKMOVPS(Mem{Base: src, Disp: 32 * j}, []reg.VecVirtual{m0, m1}[j], v)
			VMOVUPS(v, Mem{Base: dst, Disp: 32 * j})
		}
		ADDQ(srcRow, src)
		ADDQ(dstRow, dst)
		DECQ(rows)
		JNZ(LabelRef(loop))
		VZEROUPPER()
		RET()
	}
}
