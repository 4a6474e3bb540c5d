package cpu

import (
	"sync"

	"nha/attention"
	"nha/backend/cpu/kernel"
	"nha/tensor"
)

// The operator (SPEC 1) in float32. A task is one kv head of one sequence, or a part of it (nha_parts.go), which walks its tokens
// in chunks:
//
//	slots    by recurrence, in registers (kernel.SlotRead, SlotWrite, SlotBackward), never as the chunk's matrix form
//	window   as flash attention does it: tiles of 64 keys, a running maximum and sum for each row, only the band computed
//	both     under one softmax: slot logits first, then the tiles, then the slots' probabilities
//
// Nothing bigger than a tile of scores is formed. Positions count from some token near the window, as logits depend on differences
// alone. Backward recomputes scores from the saved log of the denominator, and the slots from the states at chunk starts, which it
// gets by one more sweep; for long sequences by a sweep for each stretch of chunks, so that memory does not follow T.
//
// Tokens are counted as in package attention: e = held + t, the ring's tokens in front; token e-W enters the slots at e.

const (
	nhaRows   = 128  // rows (tokens x query heads of the group) aimed at in a chunk
	nhaTokens = 64   // tokens in a chunk, at most
	nhaTile   = 64   // keys in a tile
	nhaGroup  = 4    // tiles whose scores are held at once
	nhaTurn   = 2048 // tokens, at least, that a finite window moves on before positions count anew
)

// nhaStretch is how many chunks' states backward holds: 131072 tokens at 64 slots and heads of 64 are 64 MB a worker, a tenth of the tensors
// themselves, and save a second sweep (8% of backward). Tests make it short.
var nhaStretch = 2048

// nha computes the operator on a pool. It owns its workers' scratch, which grows to the largest call and stays.
type nha struct {
	pool    *kernel.Pool
	mu      sync.Mutex
	workers []nhaWorker
	call    *attention.Call
	grads   *attention.Gradients // nil: forward
	offsets []int                // first token of every sequence

	phase                   nhaPhase
	parts                   []nhaPart // none: tasks are whole heads
	decays                  []float64 // what the parts share out
	states, adjoints, aside []float32

	reaches   []nhaReach // of single tokens with long windows
	reachesOf []int      // where those of each sequence and head begin, and their number
	reached   []float32  // what they found
}

func newNHA(pool *kernel.Pool) *nha {
	return &nha{pool: pool, workers: make([]nhaWorker, pool.Threads())}
}

// Forward computes O, LSE, Share and the final states of a float32 call.
func (n *nha) Forward(c *attention.Call) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for i, tokens := range c.Lengths {
		if final := stateOf(c.Final, i); final != nil {
			prepareFinal(c, stateOf(c.Initial, i), final, tokens)
		}
	}
	n.run(c, nil)
	for i, tokens := range c.Lengths {
		if final := stateOf(c.Final, i); final != nil {
			advance(c, stateOf(c.Initial, i), final, tokens)
		}
	}
}

// Backward computes the gradients of a float32 call whose O and LSE Forward has filled.
func (n *nha) Backward(c *attention.Call, g *attention.Gradients) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for i := range c.Lengths {
		if d := stateOf(g.DInitial, i); d != nil {
			prepareGradient(c, stateOf(c.Initial, i), d)
		}
	}
	n.run(c, g)
}

func (n *nha) run(c *attention.Call, g *attention.Gradients) {
	n.call, n.grads, n.offsets = c, g, n.offsets[:0]
	at := 0
	for _, tokens := range c.Lengths {
		n.offsets = append(n.offsets, at)
		at += tokens
	}
	n.cut(c)
	if len(n.parts) > 0 {
		n.runParts()
	} else {
		n.reach(c, g)
		n.phase = nhaHeads
		n.pool.Run(len(c.Lengths)*c.KVHeads, n)
	}
	n.call, n.grads = nil, nil
	for i := range n.workers {
		n.workers[i].nhaHead = nhaHead{} // the operands are not ours to keep alive
	}
}

// Do is one kv head of one sequence, or a phase of a part of it.
func (n *nha) Do(worker, index int) {
	w, c := &n.workers[worker], n.call
	switch n.phase {
	case nhaHeads:
		i := index / c.KVHeads
		w.begin(c, n.grads, i, index%c.KVHeads, n.offsets[i])
		w.found = n.reaches[n.reachesOf[index]:n.reachesOf[index+1]]
		w.compute()
	case nhaReaches:
		r := &n.reaches[index]
		w.begin(c, nil, r.index, r.head, n.offsets[r.index])
		w.reach(r)
	default:
		n.doPart(w, index)
	}
}

func (w *nhaWorker) compute() {
	switch {
	case w.grads != nil:
		w.backward()
	case w.tokens == 1:
		w.step()
	default:
		w.forward()
	}
}

func stateOf(states []*attention.State, i int) *attention.State {
	if states == nil {
		return nil
	}
	return states[i]
}

// nhaHead is the kv head that a worker is at.
type nhaHead struct {
	*attention.Config
	call    *attention.Call
	grads   *attention.Gradients
	initial *attention.State // nil: empty
	index   int              // sequence
	head    int              // kv head
	at      int              // the sequence's first token in the call
	tokens  int
	held    int // tokens that the initial ring brings

	part     *nhaPart // nil: the whole head
	from, to int      // its tokens e
	owned    int      // from here on gradients go where they belong, else aside
	found    []nhaReach
	decay    []float64

	ring, dRing                    ring // the initial state's, and its gradient's
	queries, k, v, z               column
	outputs, lse, share            column
	dOutputs, dQueries, dK, dV, dZ column
}

// nhaWorker is a head and the scratch for it. Matrices have rows padded to whole tiles, padding 0.
type nhaWorker struct {
	nhaHead

	group, chunk         int // query heads, tokens in a chunk
	keyWidth, valueWidth int // K and V, padded
	slotWidth            int // M, padded
	cos, sin             []float32
	base                 int // the token whose position counts as 0, a multiple of nhaTile
	first, count         int // the chunk: its first token e and its tokens
	keyState, valueState kernel.Matrix
	q, rq, o             kernel.Matrix // [rows, K] scaled; the same rotated; [rows, V]
	x, y                 kernel.Matrix // keys and values that enter in this chunk
	s, logA              kernel.Matrix // their gates
	weights              kernel.Matrix // slot logits, then probabilities
	gateScratch          []float32
	logSum               []float32 // of a chunk's log a

	tiles                 []nhaKeys     // tile i lies in tiles[i%tileCount]
	tileCount, groupTiles int           // tiles kept; tiles whose scores are held at once
	tileRows              kernel.Matrix // a tile on its way
	span                  int           // tokens that the rotary tables cover from base on
	scores                kernel.Matrix // of a group of tiles; in backward the probabilities
	top, sum              []float32     // running maximum and sum of the window's rows

	keyAdjoint, valueAdjoint kernel.Matrix // U [M, K] and R [M, V]
	dO, dq, dRotated         kernel.Matrix // [rows, V], [rows, K], [rows, K]
	dx, dy, dA               kernel.Matrix // of the entering tokens
	reads, dWeights          kernel.Matrix // Vs . dO, and gradients of the slot logits
	dScores                  kernel.Matrix
	inner                    []float32 // dO . o of a row
	widenedKey, widenedValue []float32 // one row of a ring in half precision
	stretch                  []float32 // a few rows of a ring, turned or widened
	keep                     []float32
	walk                     []float32     // slots on their way through a chunk
	keyMiddle, valueMiddle   kernel.Matrix // and where its second half begins
	states                   []float32     // at the chunk starts of a stretch
	marks                    []float32     // at the stretch starts
	buffers                  [40][]float32
	bufferCount              int
}

// nhaKeys is one tile of keys and values in the forms that products want.
type nhaKeys struct {
	index          int           // tile number, -1: none
	keysT          kernel.Matrix // [K, tile] rotated
	values         kernel.Matrix // [tile, V]; in backward [V, tile]
	keys           kernel.Matrix // backward: [tile, K] rotated
	dKeys, dValues kernel.Matrix // backward
	memory         []float32
}

func (w *nhaWorker) begin(c *attention.Call, g *attention.Gradients, index, head, at int) {
	w.nhaHead = nhaHead{Config: c.Config, call: c, grads: g, index: index, head: head, at: at}
	w.tokens, w.initial = c.Lengths[index], stateOf(c.Initial, index)
	if w.initial != nil {
		w.held = w.initial.Count
	}
	w.from, w.to = w.held, w.all()
	w.ring = w.ringOf(w.initial)
	w.group = c.Group()
	keys, values := w.group*c.KeyDim, w.group*c.ValueDim
	w.queries, w.k, w.v, w.z = w.columnOf(c.Q, keys), w.columnOf(c.K, c.KeyDim), w.columnOf(c.V, c.ValueDim), w.columnOf(c.Z, c.Slots)
	w.outputs, w.lse, w.share = w.columnOf(c.O, values), w.columnOf(c.LSE, w.group), w.columnOf(c.Share, w.group)
	if g != nil {
		w.dOutputs, w.dQueries = w.columnOf(g.DO, values), w.columnOf(g.DQ, keys)
		w.dK, w.dV, w.dZ = w.columnOf(g.DK, c.KeyDim), w.columnOf(g.DV, c.ValueDim), w.columnOf(g.DZ, c.Slots)
		w.dRing = w.ringOf(stateOf(g.DInitial, index))
	}
	w.chunk = chunkOf(w.group, w.tokens)
	w.keyWidth, w.valueWidth = roundUp(c.KeyDim, kernel.TileColumns), roundUp(c.ValueDim, kernel.TileColumns)
	w.slotWidth = roundUp(c.Slots, kernel.SlotUnit)
	w.bufferCount = 0
	w.widenedKey, w.widenedValue = w.floats(c.KeyDim), w.floats(c.ValueDim)
}

func roundUp(n, unit int) int { return (n + unit - 1) / unit * unit }

// floats is the next scratch buffer, of n floats. Tasks of a kind ask in the same order, so buffers stay.
func (w *nhaWorker) floats(n int) []float32 {
	b := &w.buffers[w.bufferCount]
	w.bufferCount++
	if cap(*b) < n {
		*b = make([]float32, n)
	}
	return (*b)[:n]
}

// matrix is a scratch matrix. Its rows lie an odd number of cache lines apart, so that a block of columns spreads over all of L1.
func (w *nhaWorker) matrix(rows, columns int) kernel.Matrix {
	stride := oddLines(columns)
	return kernel.Matrix{Data: w.floats(rows * stride), Stride: stride}
}

func oddLines(columns int) int {
	lines := roundUp(columns, 16) / 16
	return (lines | 1) * 16
}

// all is the number of tokens of the sequence, the ring's among them.
func (w *nhaWorker) all() int { return w.held + w.tokens }

// A column is one kv head's part of a packed tensor, from the sequence's first token on.
type column struct {
	data          []float32
	stride, width int
}

// columnOf takes width numbers for each of heads from the row of a token; nothing from an absent tensor.
func (w *nhaWorker) columnOf(t tensor.Tensor, width int) column {
	if !t.Present() || w.tokens == 0 || width == 0 {
		return column{}
	}
	return column{t.F32()[(w.at*w.KVHeads+w.head)*width:], w.KVHeads * width, width}
}

func (c column) row(t int) []float32 { return c.data[t*c.stride : t*c.stride+c.width] }

// reader is row r of the chunk, token r/group and query head r%group, in a column of the queries of a kv head.
func (w *nhaWorker) reader(c column, r int) []float32 {
	width := c.width / w.group
	from := (w.first-w.held+r/w.group)*c.stride + r%w.group*width
	return c.data[from : from+width]
}

// key, value and gate are token e's, of the ring or of the call; those of a ring in half precision are good until the next.
func (w *nhaWorker) key(e int) []float32 {
	switch {
	case e >= w.held:
		return w.k.row(e - w.held)
	case w.ring.keys16 != nil:
		kernel.WidenF16(w.widenedKey, rowOf(w.ring.keys16, w.ring.row(e), w.KeyDim))
		return w.widenedKey
	}
	return w.ring.key(e)
}

func (w *nhaWorker) value(e int) []float32 {
	switch {
	case e >= w.held:
		return w.v.row(e - w.held)
	case w.ring.values16 != nil:
		kernel.WidenF16(w.widenedValue, rowOf(w.ring.values16, w.ring.row(e), w.ValueDim))
		return w.widenedValue
	}
	return w.ring.value(e)
}

// gate writes token e's log forget factors and write strengths.
func (w *nhaWorker) gate(e int, logA, s []float32) {
	if e >= w.held {
		kernel.GateForward(logA, s, w.z.row(e-w.held), float32(w.GateNormalizer))
		return
	}
	copy(logA, w.ring.gate(e))
	for i, l := range logA {
		s[i] = writeStrength(l)
	}
}

// live reports whether slots take part for token e.
func (w *nhaWorker) live(e int) bool {
	return w.Slots > 0 && (w.EmptySlots == attention.Count || e >= w.Window)
}

// load copies src into a row of a padded matrix.
func load(dst kernel.Matrix, row int, src []float32, width int) []float32 {
	d := dst.Row(row)[:width]
	clear(d[copy(d, src):])
	return d
}

// startChunk moves to the tokens from e on and loads their queries and whatever enters with them.
func (w *nhaWorker) startChunk(e int) {
	w.first, w.count = e, min(w.chunk, w.all()-e)
	scale := float32(w.Scale)
	for r := range w.count * w.group {
		kernel.Scale(load(w.q, r, w.reader(w.queries, r), w.keyWidth)[:w.KeyDim], scale)
	}
	if !w.idle() {
		w.loadEntering()
	}
}

// entering reports whether any token of the chunk finds one that leaves the window.
func (w *nhaWorker) entering() bool { return w.Slots > 0 && w.first+w.count > w.Window }

// idle reports whether the slots are empty before, in and after the chunk: their logits are 0, and nothing comes of them.
func (w *nhaWorker) idle() bool { return w.Slots == 0 || !w.entering() && w.initial == nil }

// loadEntering gathers the keys, values and gates of the tokens that leave the window. A token that finds none gets s = 0.
func (w *nhaWorker) loadEntering() {
	for t := range w.count {
		s, logA := w.s.Row(t)[:w.slotWidth], w.logA.Row(t)[:w.slotWidth]
		clear(s)
		j := w.first + t - w.Window
		if j < 0 {
			load(w.x, t, nil, w.keyWidth) // multiplied by 0, so it must be a number
			load(w.y, t, nil, w.valueWidth)
			continue
		}
		load(w.x, t, w.key(j), w.keyWidth)
		load(w.y, t, w.value(j), w.valueWidth)
		w.gate(j, logA[:w.Slots], s[:w.Slots])
	}
}

// keyShape and valueShape are what the slot kernels loop over in this chunk.
func (w *nhaWorker) keyShape() kernel.SlotShape {
	return kernel.SlotShape{Tokens: w.count, Group: w.group, Slots: w.slotWidth, Columns: w.keyWidth}
}

func (w *nhaWorker) valueShape() kernel.SlotShape {
	return kernel.SlotShape{Tokens: w.count, Group: w.group, Slots: w.slotWidth, Columns: w.valueWidth}
}
