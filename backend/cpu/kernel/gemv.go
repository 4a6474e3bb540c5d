package kernel

// The skinny product of decoding, y = x W^T with a few rows of x: W is read once, so memory is the floor and nothing is packed.
//
// Four rows of W stream past up to gemvDotRows rows of x, which stay in L1; further rows of x find the four still there.
// Ranges of W's rows go to the threads; long ones, as the rows that a kernel fetches ahead are in vain at a range's end. Measured
// with 48 MB of bfloat16 on two busy cores, GB/s: 10.0 without fetching ahead, 11.0 with it, 12.0 with long ranges too, where
// plain sums read 17.

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
)

func init() {
	register("generic", func() {
		gemvDotF32, gemvDotBF16, gemvDotF16 = gemvDotF32Generic, gemvDotBF16Generic, gemvDotF16Generic
		gemvDotRows, gemvDotStep = 3, 4
	})
}

func (j *gemmJob) runSkinny(p *Pool) {
	g := &j.call
	j.phase = gemmSkinny
	bytes := g.n * g.k * 4
	switch g.element {
	case gemmBF16, gemmF16:
		bytes /= 2
	case gemmQuant:
		bytes = g.n * g.quant.rowBytes(g.k)
	}
	j.cols = min(ceil(g.n, 4), max(ceil(bytes, gemvChunk), min(4*p.threads, ceil(bytes, gemvLeast))))
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
