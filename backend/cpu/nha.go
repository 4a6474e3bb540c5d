package cpu

import (
	"sync"

	"nha/attention"
	"nha/backend/cpu/kernel"
)

// The operator (SPEC 1) in float32. A task is one kv head of one sequence, which walks its tokens in chunks:
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
	nhaRows    = 128 // rows (tokens x query heads of the group) aimed at in a chunk
	nhaTokens  = 64  // tokens in a chunk, at most
	nhaTile    = 64  // keys in a tile
	nhaGroup   = 4   // tiles whose scores are held at once
	nhaStretch = 64  // chunks whose states backward holds
	nhaTurn    = 2048
)

// nha computes the operator on a pool. It owns its workers' scratch, which grows to the largest call and stays.
type nha struct {
	pool    *kernel.Pool
	mu      sync.Mutex
	workers []nhaWorker
	call    *attention.Call
	grads   *attention.Gradients // nil: forward
	offsets []int                // first token of every sequence
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
	n.pool.Run(len(c.Lengths)*c.KVHeads, n)
	n.call, n.grads = nil, nil
}

// Do is one kv head of one sequence.
func (n *nha) Do(worker, index int) {
	w, c := &n.workers[worker], n.call
	i := index / c.KVHeads
	w.begin(c, n.grads, i, index%c.KVHeads, n.offsets[i])
	switch {
	case n.grads != nil:
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

// nhaWorker is the kv head that a worker is at and the scratch for it. Matrices have rows padded to whole tiles, padding 0.
type nhaWorker struct {
	*attention.Config
	call    *attention.Call
	grads   *attention.Gradients
	initial *attention.State // nil: empty
	index   int              // sequence
	head    int              // kv head
	at      int              // the sequence's first token in the call
	tokens  int
	held    int // tokens that the initial ring brings

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
	keep                     []float32
	walk                     kernel.Matrix // a state that is walked through a chunk
	states                   []float32     // at the chunk starts of a stretch
	marks                    []float32     // at the stretch starts
	buffers                  [32][]float32
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
	w.Config, w.call, w.grads, w.index, w.head, w.at = c.Config, c, g, index, head, at
	w.tokens, w.initial, w.held = c.Lengths[index], stateOf(c.Initial, index), 0
	if w.initial != nil {
		w.held = w.initial.Count
	}
	w.group = c.Group()
	w.chunk = min(nhaTokens, max(8, nhaRows/w.group), max(1, w.tokens))
	w.keyWidth, w.valueWidth = roundUp(c.KeyDim, kernel.TileColumns), roundUp(c.ValueDim, kernel.TileColumns)
	w.slotWidth = roundUp(c.Slots, kernel.SlotUnit)
	w.bufferCount = 0
}

func roundUp(n, unit int) int { return (n + unit - 1) / unit * unit }

// floats is the next scratch buffer, of n floats. Calls come in the same order for every task, so that buffers are reused.
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

// key and value are token e's; gate logits exist for new tokens alone.
func (w *nhaWorker) key(e int) []float32 {
	if e < w.held {
		return ringRow(w.initial, w.initial.Keys.F32(), w.head, e, w.KeyDim)
	}
	return headRow(w.call.K.F32(), w.at+e-w.held, w.KVHeads, w.head, w.KeyDim)
}

func (w *nhaWorker) value(e int) []float32 {
	if e < w.held {
		return ringRow(w.initial, w.initial.Values.F32(), w.head, e, w.ValueDim)
	}
	return headRow(w.call.V.F32(), w.at+e-w.held, w.KVHeads, w.head, w.ValueDim)
}

func (w *nhaWorker) logits(e int) []float32 {
	return headRow(w.call.Z.F32(), w.at+e-w.held, w.KVHeads, w.head, w.Slots)
}

// gate writes token e's log forget factors and write strengths.
func (w *nhaWorker) gate(e int, logA, s []float32) {
	if e < w.held {
		copy(logA, ringRow(w.initial, w.initial.LogGates.F32(), w.head, e, w.Slots))
		for i, l := range logA {
			s[i] = writeStrength(l)
		}
		return
	}
	kernel.GateForward(logA, s, w.logits(e), float32(w.GateNormalizer))
}

// queryRow is row r of the chunk, token r/group and query head r%group, of a tensor with a row of width for each query head.
func (w *nhaWorker) queryRow(x []float32, r, width int) []float32 {
	token, g := w.at+w.first-w.held+r/w.group, r%w.group
	return headRow(x, token, w.QueryHeads, w.head*w.group+g, width)
}

func headRow(x []float32, token, heads, head, width int) []float32 {
	from := (token*heads + head) * width
	return x[from : from+width]
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
	q, scale := w.call.Q.F32(), float32(w.Scale)
	for r := range w.count * w.group {
		kernel.Scale(load(w.q, r, w.queryRow(q, r, w.KeyDim), w.keyWidth)[:w.KeyDim], scale)
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
