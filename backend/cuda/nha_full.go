package cuda

import "slices"

// The window's kernels (kernels/nha_full.cu): attention without slots, and the window's part of backward.

// nhaFullRows are the queries of a block of forward.
const nhaFullRows = 128

// queryRows are the queries of a block of backward.
func (s nhaShape) queryRows() int {
	if max(s.key, s.value) <= 64 {
		return 64
	}
	return 128
}

// turned are rotated queries [N, Hq, Kp] and keys [tokens and rings, H, Kp]: in float16, queries with the scale in them, for backward
// beside slots with what rounding left of queries, and in bf16 as backward needs them.
type turned struct{ queries, keys, restQueries, wideQueries, wideKeys arg }

// turn rotates queries and keys; where there is no window there is nothing to do.
func (r *nhaRun) turn(backward bool) (t turned) {
	c, b, width := r.c, r.b, r.shape().key
	if c.Window == 0 {
		return t
	}
	queries, keys := 2*c.Q.Dim(0)*c.QueryHeads*width, 2*r.all*c.KVHeads*width
	t.queries, t.keys = b.scratch(queries), b.scratch(keys)
	if backward {
		t.wideQueries, t.wideKeys = b.scratch(queries), b.scratch(keys)
		if r.slots > 0 {
			t.restQueries = b.scratch(queries)
		}
	}
	r.launch(nhaTurn, grid{r.chunks.n * (c.QueryHeads + c.KVHeads), 1, 1}, r.table, r.chunks.at, pointer(c.Q), pointer(c.K), r.cos, r.sin,
		t.queries, t.keys, t.restQueries, t.wideQueries, t.wideKeys, r.queryHeads(), r.heads(), r.scale())
	return t
}

// blocksOf are all blocks of so many tokens, as pairs of a sequence and a block in it; ring: from the ring's first token on,
// otherwise from the call's, and where windows are long those that see most first.
func (r *nhaRun) blocksOf(size int, ring bool) []int32 {
	var pairs [][2]int32
	for i, s := range r.sequences {
		tokens := int(s.tokens)
		if ring {
			tokens += int(s.held)
		}
		for n := range blocks(tokens, size) {
			pairs = append(pairs, [2]int32{int32(i), int32(n)})
		}
	}
	if !ring && r.c.Window > nhaFullRows {
		slices.SortStableFunc(pairs, func(x, y [2]int32) int { return int(y[1] - x[1]) })
	}
	items := make([]int32, 0, 2*len(pairs))
	for _, p := range pairs {
		items = append(items, p[0], p[1])
	}
	return items
}

func (r *nhaRun) fullForward(t turned) {
	c := r.c
	r.launch(nhaFullForward, grid{r.blocks.n * c.QueryHeads, 1, 1}, r.table, r.blocks.at, t.queries, t.keys, pointer(c.V), pointer(c.O), pointer(c.LSE), pointer(c.Share),
		r.queryHeads(), r.heads(), r.window(), f32(r.sinks))
}

// fullQueries gives dq, exact and inner, or what nha_backward_queries makes them from.
func (r *nhaRun) fullQueries(t turned, rest, exact, inner, starts arg) {
	c, g := r.c, r.g
	r.launch(nhaFullQueries, grid{r.blocks.n * c.QueryHeads, 1, 1}, r.table, r.blocks.at, t.queries, t.restQueries, t.keys, t.wideKeys, pointer(c.V), r.cos, r.sin, pointer(c.O), pointer(c.LSE), pointer(g.DO),
		pointer(g.DQ), rest, exact, inner, starts, r.queryHeads(), r.heads(), r.window(), r.scale(), f32(r.sinks))
}

func (r *nhaRun) fullKeys(t turned, exact, inner arg) {
	c, g := r.c, r.g
	r.launch(nhaFullKeys, grid{r.chunks.n * c.KVHeads, 1, 1}, r.table, r.chunks.at, t.queries, t.wideQueries, t.keys, pointer(c.V), r.cos, r.sin, pointer(g.DO), exact, inner,
		pointer(g.DK), pointer(g.DV), r.queryHeads(), r.heads(), r.window(), r.scale())
}
