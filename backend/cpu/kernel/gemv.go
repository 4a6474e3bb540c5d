package kernel

// The skinny product of decoding, y = x W^T with a few rows of x: W is read once, so memory is the floor and nothing is packed.
//
// Four rows of W stream past up to gemvDotRows rows of x, which stay in L1; further rows of x find the four still there.
// Ranges of W's rows go to the threads; long ones, as the rows that a kernel fetches ahead are in vain at a range's end.
//
// A single row of x meets the rows of W one after the other where they are short: four streams that end after a kilobyte lose the
// prefetcher. Those of halves are fetched 2 KB ahead, over the ends of rows. Measured out of memory on one busy core, GB/s, fours against
// that: halves 10.0 and 16.4 at k = 576, 14.4 and 13.7 to 15 at 1536; float32 13.5 and 12 to 14.6 at 576.

const (
	gemvRows   = 16           // m up to which a product is skinny
	gemvChunk  = 256 << 10    // bytes of W to a range
	gemvLeast  = 64 << 10     // or, where that makes few ranges, this
	gemvCols   = 64           // columns of C computed before they are written
	gemvStride = gemvCols + 4 // the kernels write four at a time
	gemvShort  = 1024         // k under which float32 rows go one after the other: one stream from memory, 18.6 GB/s against 14.5 for four at k = 576
	gemvSerial = 64 << 10     // elements of W, times m, below which one thread is faster
)

// The kernels in use, how many rows of x they take, and what k must be a multiple of.
var (
	gemvDotF32  = gemvDotF32Generic
	gemvDotBF16 = gemvDotBF16Generic
	gemvDotF16  = gemvDotF16Generic
	gemvDotRows = 3
	gemvDotStep = 4

	// One row of x, and as many of W as there are; nil where fours are all there is.
	gemvEachBF16 = gemvEachBF16Generic
	gemvEachF16  = gemvEachF16Generic
)

func init() {
	register("generic", func() {
		gemvDotF32, gemvDotBF16, gemvDotF16 = gemvDotF32Generic, gemvDotBF16Generic, gemvDotF16Generic
		gemvDotRows, gemvDotStep = 3, 4
		gemvEachBF16, gemvEachF16 = gemvEachBF16Generic, gemvEachF16Generic
	})
}

func (j *gemmJob) runSkinny(p *Pool) {
	g := &j.call
	j.phase = gemmSkinny
	bytes, chunk, least := g.n*g.k*4, gemvChunk, gemvLeast
	switch g.element {
	case gemmBF16, gemmF16:
		bytes /= 2
		if g.each() != nil {
			chunk, least = quantChunk, quantLeast
		}
	case gemmQuant:
		bytes = g.n * g.quant.rowBytes(g.k)
	}
	j.cols = min(ceil(g.n, 4), max(ceil(bytes, chunk), min(4*p.threads, ceil(bytes, least))))
	if g.m*g.n*g.k <= gemvSerial {
		j.cols = 1
	}
	if j.cols == 1 {
		j.Do(0, 0)
		return
	}
	p.Run(j.cols, j)
}

// skinny computes range index of C's columns, that is of W's rows.
func (j *gemmJob) skinny(worker, index int) {
	from, to := part(index, j.cols, j.call.n, 4)
	for c := from; c < to; c += gemvCols {
		j.call.dots(&j.workspaces[worker], c, min(to, c+gemvCols))
	}
}

// each is the kernel for a single row of x and halves, if there is one.
func (g *gemmCall) each() func(rows, k int, x []float32, w []uint16, wRow int, out []float32) {
	switch {
	case g.m > 1:
		return nil
	case g.element == gemmBF16:
		return gemvEachBF16
	case g.element == gemmF16:
		return gemvEachF16
	}
	return nil
}

// dots computes columns [from, to) of C, gemvCols at most, by way of the workspace.
func (g *gemmCall) dots(ws *Workspace, from, to int) {
	out := ws.dots[:]
	if g.m == 1 && g.element == gemmF32 && g.k < gemvShort {
		for c := from; c < to; c++ {
			out[c-from] = vectors.dot(g.a[:g.k], g.b[c*g.ldb:c*g.ldb+g.k])
		}
		g.store(out, from, to, g.k)
		return
	}
	k := g.k / gemvDotStep * gemvDotStep
	if each := g.each(); each != nil {
		each(to-from, k, g.a, g.half[from*g.ldb:], g.ldb, out)
		g.store(out, from, to, k)
		return
	}
	groups := ceil(g.m, gemvDotRows)
	for c := from; c < to; {
		// Rows that do not make four are done one at a time, as four times the same.
		width, ldb := 4, g.ldb
		if c+4 > to {
			width, ldb = 1, 0
		}
		var rows []float32
		if g.element == gemmQuant {
			rows = grow(&ws.rows, width*g.k)
			for i := range width {
				g.widenRow(rows[i*g.k:(i+1)*g.k], c+i, 0)
			}
		}
		for t := range groups {
			r0, r1 := tileRows(t, groups, g.m)
			x, y := g.a[r0*g.lda:], out[r0*gemvStride+c-from:]
			switch g.element {
			case gemmF32:
				gemvDotF32(r1-r0, k, x, g.lda, g.b[c*g.ldb:], ldb, y, gemvStride)
			case gemmBF16:
				gemvDotBF16(r1-r0, k, x, g.lda, g.half[c*g.ldb:], ldb, y, gemvStride)
			case gemmF16:
				gemvDotF16(r1-r0, k, x, g.lda, g.half[c*g.ldb:], ldb, y, gemvStride)
			case gemmQuant:
				gemvDotF32(r1-r0, k, x, g.lda, rows, ldb, y, gemvStride)
			}
		}
		c += width
	}
	g.store(out, from, to, k)
}

// store adds to the products in out what lies beyond k, and brings them to columns [from, to) of C.
func (g *gemmCall) store(out []float32, from, to, k int) {
	for i := range g.m {
		y, to := out[i*gemvStride:i*gemvStride+to-from], g.c[i*g.ldc+from:i*g.ldc+to]
		for p := k; p < g.k; p++ {
			for c := range y {
				y[c] += g.a[i*g.lda+p] * g.weight((from+c)*g.ldb+p)
			}
		}
		if g.bias != nil {
			for c, v := range g.bias[from : from+len(y)] {
				y[c] += v
			}
		}
		if g.accumulate {
			for c, v := range y {
				to[c] += v
			}
		} else {
			copy(to, y)
		}
	}
}
