package kernel

import "math"

// Products with quantised weights, y = x W^T, read where they lie in the file. A row of W is blocks of 32 or 256 small integers that
// share scales (ggml's layouts):
//
//	w = d q        Q4_0, Q5_0, Q8_0: a half-precision d for 32        w = d q + m             Q4_1, Q5_1
//	w = d s q      Q6_K: 256; an 8-bit s for every 16                 w = d s q - e m         Q4_K, Q5_K: 256; 6-bit s and m for every 32
//
// A few rows of x (decoding) are rounded to 8 bits, 32 at a time, x ~ dx p with dx = max|x|/127, so that the sums over 32 are of
// integers, exact; what an unsigned q or a minimum adds to them is a multiple of dx sum p, known beforehand:
//
//	y = sum over blocks of  d dx (q . p) + m (dx sum p)        each x is off by dx/2 at most
//
// The floor is memory: 18 bytes for 32 weights of Q4_0. The kernels spend about 10 instructions on them, 2.5 cycles, so a core
// asks for 7 bytes a cycle. For AVX2 those of 4 bits in blocks of 32 go through eight rows at a time, a row to a lane.
//
// Many rows of x (prefill), and any number where activations must stay float32, take the float32 kernels: W is widened on the way
// into their panels or, for few rows, four rows at a time. For AVX2 that is as fast as 8-bit products, 16 multiply-adds a cycle
// against 32 less their widening and scaling.

//go:generate go run -C _asm ./quant -out ../quant_amd64.s -stubs ../quant_amd64.go -pkg kernel

// Quant is a type of quantised weights, by ggml's names.
type Quant uint8

// The types of quantised weights.
const (
	Q4_0 Quant = iota
	Q4_1
	Q5_0
	Q5_1
	Q8_0
	Q4_K
	Q5_K
	Q6_K
	quantTypes
)

// quantKernel is what one instruction set has for one type.
type quantKernel struct {
	// dot computes out_i = sum over blocks of 32, rows of w lying wRow bytes apart, with activations p, dx and sx = dx sum p.
	dot func(rows, blocks int, w []byte, wRow int, p []int8, dx, sx []float32, out []float32)
	// widen decodes len(dst) weights, whole blocks.
	widen func(dst []float32, src []byte)
}

var (
	quantLayout = [quantTypes]struct{ elements, bytes int }{
		Q4_0: {32, 18}, Q4_1: {32, 20}, Q5_0: {32, 22}, Q5_1: {32, 24}, Q8_0: {32, 34}, Q4_K: {256, 144}, Q5_K: {256, 176}, Q6_K: {256, 210}}
	quants        [quantTypes]quantKernel
	quantActivate = quantActivateGeneric
)

const (
	quantBlock = 32       // activations that share a scale
	quantRows  = 8        // rows of x up to which they are rounded to 8 bits
	quantChunk = 64 << 10 // bytes of W to a range
	quantLeast = 12 << 10 // or, where that makes few ranges, this
)

// Widen decodes len(dst) weights of type t, which must be whole blocks; exact.
func Widen(t Quant, dst []float32, src []byte) {
	choose()
	quants[t].widen(dst, src)
}

// rowBytes is the memory of n weights, whole blocks.
func (t Quant) rowBytes(n int) int { return n / quantLayout[t].elements * quantLayout[t].bytes }

// GemmQuant is Gemm with op NT and weights B [n,k] of type t, rows without gaps, k a multiple of the type's block. Up to 8 rows of A
// are rounded to 8 bits, unless exact is set.
func GemmQuant(p *Pool, t Quant, exact bool, m, n, k int, a []float32, lda int, b []byte, c []float32, ldc int, accumulate bool, bias []float32) {
	j := p.job()
	j.call = gemmCall{op: NT, m: m, n: n, k: k, alpha: 1, a: a, lda: lda, element: gemmQuant, quant: t, blocks: b, ldb: k, c: c, ldc: ldc, accumulate: accumulate, bias: bias}
	if !exact && m <= quantRows && n > 0 && k > 0 {
		j.runQuant(p)
	} else {
		j.run(p)
	}
	p.release(j)
}

// quantised is rows of activations in 8 bits.
type quantised struct {
	p      []int8
	dx, sx []float32
}

// runQuant computes a product with few rows from integers.
func (j *gemmJob) runQuant(p *Pool) {
	g := &j.call
	x, blocks := &j.rounded, g.k/quantBlock
	if cap(x.p) < g.m*g.k {
		x.p, x.dx, x.sx = make([]int8, g.m*g.k), make([]float32, g.m*blocks), make([]float32, g.m*blocks)
	}
	x.p, x.dx, x.sx = x.p[:g.m*g.k], x.dx[:g.m*blocks], x.sx[:g.m*blocks]
	for i := range g.m {
		quantActivate(g.a[i*g.lda:i*g.lda+g.k], x.p[i*g.k:], x.dx[i*blocks:], x.sx[i*blocks:])
	}
	j.phase = gemmQuantised
	bytes := g.quant.rowBytes(g.k) * g.n
	j.cols = min(ceil(g.n, 8), max(ceil(bytes, quantChunk), min(4*p.threads, bytes/quantLeast)))
	if j.cols <= 1 {
		j.cols = 1
		j.Do(0, 0)
		return
	}
	p.Run(j.cols, j)
}

// quantRange computes range index of C's columns, that is of W's rows.
func (j *gemmJob) quantRange(worker, index int) {
	g, out := &j.call, j.workspaces[worker].dots[:]
	from, to := part(index, j.cols, g.n, 8)
	step := gemvCols
	if g.m > 1 { // so few that they are in L1 for the next row of x
		step = 16
	}
	row, blocks := g.quant.rowBytes(g.k), g.k/quantBlock
	for c := from; c < to; c += step {
		rows := min(step, to-c)
		for i := range g.m {
			quants[g.quant].dot(rows, blocks, g.blocks[c*row:], row, j.rounded.p[i*g.k:], j.rounded.dx[i*blocks:], j.rounded.sx[i*blocks:], out[i*gemvStride:])
		}
		g.store(out, c, c+rows, g.k)
	}
}

// packQuant packs a panel of B [n,k] as packTransposed does, by way of eight widened rows.
func (g *gemmCall) packQuant(ws *Workspace, dst []float32, c, p0, p1, width int) {
	depth := p1 - p0
	stride := depth + gemmPad
	rows := grow(&ws.rows, 8*stride)
	for j := 0; j < width; j += 8 {
		for i := range 8 {
			row := rows[i*stride : i*stride+depth]
			if j+i < width {
				g.widenRow(row, c+j+i, p0)
			} else {
				clear(row)
			}
		}
		gemmTransposeF32(depth/8, rows, stride, dst[j:], gemmCols)
	}
}

// widenRow decodes row j of B from column p on, which begins a block.
func (g *gemmCall) widenRow(dst []float32, j, p int) {
	quants[g.quant].widen(dst, g.blocks[g.quant.rowBytes(j*g.ldb+p):])
}

// quantActivateGeneric rounds x, a multiple of 32, to p with scale dx and sx = dx sum p for every 32. A number that is none makes dx none.
func quantActivateGeneric(x []float32, p []int8, dx, sx []float32) {
	for b := 0; len(x) > 0; b++ {
		largest := uint32(0) // magnitudes as integers order alike, and NaN is the largest
		for _, v := range x[:quantBlock] {
			largest = max(largest, math.Float32bits(v)&^(1<<31))
		}
		top := math.Float32frombits(largest)
		dx[b] = top * (1.0 / 127)
		inverse := 127 / max(top, quantTiny)
		sum := int32(0)
		for i, v := range x[:quantBlock] {
			q := quantRound(v * inverse)
			p[i] = q
			sum += int32(q)
		}
		sx[b] = dx[b] * float32(sum)
		x, p = x[quantBlock:], p[quantBlock:]
	}
}

// quantTiny is below what 8 bits are worth spending on; its inverse is finite.
const quantTiny = 1.0 / (1 << 100)

// quantRound is the nearest integer, ties to even, -128 for what is no number.
func quantRound(v float32) int8 {
	if !(v >= -127.5 && v <= 127.5) {
		return -128
	}
	return int8(math.RoundToEven(float64(v)))
}
