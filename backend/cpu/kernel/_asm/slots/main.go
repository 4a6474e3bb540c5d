// Command slots writes the assembly of the slot kernels, slots_amd64.s, for AVX2 and AVX-512 from one text.
//
// A block of 4 slots by 2 vectors lies in eight registers. Around it, the kernel walks the tokens of a chunk; around that, the
// blocks of slots. The caller's loop over columns is the outermost, so that the chunk's
// columns stay in L1 while all slots pass.
//
// Sums over columns end in adding up the lanes of a vector for each slot, a chain of some 20 cycles. The machine's scheduler holds
// about two tokens' instructions, so whatever waits in it for long costs throughput: the lanes are added up one step later.
package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

const (
	rows    = 4 // of a block
	vectors = 2 // of a row
)

// A set is one instruction set.
type set struct {
	name   string
	bytes  int // of a vector
	vector func() reg.VecVirtual
}

var sets = []set{
	{"AVX2", 32, YMM},
	{"AVX512", 64, ZMM},
}

func main() {
	ConstraintExpr("amd64,!purego")
	for _, s := range sets {
		s.read()
		s.write()
		s.backward("Keys", true)
		s.backward("Values", false)
	}
	softmaxBackward()
	Generate()
}

// rowBytes is the width of a block: 16 or 32 columns of float32.
func (s set) rowBytes() int { return vectors * s.bytes }

// columns names the width in documentation.
func (s set) columns() string { return map[int]string{64: "16", 128: "32"}[s.rowBytes()] }

// argument is a parameter where it lies on the stack: strides are added from there, registers are few.
func argument(name string) Mem {
	p, err := Param(name).Resolve()
	if err != nil {
		panic(err)
	}
	return p.Addr
}

func pointer(name string) reg.GPVirtual { return Load(Param(name), GP64()).(reg.GPVirtual) }

func at(p reg.Register, offset int) Mem { return Mem{Base: p, Disp: offset} }

// block is the registers of a block of slots.
type block [][]reg.VecVirtual

func (s set) newBlock() block {
	b := make(block, rows)
	for r := range b {
		for range vectors {
			b[r] = append(b[r], s.vector())
		}
	}
	return b
}

func (s set) vectorsOf(p reg.Register) []reg.VecVirtual {
	v := make([]reg.VecVirtual, vectors)
	for j := range v {
		v[j] = s.vector()
		VMOVUPS(at(p, j*s.bytes), v[j])
	}
	return v
}

// load and store move a block from and to rows in memory.
func (s set) load(b block, from reg.Register, stride string) {
	p := GP64()
	MOVQ(from, p)
	for r := range b {
		for j := range b[r] {
			VMOVUPS(at(p, j*s.bytes), b[r][j])
		}
		if r < len(b)-1 {
			ADDQ(argument(stride), p)
		}
	}
}

// store leaves the pointer at the row behind the block.
func (s set) store(b block, to reg.Register, stride string) {
	for r := range b {
		for j := range b[r] {
			VMOVUPS(b[r][j], at(to, j*s.bytes))
		}
		ADDQ(argument(stride), to)
	}
}

func (s set) broadcast(p reg.Register, r int) reg.VecVirtual {
	v := s.vector()
	VBROADCASTSS(at(p, 4*r), v)
	return v
}

// enter is S -= s (S - x) for one token; the pointers move on.
func (s set) enter(b block, x, strength reg.Register) {
	v := s.vectorsOf(x)
	for r := range b {
		w := s.broadcast(strength, r)
		for j := range b[r] {
			d := s.vector()
			VSUBPS(v[j], b[r][j], d)
			VFNMADD231PS(w, d, b[r][j])
		}
	}
	ADDQ(argument("xRow"), x)
	ADDQ(argument("sRow"), strength)
}

// sums adds up the lanes of one vector for each slot, which it uses up: the result has a lane for each slot.
func (s set) sums(v []reg.VecVirtual) reg.VecVirtual {
	// quad leaves, in every 128 bits, the four vectors' sums over those bits.
	quad := func(a, b, c, d reg.VecVirtual) reg.VecVirtual {
		pair := func(a, b reg.VecVirtual) {
			low := s.vector()
			VUNPCKLPS(b, a, low)
			VUNPCKHPS(b, a, a)
			VADDPS(low, a, a)
		}
		pair(a, b)
		pair(c, d)
		VUNPCKLPD(c, a, b)
		VUNPCKHPD(c, a, a)
		VADDPS(b, a, a)
		return a
	}
	q := quad(v[0], v[1], v[2], v[3])
	y := q
	if s.bytes == 64 {
		y = YMM()
		VEXTRACTF64X4(U8(1), q, y)
		VADDPS(q.AsY(), y, y)
	}
	x := XMM()
	VEXTRACTF128(U8(1), y, x)
	VADDPS(y.AsX(), x, x)
	return x
}

// blocks loops body over the blocks of slots; offset is the bytes of the slots before the block.
func (s set) blocks(body func(offset reg.Register)) {
	offset, left := GP64(), pointer("blocks")
	XORQ(offset, offset)
	Label("block")
	body(offset)
	ADDQ(U8(4*rows), offset)
	DECQ(left)
	JNE(LabelRef("block"))
	VZEROUPPER()
	RET()
}

// shifted is a pointer parameter plus offset.
func shifted(name string, offset reg.Register) reg.GPVirtual {
	p := pointer(name)
	ADDQ(offset, p)
	return p
}

func (s set) read() {
	TEXT("slotRead"+s.name, NOSPLIT, "func(state *float32, stateRow int, x *float32, xRow int, s *float32, sRow int, q *float32, qRow int, out *float32, outRow int, tokens, group, blocks, add int)")
	Doc("slotRead" + s.name + " is SlotRead for " + s.columns() + " columns, strides in bytes; add: to what earlier columns gave.")
	Pragma("noescape")
	state := pointer("state")
	s.blocks(func(offset reg.Register) {
		b := s.newBlock()
		s.load(b, state, "stateRow")
		x, q, strength, out := pointer("x"), pointer("q"), shifted("s", offset), shifted("out", offset)
		tokens, group := pointer("tokens"), pointer("group")
		sums := make([]reg.VecVirtual, rows)
		for r := range sums {
			sums[r] = s.vector()
		}
		read := func() {
			v := s.vectorsOf(q)
			for r := range b {
				VMULPS(v[0], b[r][0], sums[r])
				for j := 1; j < vectors; j++ {
					VFMADD231PS(v[j], b[r][j], sums[r])
				}
			}
			ADDQ(argument("qRow"), q)
		}
		put := func(first string) {
			sum := s.sums(sums)
			CMPQ(argument("add"), U8(0))
			JE(LabelRef(first))
			VADDPS(at(out, 0), sum, sum)
			Label(first)
			VMOVUPS(sum, at(out, 0))
			ADDQ(argument("outRow"), out)
		}
		s.enter(b, x, strength)
		TESTQ(group, group)
		JE(LabelRef("update"))
		read()
		Label("reader")
		DECQ(group)
		JNE(LabelRef("entered"))
		DECQ(tokens)
		JE(LabelRef("last"))
		MOVQ(argument("group"), group)
		s.enter(b, x, strength)
		Label("entered")
		put("first")
		read()
		JMP(LabelRef("reader"))
		Label("last")
		put("lastFirst")
		JMP(LabelRef("done"))
		Label("updates")
		s.enter(b, x, strength)
		Label("update")
		DECQ(tokens)
		JNE(LabelRef("updates"))
		Label("done")
		s.store(b, state, "stateRow")
	})
}

func (s set) write() {
	TEXT("slotWrite"+s.name, NOSPLIT, "func(state *float32, stateRow int, x *float32, xRow int, s *float32, sRow int, p *float32, pRow int, o *float32, oRow int, tokens, group, blocks int)")
	Doc("slotWrite" + s.name + " is SlotWrite for " + s.columns() + " columns, strides in bytes.")
	Pragma("noescape")
	state := pointer("state")
	s.blocks(func(offset reg.Register) {
		b := s.newBlock()
		s.load(b, state, "stateRow")
		x, o, strength, p, tokens := pointer("x"), pointer("o"), shifted("s", offset), shifted("p", offset), pointer("tokens")
		Label("token")
		s.enter(b, x, strength)
		group := pointer("group")
		Label("reader")
		out := s.vectorsOf(o)
		for r := range b {
			w := s.broadcast(p, r)
			for j := range out {
				VFMADD231PS(w, b[r][j], out[j])
			}
		}
		for j := range out {
			VMOVUPS(out[j], at(o, j*s.bytes))
		}
		ADDQ(argument("pRow"), p)
		ADDQ(argument("oRow"), o)
		DECQ(group)
		JNE(LabelRef("reader"))
		DECQ(tokens)
		JNE(LabelRef("token"))
		s.store(b, state, "stateRow")
	})
}

// backward keeps the block after every token, then walks back over the tokens, and last adds up the lanes of what da is the sum
// of, which the walk leaves in the place of the blocks it has used.
func (s set) backward(of string, wantQ bool) {
	name := "slotBackward" + of + s.name
	TEXT(name, NOSPLIT, "func(state *float32, stateRow int, u *float32, uRow int, x *float32, xRow int, s *float32, sRow int, weight *float32, weightRow int, q *float32, qRow int, dq *float32, dqRow int, dx *float32, dxRow int, da *float32, daRow int, keep *float32, tokens, group, blocks int)")
	Doc(name + " is SlotBackward for " + s.columns() + " columns, strides in bytes.")
	Pragma("noescape")
	keepBytes := rows * s.rowBytes()
	kept := func(keep reg.Register, r, j int) Mem { return at(keep, r*s.rowBytes()+j*s.bytes) }
	state, adjoint := pointer("state"), pointer("u")
	s.blocks(func(offset reg.Register) {
		x, strength, keep, tokens := pointer("x"), shifted("s", offset), pointer("keep"), pointer("tokens")
		{
			b := s.newBlock()
			for r := range b {
				for j := range b[r] {
					VMOVUPS(at(state, j*s.bytes), b[r][j])
					VMOVUPS(b[r][j], kept(keep, r, j))
				}
				ADDQ(argument("stateRow"), state)
			}
			Label("up")
			s.enter(b, x, strength)
			ADDQ(U32(keepBytes), keep)
			for r := range b {
				for j := range b[r] {
					VMOVUPS(b[r][j], kept(keep, r, j))
				}
			}
			DECQ(tokens)
			JNE(LabelRef("up"))
		}
		u := s.newBlock()
		s.load(u, adjoint, "uRow")
		// The pointers of what follows stand behind their last row.
		behind := func(name, stride string, readers bool, p reg.Register) reg.GPVirtual {
			n := GP64()
			MOVQ(argument("tokens"), n)
			if readers {
				IMULQ(argument("group"), n)
			}
			IMULQ(argument(stride), n)
			ADDQ(p, n)
			return n.(reg.GPVirtual)
		}
		weight := behind("weight", "weightRow", true, shifted("weight", offset))
		q := behind("q", "qRow", true, pointer("q"))
		var dq reg.GPVirtual
		if wantQ {
			dq = behind("dq", "dqRow", true, pointer("dq"))
		}
		dx := behind("dx", "dxRow", false, pointer("dx"))
		tokens = pointer("tokens")
		Label("down")
		group := pointer("group")
		Label("reader")
		SUBQ(argument("weightRow"), weight)
		SUBQ(argument("qRow"), q)
		v := s.vectorsOf(q)
		var sum []reg.VecVirtual
		if wantQ {
			SUBQ(argument("dqRow"), dq)
			sum = s.vectorsOf(dq)
		}
		for r := range u {
			w := s.broadcast(weight, r)
			for j := range u[r] {
				VFMADD231PS(w, v[j], u[r][j])
				if wantQ {
					VFMADD231PS(kept(keep, r, j), w, sum[j])
				}
			}
		}
		for j := range sum {
			VMOVUPS(sum[j], at(dq, j*s.bytes))
		}
		DECQ(group)
		JNE(LabelRef("reader"))

		SUBQ(argument("xRow"), x)
		SUBQ(argument("sRow"), strength)
		SUBQ(argument("dxRow"), dx)
		SUBQ(U32(keepBytes), keep)
		from, out := s.vectorsOf(x), s.vectorsOf(dx)
		for r := range u {
			w, dot := s.broadcast(strength, r), s.vector()
			for j := range u[r] {
				d := s.vector()
				VMOVUPS(kept(keep, r, j), d)
				VSUBPS(from[j], d, d)
				if j == 0 {
					VMULPS(u[r][j], d, dot)
				} else {
					VFMADD231PS(u[r][j], d, dot)
				}
				// s U is what the token takes and what the adjoint loses.
				VMULPS(w, u[r][j], d)
				VADDPS(d, out[j], out[j])
				VSUBPS(d, u[r][j], u[r][j])
			}
			VMOVUPS(dot, at(keep, keepBytes+r*s.bytes))
		}
		for j := range out {
			VMOVUPS(out[j], at(dx, j*s.bytes))
		}
		DECQ(tokens)
		JNE(LabelRef("down"))
		s.store(u, adjoint, "uRow")

		da := shifted("da", offset)
		tokens = pointer("tokens")
		Label("sum")
		ADDQ(U32(keepBytes), keep)
		sums := make([]reg.VecVirtual, rows)
		for r := range sums {
			sums[r] = s.vector()
			VMOVUPS(at(keep, r*s.bytes), sums[r])
		}
		total := s.sums(sums)
		VADDPS(at(da, 0), total, total)
		VMOVUPS(total, at(da, 0))
		ADDQ(argument("daRow"), da)
		DECQ(tokens)
		JNE(LabelRef("sum"))
	})
}

func softmaxBackward() {
	TEXT("softmaxBackwardAVX2", NOSPLIT, "func(d, p, dp *float32, n int, inner float32)")
	Doc("softmaxBackwardAVX2 is SoftmaxBackward of n elements.")
	Pragma("noescape")
	d, p, g, n := pointer("d"), pointer("p"), pointer("dp"), pointer("n")
	inner := YMM()
	VBROADCASTSS(argument("inner"), inner)
	SUBQ(U8(8), n)
	JL(LabelRef("rest"))
	Label("vector")
	v := YMM()
	VMOVUPS(at(g, 0), v)
	VSUBPS(inner, v, v)
	VMULPS(at(p, 0), v, v)
	VMOVUPS(v, at(d, 0))
	ADDQ(U8(32), d)
	ADDQ(U8(32), p)
	ADDQ(U8(32), g)
	SUBQ(U8(8), n)
	JGE(LabelRef("vector"))
	Label("rest")
	ADDQ(U8(8), n)
	JE(LabelRef("done"))
	Label("one")
	x := XMM()
	VMOVSS(at(g, 0), x)
	VSUBSS(inner.AsX(), x, x)
	VMULSS(at(p, 0), x, x)
	VMOVSS(x, at(d, 0))
	ADDQ(U8(4), d)
	ADDQ(U8(4), p)
	ADDQ(U8(4), g)
	DECQ(n)
	JNE(LabelRef("one"))
	Label("done")
	VZEROUPPER()
	RET()
}
