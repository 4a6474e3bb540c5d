package kernel

// The matrix product C (+)= op(A) op(B), float32, row-major, after Goto and van de Geijn (2008).
//
// A micro-kernel keeps a tile of C in registers (6 x 16 for AVX2, 12 x 32 for AVX-512) while it walks k. Around it, from the
// inside out: the tiles of a block of A, which lies in L2, pass over one panel of B (384 x 16, 24 KB), which lies in L1;
// the panels of B follow each other from L3; blocks of k follow each other, adding to C. The kernel takes strides, so
// memory is packed only where that pays: B, because its rows are far apart and a panel is read m/6 times; A, once its
// block outgrows L1.
//
// Two ways to share the work. A tall product packs B once for all, in parallel, and then hands out blocks of C. A
// flat one hands out ranges of columns, each of which packs its own panels just before use. Every element of
// C is the same sum in the same order either way, so neither the number of threads nor the split changes a bit.
//
// The floor is 2 fused multiply-adds of a whole vector a cycle. On 2 cores of Zen 3 (EPYC, AVX2, about 3.1 GHz) a tile in L1
// reaches 101 GFLOP/s a core; whole products 95 on one core, and on both 182 to 187 at 512 cubed, 175 at 1024, 160 to 185
// at the shapes of small models (OpenBLAS, best of many runs there: 186 at 512, 169 at 1024).

//go:generate go run -C _asm ./gemm -out ../gemm_amd64.s -stubs ../gemm_amd64.go -pkg kernel

// Op says which operands of a product are transposed in memory.
type Op uint8

const (
	NN Op = iota // A [m,k], B [k,n]
	NT           // A [m,k], B [n,k]
	TN           // A [k,m], B [k,n]
)

const (
	gemmM      = 96      // rows in a block of A: 144 KB at most, a part of L2
	gemmPacked = 4 << 20 // elements of B packed in one round, 16 MB: half of L3
	gemmMaxRow = 12      // largest tile of any instruction set
	gemmMaxCol = 32
	gemmSlack  = 16 // what gemmCopy may write behind its last row
	// gemmPad keeps packed rows of A out of step: a tile reads all of them at once, from distinct sets of L1. Measured on one
	// tile in L1, GFLOP/s: 88 at 0 and k 256, 101 at 2 to 32.
	gemmPad = 8

	// gemmSerialWork is the m n k below which waking a thread costs more than it brings.
	gemmSerialWork = 64 * 64 * 64
	// gemmFlat is the m up to which each range of columns packs for itself.
	gemmFlat = 96
)

// The kernels in use: see gemm_generic.go for what each computes.
var (
	gemmTile          = gemmTileGeneric
	gemmRows          = gemmGenericRows
	gemmCols          = gemmGenericCols
	gemmDepth         = gemmGenericDepth // k in a packed panel of B
	gemmCopy          = gemmCopyGeneric
	gemmTransposeF32  = gemmTransposeF32Generic
	gemmTransposeBF16 = gemmTransposeBF16Generic
	gemmTransposeF16  = gemmTransposeF16Generic
)

func init() {
	register("generic", func() {
		gemmTile, gemmRows, gemmCols, gemmDepth = gemmTileGeneric, gemmGenericRows, gemmGenericCols, gemmGenericDepth
		gemmCopy = gemmCopyGeneric
		gemmTransposeF32, gemmTransposeBF16, gemmTransposeF16 = gemmTransposeF32Generic, gemmTransposeBF16Generic, gemmTransposeF16Generic
	})
}

// gemmElement is the type that B is stored in.
type gemmElement uint8

const (
	gemmF32 gemmElement = iota
	gemmBF16
	gemmF16
	gemmQuant // blocks of one of the types in quant.go
)

// A Workspace holds the packing buffers of one worker. The zero value is ready; buffers grow to the largest product seen
// and stay.
type Workspace struct {
	a, b []float32
	rows []float32 // rows of quantised weights, widened
	tile [gemmMaxRow * gemmMaxCol]float32
	dots [gemvRows * gemvStride]float32
}

// gemmCall is one product.
type gemmCall struct {
	op            Op
	m, n, k       int
	alpha         float32
	a             []float32
	lda           int
	element       gemmElement
	b             []float32
	half          []uint16 // B where element is gemmBF16 or gemmF16
	quant         Quant
	blocks        []byte // B where element is gemmQuant
	ldb           int
	c             []float32
	ldc           int
	accumulate    bool
	bias          []float32
	packed        []float32 // all panels of columns [j0, j1), or nil
	j0, j1        int
	packA, packB  bool
	kParts, kPart int
}

// Gemm computes C = op(A) op(B) + bias, or adds that to C where accumulate is set, on the pool's threads. C is [m,n] with
// rows ldc apart, A and B as op says with rows lda and ldb apart, bias [n] or nil. C must not overlap A or B.
func Gemm(p *Pool, op Op, m, n, k int, a []float32, lda int, b []float32, ldb int, c []float32, ldc int, accumulate bool, bias []float32) {
	j := p.job()
	j.call = gemmCall{op: op, m: m, n: n, k: k, alpha: 1, a: a, lda: lda, b: b, ldb: ldb, c: c, ldc: ldc, accumulate: accumulate, bias: bias}
	j.run(p)
	p.release(j)
}

// GemmBF16 is Gemm with op NT and weights B [n,k] in bfloat16, read as they are; sums are float32.
func GemmBF16(p *Pool, m, n, k int, a []float32, lda int, b []uint16, ldb int, c []float32, ldc int, accumulate bool, bias []float32) {
	gemmHalf(p, gemmBF16, m, n, k, a, lda, b, ldb, c, ldc, accumulate, bias)
}

// GemmF16 is GemmBF16 for weights in IEEE half precision.
func GemmF16(p *Pool, m, n, k int, a []float32, lda int, b []uint16, ldb int, c []float32, ldc int, accumulate bool, bias []float32) {
	gemmHalf(p, gemmF16, m, n, k, a, lda, b, ldb, c, ldc, accumulate, bias)
}

func gemmHalf(p *Pool, element gemmElement, m, n, k int, a []float32, lda int, b []uint16, ldb int, c []float32, ldc int, accumulate bool, bias []float32) {
	j := p.job()
	j.call = gemmCall{op: NT, m: m, n: n, k: k, alpha: 1, a: a, lda: lda, element: element, half: b, ldb: ldb, c: c, ldc: ldc, accumulate: accumulate, bias: bias}
	j.run(p)
	p.release(j)
}

// GemmSerial computes C = alpha op(A) op(B), or adds that to C, on the calling goroutine: the product for use inside tasks.
func GemmSerial(ws *Workspace, op Op, m, n, k int, alpha float32, a []float32, lda int, b []float32, ldb int, c []float32, ldc int, accumulate bool) {
	choose()
	g := gemmCall{op: op, m: m, n: n, k: k, alpha: alpha, a: a, lda: lda, b: b, ldb: ldb, c: c, ldc: ldc, accumulate: accumulate}
	if !g.normalise() {
		return
	}
	g.plan()
	g.block(ws, 0, m, 0, n)
}

// gemmJob is a product on its way through a pool, with the buffers that it needs there.
type gemmJob struct {
	call       gemmCall
	phase      gemmPhase
	rows, cols int // the grid of ranges
	workspaces []Workspace
	packed     []float32
	rounded    quantised
}

type gemmPhase uint8

const (
	gemmPack gemmPhase = iota
	gemmCompute
	gemmSkinny
	gemmQuantised
)

// job takes a free job, so that products at the same time, nested ones too, never share buffers.
func (p *Pool) job() *gemmJob {
	choose()
	p.jobs.Lock()
	defer p.jobs.Unlock()
	if last := len(p.jobs.free) - 1; last >= 0 {
		j := p.jobs.free[last]
		p.jobs.free = p.jobs.free[:last]
		return j
	}
	return &gemmJob{workspaces: make([]Workspace, p.threads)}
}

func (p *Pool) release(j *gemmJob) {
	j.call = gemmCall{} // the operands are not ours to keep alive
	p.jobs.Lock()
	p.jobs.free = append(p.jobs.free, j)
	p.jobs.Unlock()
}

// run chooses how to share the product.
func (j *gemmJob) run(p *Pool) {
	g := &j.call
	if !g.normalise() {
		return
	}
	if g.op == NT && g.m <= gemvRows && (g.m <= 4 || g.k >= 128) {
		j.runSkinny(p)
		return
	}
	g.plan()
	j.phase = gemmCompute
	g.j0, g.j1 = 0, g.n
	switch {
	case g.m*g.n*g.k <= gemmSerialWork:
		g.block(&j.workspaces[0], 0, g.m, 0, g.n)
	case g.m <= gemmFlat:
		j.rows, j.cols = 1, g.ranges(4, p.threads)
		p.Run(j.cols, j)
	default:
		step := max(gemmCols, gemmPacked/max(g.k, 1)/gemmCols*gemmCols)
		for g.j0 = 0; g.j0 < g.n; g.j0 += step {
			g.j1 = min(g.n, g.j0+step)
			panels := ceil(g.j1-g.j0, gemmCols)
			g.packed = grow(&j.packed, panels*gemmCols*g.k)
			j.phase, j.cols = gemmPack, min(panels, 8*p.threads)
			p.Run(j.cols, j)
			j.phase = gemmCompute
			j.rows, j.cols = ceil(g.m, gemmM), 1
			if j.rows < 4*p.threads && !g.packA {
				j.cols = min(panels, ceil(4*p.threads, j.rows))
			} else if j.rows < 4*p.threads {
				j.rows = max(j.rows, min(4*p.threads, ceil(g.m, 4*gemmRows)))
				if j.rows < 2*p.threads {
					j.cols = g.ranges(1, p.threads)
				}
			}
			p.Run(j.rows*j.cols, j)
		}
	}
}

// ranges is how many ranges of columns to make, wanted for each thread. Each packs A anew, which costs as much as multiplying
// with half a panel.
func (g *gemmCall) ranges(wanted, threads int) int {
	if threads == 1 {
		return 1
	}
	least := 1
	if g.packA {
		least = 8
	}
	return max(1, min(wanted*threads, (g.j1-g.j0)/(least*gemmCols)))
}

// Do computes one range of the current phase.
func (j *gemmJob) Do(worker, index int) {
	g := &j.call
	switch j.phase {
	case gemmPack:
		c0, c1 := g.columns(index, j.cols)
		for c := c0; c < c1; c += gemmCols {
			for q := range g.kParts {
				p0, p1 := g.depth(q)
				g.packPanel(&j.workspaces[worker], g.packed[(c-g.j0)*g.k+p0*gemmCols:], c, p0, p1)
			}
		}
	case gemmCompute:
		i0, i1 := part(index/j.cols, j.rows, g.m, gemmRows)
		c0, c1 := g.columns(index%j.cols, j.cols)
		g.block(&j.workspaces[worker], i0, i1, c0, c1)
	case gemmSkinny:
		j.skinny(worker, index)
	case gemmQuantised:
		j.quantRange(worker, index)
	}
}

func ceil(a, b int) int { return (a + b - 1) / b }

// part is the range i of parts equal ones of [0, n), cut at multiples of unit.
func part(i, parts, n, unit int) (from, to int) {
	units := ceil(n, unit)
	return i * units / parts * unit, min(n, (i+1)*units/parts*unit)
}

func (g *gemmCall) columns(i, parts int) (from, to int) {
	from, to = part(i, parts, g.j1-g.j0, gemmCols)
	return g.j0 + from, g.j0 + to
}

// depth is block q of k.
func (g *gemmCall) depth(q int) (from, to int) {
	return min(g.k, q*g.kPart), min(g.k, (q+1)*g.kPart)
}

func grow(buffer *[]float32, n int) []float32 {
	if cap(*buffer) < n {
		*buffer = make([]float32, n)
	}
	return (*buffer)[:n]
}

var gemmZero [1]float32

// normalise reports whether there is anything to compute. A sum over no k becomes one over a single zero, as C still takes
// its bias.
func (g *gemmCall) normalise() bool {
	if g.k == 0 {
		g.op, g.k, g.element = NT, 1, gemmF32
		g.a, g.lda, g.b, g.ldb = gemmZero[:], 0, gemmZero[:], 0
	}
	return g.m > 0 && g.n > 0
}

// plan cuts k into equal blocks and decides what to pack. The figures are where packing began to win on Zen 3 in L2.
func (g *gemmCall) plan() {
	unit := 8
	if g.element == gemmQuant {
		unit = quantLayout[g.quant].elements
	}
	g.kParts = max(1, ceil(g.k, gemmDepth/unit*unit))
	g.kPart = ceil(ceil(g.k, g.kParts), unit) * unit
	depth := min(g.k, g.kPart)
	switch g.op {
	case TN:
		// The tile's rows lie in one line of memory, each step of k in another: they must all stay close.
		g.packA = g.n > 2*gemmCols && (g.lda*depth > 16<<10 || depth > 128)
	default:
		// A tile reads a few streams, as good as packed memory until many panels of B pass.
		g.packA = g.n > 512
	}
	switch {
	case g.op == NT:
		g.packB = true
	case g.m <= 2*gemmRows:
		g.packB = false
	default:
		// Rows whole pages apart fall into the same few sets of the caches.
		g.packB = g.ldb*depth > 64<<10 || g.ldb%1024 == 0
	}
}

// block computes rows [i0, i1) and columns [c0, c1) of C.
func (g *gemmCall) block(ws *Workspace, i0, i1, c0, c1 int) {
	blocks := ceil(i1-i0, gemmM)
	for r := range blocks {
		r0, r1 := part(r, blocks, i1-i0, gemmRows)
		for q := range g.kParts {
			g.blockDepth(ws, i0+r0, i0+r1, c0, c1, q)
		}
	}
}

func (g *gemmCall) blockDepth(ws *Workspace, i0, i1, c0, c1, q int) {
	p0, p1 := g.depth(q)
	depth := p1 - p0
	add, bias := 0, g.bias
	if g.accumulate || q > 0 {
		add = 1
	}
	if q > 0 {
		bias = nil
	}
	tiles := ceil(i1-i0, gemmRows)
	if g.packA {
		g.packBlock(ws, i0, i1, p0, p1, tiles)
	}
	for c := c0; c < c1; c += gemmCols {
		var b []float32
		bRow := gemmCols
		width := min(gemmCols, c1-c)
		switch {
		case g.packed != nil:
			b = g.packed[(c-g.j0)*g.k+p0*gemmCols:]
		case g.packB || width < gemmCols:
			b = grow(&ws.b, depth*gemmCols)
			g.packPanel(ws, b, c, p0, p1)
		default:
			b, bRow = g.b[p0*g.ldb+c:], g.ldb
		}
		for t := range tiles {
			r0, r1 := tileRows(t, tiles, i1-i0)
			rows := r1 - r0
			var a []float32
			var aRow, aCol int
			switch {
			case g.packA && g.op == TN:
				a, aRow, aCol = ws.a[r0*depth:], 1, rows
			case g.packA:
				a, aRow, aCol = ws.a[r0*(depth+gemmPad):], depth+gemmPad, 1
			case g.op == TN:
				a, aRow, aCol = g.a[p0*g.lda+i0+r0:], 1, g.lda
			default:
				a, aRow, aCol = g.a[(i0+r0)*g.lda+p0:], g.lda, 1
			}
			out := g.c[(i0+r0)*g.ldc+c:]
			if width < gemmCols {
				gemmTile(rows, depth, a, aRow, aCol, b, bRow, ws.tile[:], gemmCols, g.alpha, nil, 0)
				g.storeEdge(ws, out, rows, width, c, add != 0, bias)
				continue
			}
			if bias != nil {
				gemmTile(rows, depth, a, aRow, aCol, b, bRow, out, g.ldc, g.alpha, bias[c:], add)
			} else {
				gemmTile(rows, depth, a, aRow, aCol, b, bRow, out, g.ldc, g.alpha, nil, add)
			}
		}
	}
}

// tileRows is tile t of n rows. They differ by at most one, since a tile of a single row would wait for its own sums.
func tileRows(t, tiles, n int) (from, to int) {
	return t * n / tiles, (t + 1) * n / tiles
}

// storeEdge moves the columns that exist from the workspace's tile to C.
func (g *gemmCall) storeEdge(ws *Workspace, out []float32, rows, width, c int, add bool, bias []float32) {
	for i := range rows {
		tile, to := ws.tile[i*gemmCols:i*gemmCols+width], out[i*g.ldc:i*g.ldc+width]
		for j := range tile {
			v := tile[j]
			if bias != nil {
				v += bias[c+j]
			}
			if add {
				v += to[j]
			}
			to[j] = v
		}
	}
}
