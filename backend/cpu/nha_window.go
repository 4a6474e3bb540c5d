package cpu

import (
	"nha/backend/cpu/kernel"
)

// The window branch: positions, tiles of keys, and the band of scores that a chunk of queries sees.

// startWindow sets up positions and tiles for a head. reach is how many tokens a chunk and its window span.
func (w *nhaWorker) startWindow() {
	reach := min(w.all(), w.chunk+min(w.Window, w.all()))
	w.tileCount = min(roundUp(reach, nhaTile)/nhaTile+1, roundUp(w.all(), nhaTile)/nhaTile)
	w.span = roundUp(w.all(), nhaTile)
	if w.Window < w.all() {
		w.span = min(w.span, roundUp(reach, nhaTile)+nhaTurn)
	}
	w.base = 0
	w.cos, w.sin = nil, nil
	if w.Rope != nil {
		w.cos, w.sin = w.Rope.Table(w.span)
	}
	for len(w.tiles) < w.tileCount {
		w.tiles = append(w.tiles, nhaKeys{})
	}
	for i := range w.tiles[:w.tileCount] {
		w.tiles[i].index = -1
	}
	w.groupTiles = min(nhaGroup, w.tileCount)
	w.tileRows = w.matrix(nhaTile, max(w.keyWidth, w.valueWidth))
	w.scores = w.matrix(w.chunk*w.group, w.groupTiles*nhaTile)
}

// rotate turns x by the position of token e, or back.
func (w *nhaWorker) rotate(dst, x []float32, e int, inverse bool) {
	if w.Rope == nil {
		copy(dst, x)
		return
	}
	half := w.KeyDim / 2
	at := (e - w.base) * half
	kernel.Rotate(dst, x, w.cos[at:at+half], w.sin[at:at+half], inverse)
}

// windowStart is the oldest token that token e sees.
func (w *nhaWorker) windowStart(e int) int { return max(0, e-w.Window+1) }

// aim lets positions count from a token from which the tables reach the whole chunk and its window.
func (w *nhaWorker) aim() {
	lo, end := w.windowStart(w.first), w.first+w.count
	if lo >= w.base && end-w.base <= w.span {
		return
	}
	w.dropTiles()
	w.base = lo - lo%nhaTile
	if w.grads != nil {
		w.base = max(0, roundUp(end, nhaTile)-w.span)
	}
}

func (w *nhaWorker) dropTiles() {
	for i := range w.tiles[:w.tileCount] {
		w.flush(&w.tiles[i])
	}
}

// rotateQueries makes the chunk's rotated queries.
func (w *nhaWorker) rotateQueries() {
	for r := range w.count * w.group {
		row := w.rq.Row(r)[:w.keyWidth]
		w.rotate(row[:w.KeyDim], w.q.Row(r)[:w.KeyDim], w.first+r/w.group, false)
		clear(row[w.KeyDim:])
	}
}

// tile is tile number index, loaded. A place that it takes over belonged to a tile that the walk has left behind.
func (w *nhaWorker) tile(index int) *nhaKeys {
	k := &w.tiles[index%w.tileCount]
	if k.index == index {
		return k
	}
	w.flush(k)
	k.index = index
	k.shape(w)
	from := index * nhaTile
	n := min(nhaTile, w.all()-from)
	backward := w.grads != nil
	rows := w.tileRows
	rows.Stride = oddLines(w.keyWidth)
	if backward {
		rows = k.keys
	}
	for i := range nhaTile {
		row := rows.Row(i)[:w.keyWidth]
		if i >= n {
			clear(row)
			continue
		}
		w.rotate(row[:w.KeyDim], w.key(from+i), from+i, false)
		clear(row[w.KeyDim:])
	}
	kernel.Transpose(nhaTile, w.keyWidth, rows, k.keysT)
	rows = k.values
	if backward {
		rows = w.tileRows
		rows.Stride = oddLines(w.valueWidth)
	}
	for i := range nhaTile {
		if i < n {
			load(rows, i, w.value(from+i), w.valueWidth)
		} else {
			load(rows, i, nil, w.valueWidth)
		}
	}
	if backward {
		kernel.Transpose(nhaTile, w.valueWidth, rows, k.values)
		clear(k.dKeys.Data)
		clear(k.dValues.Data)
	}
	return k
}

// shape lays the tile's matrices out in its memory.
func (k *nhaKeys) shape(w *nhaWorker) {
	key, value, across := oddLines(w.keyWidth), oddLines(w.valueWidth), oddLines(nhaTile)
	n := w.keyWidth*across + nhaTile*value
	if w.grads != nil {
		n = w.keyWidth*across + w.valueWidth*across + 2*nhaTile*key + nhaTile*value
	}
	if cap(k.memory) < n {
		k.memory = make([]float32, n)
	}
	rest := k.memory[:n]
	take := func(rows, stride int) kernel.Matrix {
		m := kernel.Matrix{Data: rest[:rows*stride], Stride: stride}
		rest = rest[rows*stride:]
		return m
	}
	k.keysT = take(w.keyWidth, across)
	if w.grads == nil {
		k.values = take(nhaTile, value)
		return
	}
	k.values = take(w.valueWidth, across)
	k.keys, k.dKeys, k.dValues = take(nhaTile, key), take(nhaTile, key), take(nhaTile, value)
}

// band is a few rows of the chunk and the keys that any of them sees, within a group of tiles that starts at key from.
type band struct {
	row, rows int // rows of the chunk
	from      int
	lo, hi    int // keys
}

// bandRows is the height of a band: a multiple of the matrix kernels' heights, low, as every row computes the keys of all.
const bandRows = 12

func (w *nhaWorker) bandAt(row, from, to int) band {
	b := band{row: row, rows: min(bandRows, w.count*w.group-row), from: from}
	last := w.first + (row+b.rows-1)/w.group
	b.lo, b.hi = max(from, w.windowStart(w.first+row/w.group)), min(to, last+1)
	return b
}

// seen is the keys of the band that row r sees, as columns of the scores.
func (w *nhaWorker) seen(b band, r int) (lo, hi int) {
	e := w.first + r/w.group
	lo, hi = max(b.lo, w.windowStart(e))-b.from, min(b.hi, e+1)-b.from
	return lo, max(lo, hi)
}

// eachTile calls f for the tiles of a band with the keys of it that the band sees.
func (w *nhaWorker) eachTile(b band, f func(k *nhaKeys, lo, hi int)) {
	for lo := b.lo; lo < b.hi; {
		index := lo / nhaTile
		hi := min(b.hi, (index+1)*nhaTile)
		f(w.tile(index), lo, hi)
		lo = hi
	}
}

// product writes the products of a band's rows of a with the columns of a transposed tile to its columns of the scores.
func (w *nhaWorker) product(b band, a kernel.Matrix, width int, k kernel.Matrix, index, lo, hi int, to kernel.Matrix) {
	at := lo - index*nhaTile
	at -= at % kernel.TileWidth()
	columns := hi - index*nhaTile - at
	k.Data = k.Data[at:]
	to.Data = to.Data[b.row*to.Stride+index*nhaTile+at-b.from:]
	kernel.MatrixTiles(b.rows, columns, width, a.Row(b.row), a.Stride, 1, k, to, false)
}
