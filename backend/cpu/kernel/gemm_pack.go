package kernel

// packBlock lays rows [i0, i1) of op(A), columns [p0, p1), together: row after row where A has them so (a tile then reads
// a few streams), tile after tile and k by k where A is transposed.
func (g *gemmCall) packBlock(ws *Workspace, i0, i1, p0, p1, tiles int) {
	depth := p1 - p0
	dst := grow(&ws.a, (i1-i0)*(depth+gemmPad)+gemmSlack)
	if g.op != TN {
		for i := i0; i < i1; i++ {
			at := (i - i0) * (depth + gemmPad)
			copy(dst[at:at+depth], g.a[i*g.lda+p0:])
		}
		return
	}
	for t := range tiles {
		r0, r1 := tileRows(t, tiles, i1-i0)
		gemmCopy(depth, r1-r0, g.a[p0*g.lda+i0+r0:], g.lda, dst[r0*depth:], r1-r0)
	}
}

// packPanel lays columns [c, c+gemmCols) of op(B), rows [p0, p1), together, k by k; columns that B lacks are 0.
func (g *gemmCall) packPanel(ws *Workspace, dst []float32, c, p0, p1 int) {
	dst = dst[:(p1-p0)*gemmCols]
	width := min(gemmCols, g.n-c)
	if width < gemmCols {
		clear(dst)
	}
	if g.element == gemmQuant {
		g.packQuant(ws, dst, c, p0, p1, width)
		return
	}
	if g.op == NT {
		g.packTransposed(dst, c, p0, p1, width)
		return
	}
	for j := 0; j < width; j += 16 {
		gemmCopy(p1-p0, min(16, width-j), g.b[p0*g.ldb+c+j:], g.ldb, dst[j:], gemmCols)
	}
}

// packTransposed packs a panel of B [n,k], eight rows at a time.
func (g *gemmCall) packTransposed(dst []float32, c, p0, p1, width int) {
	blocks := (p1 - p0) / 8
	for j := 0; j < width; j += 8 {
		rest := p0
		if j+8 <= width && blocks > 0 {
			from := (c+j)*g.ldb + p0
			switch g.element {
			case gemmF32:
				gemmTransposeF32(blocks, g.b[from:], g.ldb, dst[j:], gemmCols)
			case gemmBF16:
				gemmTransposeBF16(blocks, g.half[from:], g.ldb, dst[j:], gemmCols)
			case gemmF16:
				gemmTransposeF16(blocks, g.half[from:], g.ldb, dst[j:], gemmCols)
			}
			rest += 8 * blocks
		}
		for i := j; i < min(j+8, width); i++ {
			for p := rest; p < p1; p++ {
				dst[(p-p0)*gemmCols+i] = g.weight((c+i)*g.ldb + p)
			}
		}
	}
}

// weight is element i of B as float32.
func (g *gemmCall) weight(i int) float32 {
	switch g.element {
	case gemmBF16:
		return gemmFromBF16(g.half[i])
	case gemmF16:
		return gemmFromF16(g.half[i])
	}
	return g.b[i]
}
