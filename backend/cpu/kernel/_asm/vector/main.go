// Command vector generates the vector kernels of package kernel for AVX2 and AVX-512 from one description.
//
// Every kernel is a body over one register of lanes, which loop repeats: several registers a step where memory is the
// bound, one a step where arithmetic is (the machine overlaps the steps by itself, but for the longest, which are woven),
// and a last one under a mask, so that nothing outside a slice is read or written. Only masks differ between the two
// instruction sets: vector registers that start with ones in AVX2, mask registers in AVX-512.
//
// From the folder above: go run ./vector -out ../vector_amd64.s -stubs ../vector_amd64.go -pkg kernel
package main

import (
	"iter"
	"math"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

func main() {
	ConstraintExpr("amd64,!purego")
	t := &table{offsets: map[uint32]int{}}
	for _, wide := range []bool{false, true} {
		elementwise(t, wide)
		reductions(t, wide)
		activations(t, wide)
		norms(t, wide)
		optimiser(t, wide)
		gates(t, wide)
	}
	t.emit()
	Generate()
}

// A table is the read-only data: every constant sixteen times, so that it can be the memory operand of either width.
type table struct {
	offsets map[uint32]int
	bits    []uint32
}

const (
	constantsName = "vectorConstants"
	tailsName     = "vectorTails"
	constantBytes = 64
)

func (t *table) at(bits uint32) Mem {
	offset, ok := t.offsets[bits]
	if !ok {
		offset = len(t.bits) * constantBytes
		t.offsets[bits] = offset
		t.bits = append(t.bits, bits)
	}
	return NewDataAddr(NewStaticSymbol(constantsName), offset)
}

func (t *table) emit() {
	GLOBL(constantsName, RODATA|NOPTR)
	for i, b := range t.bits {
		for j := range constantBytes / 8 {
			DATA(i*constantBytes+8*j, U64(uint64(b)<<32|uint64(b)))
		}
	}
	GLOBL(tailsName, RODATA|NOPTR)
	for i := range 8 {
		b := uint64(0)
		if i < 4 {
			b = math.MaxUint64
		}
		DATA(8*i, U64(b))
	}
}

// A kernel is one function under construction.
type kernel struct {
	*table
	wide     bool
	lanes    int
	pointers map[string]reg.GPVirtual
	index    reg.GPVirtual
	count    reg.GPVirtual
	tail     Op // the mask of the last, partial register; nil elsewhere
	held     map[uint32]reg.VecVirtual
	woven    bool   // the bodies of a step are emitted in turn
	pause    func() // lets the other bodies of a weave go on; nil elsewhere
}

// A place is where in the slices a body works: registers past the index.
type place int

// begin opens the function of one instruction set. slices are the parameters to take pointers of; the length of the
// first is how far the loop goes.
func begin(t *table, wide bool, name, signature string, slices ...string) *kernel {
	k := &kernel{table: t, wide: wide, lanes: 8, pointers: map[string]reg.GPVirtual{}, held: map[uint32]reg.VecVirtual{}}
	suffix := "AVX2"
	if wide {
		k.lanes, suffix = 16, "AVX512"
	}
	TEXT("vector"+name+suffix, NOSPLIT, signature)
	Pragma("noescape")
	for _, s := range slices {
		k.pointers[s] = GP64()
		Load(Param(s).Base(), k.pointers[s])
	}
	k.count = GP64()
	Load(Param(slices[0]).Len(), k.count)
	return k
}

// end closes a function without a result.
func (k *kernel) end() {
	VZEROUPPER()
	RET()
}

// loop emits body for unroll registers a step, then for one, then for the tail.
func (k *kernel) loop(unroll int, body func(at place)) {
	k.index = GP64()
	next := GP64()
	XORQ(k.index, k.index)
	step := func(registers int, label, after string) {
		Label(label)
		LEAQ(Mem{Base: k.index, Disp: registers * k.lanes}, next)
		CMPQ(next, k.count)
		JGT(LabelRef(after))
		k.weave(registers, body)
		MOVQ(next, k.index)
		JMP(LabelRef(label))
	}
	if unroll > 1 {
		step(unroll, "unrolled", "single")
	}
	step(1, "single", "tail")
	Label("tail")
	SUBQ(k.index, k.count)
	JE(LabelRef("done"))
	k.tailMask()
	body(0)
	k.tail = nil
	Label("done")
}

// weave emits the bodies of one step; woven ones instruction by instruction in turn, as the machine's schedulers, which hold fewer
// than a long body has, do not overlap bodies behind each other.
func (k *kernel) weave(registers int, body func(at place)) {
	if !k.woven {
		for i := range registers {
			body(place(i))
		}
		return
	}
	bodies, pauses := make([]func() (struct{}, bool), registers), make([]func(), registers)
	for i := range bodies {
		bodies[i], _ = iter.Pull(func(yield func(struct{}) bool) {
			pauses[i] = func() { yield(struct{}{}) }
			k.pause = pauses[i]
			body(place(i))
		})
	}
	for left := registers; left > 0; {
		for i, next := range bodies {
			if next == nil {
				continue
			}
			k.pause = pauses[i]
			if _, more := next(); !more {
				bodies[i] = nil
				left--
			}
		}
	}
	k.pause = nil
}

// tailMask makes the mask of the first count lanes.
func (k *kernel) tailMask() {
	if k.wide {
		ones, mask := GP32(), K()
		MOVL(I32(-1), ones)
		BZHIL(k.count.As32(), ones, ones)
		KMOVW(ones, mask)
		k.tail = mask
		return
	}
	base, mask := GP64(), k.vector()
	LEAQ(NewDataAddr(NewStaticSymbol(tailsName), 32), base)
	NEGQ(k.count)
	VMOVUPS(Mem{Base: base, Index: k.count, Scale: 4}, mask)
	k.tail = mask
}

// vector is a new register. A body asks for one before most instructions, which is where a weave changes bodies.
func (k *kernel) vector() reg.VecVirtual {
	if k.pause != nil {
		k.pause()
	}
	if k.wide {
		return ZMM()
	}
	return YMM()
}

func (k *kernel) address(slice string, at place) Mem {
	return Mem{Base: k.pointers[slice], Index: k.index, Scale: 4, Disp: int(at) * k.lanes * 4}
}

// load reads a register of the slice, zeros past its end.
func (k *kernel) load(slice string, at place) reg.VecVirtual {
	d := k.vector()
	switch {
	case k.tail == nil:
		VMOVUPS(k.address(slice, at), d)
	case k.wide:
		VMOVUPS_Z(k.address(slice, at), k.tail, d)
	default:
		VMASKMOVPS(k.address(slice, at), k.tail, d)
	}
	return d
}

func (k *kernel) store(slice string, at place, v Op) {
	switch {
	case k.tail == nil:
		VMOVUPS(v, k.address(slice, at))
	case k.wide:
		VMOVUPS(v, k.tail, k.address(slice, at))
	default:
		VMASKMOVPS(v, k.tail, k.address(slice, at))
	}
}

// scalar broadcasts a float32 parameter.
func (k *kernel) scalar(name string) reg.VecVirtual {
	b, err := Param(name).Resolve()
	if err != nil {
		panic(err)
	}
	d := k.vector()
	VBROADCASTSS(b.Addr, d)
	return d
}

// hold keeps constants in registers through the loop, where there are enough of them.
func (k *kernel) hold(constants ...[]float32) {
	if !k.wide {
		return
	}
	spare := 20
	if k.woven {
		spare = 10
	}
	for _, list := range constants {
		for _, c := range list {
			b := math.Float32bits(c)
			if _, ok := k.held[b]; ok || len(k.held) == spare {
				continue
			}
			d := k.vector()
			VMOVUPS(k.table.at(b), d)
			k.held[b] = d
		}
	}
}

// c is a constant as an operand that may be memory, cr one in a register.
func (k *kernel) c(v float32) Op { return k.word(math.Float32bits(v)) }

func (k *kernel) word(bits uint32) Op {
	if d, ok := k.held[bits]; ok {
		return d
	}
	return k.table.at(bits)
}

func (k *kernel) cr(v float32) reg.VecVirtual {
	b := math.Float32bits(v)
	if d, ok := k.held[b]; ok {
		return d
	}
	d := k.vector()
	VMOVUPS(k.table.at(b), d)
	return d
}

func (k *kernel) zero() reg.VecVirtual {
	d := k.vector()
	VXORPS(d, d, d)
	return d
}

// Arithmetic into a new register; the second operand may be memory.

func (k *kernel) add(a, b Op) reg.VecVirtual      { d := k.vector(); VADDPS(b, a, d); return d }
func (k *kernel) subtract(a, b Op) reg.VecVirtual { d := k.vector(); VSUBPS(b, a, d); return d }
func (k *kernel) multiply(a, b Op) reg.VecVirtual { d := k.vector(); VMULPS(b, a, d); return d }
func (k *kernel) divide(a, b Op) reg.VecVirtual   { d := k.vector(); VDIVPS(b, a, d); return d }

// atLeast is max(v, limit) and atMost min(v, limit); a NaN in v stays.
func (k *kernel) atLeast(v, limit Op) reg.VecVirtual { d := k.vector(); VMAXPS(v, limit, d); return d }
func (k *kernel) atMost(v, limit Op) reg.VecVirtual  { d := k.vector(); VMINPS(v, limit, d); return d }

func (k *kernel) negative(v Op) reg.VecVirtual {
	d := k.vector()
	VXORPS(k.word(1<<31), v, d)
	return d
}

// Predicates of compare: a NaN makes the negated ones true and the others false.
const (
	equals       = 0x00
	less         = 0x11
	notLess      = 0x15
	notAtLeast   = 0x19
	atLeastEqual = 0x1d
	greater      = 0x1e
)

// compare is the mask of the lanes where a stands to b as the predicate says.
func (k *kernel) compare(predicate int, a, b Op) Op {
	var mask Op = k.maskRegister()
	VCMPPS(U8(predicate), b, a, mask)
	return mask
}

func (k *kernel) maskRegister() reg.Register {
	if k.wide {
		return K()
	}
	return YMM()
}

// choose is a where the mask is set and b elsewhere; a may be memory.
func (k *kernel) choose(mask, a, b Op) reg.VecVirtual {
	d := k.vector()
	if k.wide {
		VBLENDMPS(a, b, mask, d)
	} else {
		VBLENDVPS(mask, a, b, d)
	}
	return d
}

// keep is v where the mask is set and 0 elsewhere; v may be memory.
func (k *kernel) keep(mask, v Op) reg.VecVirtual {
	d := k.vector()
	if k.wide {
		VMOVUPS_Z(v, mask, d)
	} else {
		VANDPS(v, mask, d)
	}
	return d
}

// live clears the lanes past the end of the slices, which a sum must not see.
func (k *kernel) live(v reg.VecVirtual) reg.VecVirtual {
	if k.tail == nil {
		return v
	}
	return k.keep(k.tail, v)
}

// accumulators are n registers that start at the constant v.
func (k *kernel) accumulators(n int, v float32) []reg.VecVirtual {
	acc := make([]reg.VecVirtual, n)
	for i := range acc {
		acc[i] = k.vector()
		VMOVUPS(k.c(v), acc[i])
	}
	return acc
}

// reduce folds accumulators with op (VADDPS, VMAXPS) and returns lane 0 of the result as the function's value.
func (k *kernel) reduce(acc []reg.VecVirtual, op func(...Op)) {
	x := k.fold(acc, op)
	t := XMM()
	for _, shuffle := range []int{0x0e, 0x01} {
		VPERMILPS(U8(shuffle), x, t)
		op(t, x, x)
	}
	Store(x, ReturnIndex(0))
	k.end()
}

// fold halves accumulators down to one register of 128 bits.
func (k *kernel) fold(acc []reg.VecVirtual, op func(...Op)) reg.VecVirtual {
	for n := len(acc); n > 1; n /= 2 {
		for i := range n / 2 {
			op(acc[i+n/2], acc[i], acc[i])
		}
	}
	v := acc[0]
	x := XMM()
	if k.wide {
		y := YMM()
		VEXTRACTF64X4(U8(1), v, y)
		op(v.AsY(), y, y)
		VEXTRACTF32X4(U8(1), y, x)
		op(y.AsX(), x, x)
		return x
	}
	VEXTRACTF128(U8(1), v, x)
	op(v.AsX(), x, x)
	return x
}
