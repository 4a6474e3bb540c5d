package tokenizer

import "math/bits"

// Merging a pre-token: while some two neighbours are a pair of the merge list, the pair of the lowest rank (the
// leftmost of equals) becomes one token.

// A mergeRule says what a pair becomes and how early.
type mergeRule struct {
	pair     uint64
	rank, id int32
}

const (
	noPair = ^uint64(0)
	noRank = int32(1<<31 - 1)
)

func pairOf(a, b int32) uint64 { return uint64(uint32(a))<<32 | uint64(uint32(b)) }

// parts inverts pairOf.
func (r mergeRule) parts() (a, b int32) { return int32(r.pair >> 32), int32(r.pair) }

// mergeTable is a hash table from pairs to rules, open addressing, at most half full.
type mergeTable struct {
	slots []mergeRule
	shift int
}

func newMergeTable(n int) mergeTable {
	log := bits.Len(uint(2*n + 1))
	m := mergeTable{slots: make([]mergeRule, 1<<log), shift: 64 - log}
	for i := range m.slots {
		m.slots[i].pair = noPair
	}
	return m
}

// slot returns the slot that holds pair, or the empty one where it belongs.
func (m *mergeTable) slot(pair uint64) *mergeRule {
	i := int(pair * 0x9e3779b97f4a7c15 >> m.shift)
	for {
		s := &m.slots[i]
		if s.pair == pair || s.pair == noPair {
			return s
		}
		i = (i + 1) & (len(m.slots) - 1)
	}
}

// set gives pair a rule; of two for one pair the later counts.
func (m *mergeTable) set(r mergeRule) { *m.slot(r.pair) = r }

func (m *mergeTable) rank(a, b int32) int32 {
	if s := m.slot(pairOf(a, b)); s.pair != noPair {
		return s.rank
	}
	return noRank
}

// mergeWork is the memory that merging one pre-token needs.
type mergeWork struct {
	ids, ranks, prev, next []int32
	queue                  queue[mergeAt]
}

// shortPiece is the number of symbols up to which looking at every rank beats keeping them in a heap.
const shortPiece = 40

// merge appends what the symbols w.ids become to dst.
func (m *mergeTable) merge(dst []int32, w *mergeWork) []int32 {
	if len(w.ids) <= shortPiece {
		return append(dst, m.mergeShort(w)...)
	}
	return m.mergeLong(dst, w)
}

// mergeShort keeps ranks[i], the rank of the pair (i, i+1), and looks for the lowest each time.
func (m *mergeTable) mergeShort(w *mergeWork) []int32 {
	ids, ranks := w.ids, w.ranks[:0]
	for i := 1; i < len(ids); i++ {
		ranks = append(ranks, m.rank(ids[i-1], ids[i]))
	}
	w.ranks = ranks
	for {
		best, at := noRank, 0
		for i, r := range ranks {
			if r < best {
				best, at = r, i
			}
		}
		if best == noRank {
			return ids
		}
		ids[at] = m.slot(pairOf(ids[at], ids[at+1])).id
		ids = append(ids[:at+1], ids[at+2:]...)
		ranks = append(ranks[:at], ranks[at+1:]...)
		if at > 0 {
			ranks[at-1] = m.rank(ids[at-1], ids[at])
		}
		if at < len(ranks) {
			ranks[at] = m.rank(ids[at], ids[at+1])
		}
	}
}

// mergeAt is a pair that stood at a position when it was queued.
type mergeAt struct{ rank, at int32 }

//lint:ignore U1000 queue calls it through its constraint
func (x mergeAt) before(y mergeAt) bool {
	return x.rank < y.rank || x.rank == y.rank && x.at < y.at
}

// mergeLong keeps the tokens in a linked list and their pairs in a heap: n log n for a pre-token of n symbols.
func (m *mergeTable) mergeLong(dst []int32, w *mergeWork) []int32 {
	ids := w.ids
	n := int32(len(ids))
	w.prev, w.next, w.queue = w.prev[:0], w.next[:0], w.queue[:0]
	push := func(at int32) {
		if r := m.rank(ids[at], ids[w.next[at]]); r != noRank {
			w.queue.push(mergeAt{r, at})
		}
	}
	for i := range n {
		w.prev = append(w.prev, i-1)
		w.next = append(w.next, i+1)
	}
	for i := range n - 1 {
		push(i)
	}
	const gone = -1 // no symbol is: what is no token counts from -2
	for len(w.queue) > 0 {
		x := w.queue.pop()
		// The pair may have changed since: then the rank there is another, or the token was swallowed.
		if ids[x.at] == gone || w.next[x.at] == n {
			continue
		}
		right := w.next[x.at]
		rule := m.slot(pairOf(ids[x.at], ids[right]))
		if rule.pair == noPair || rule.rank != x.rank {
			continue
		}
		ids[x.at], ids[right] = rule.id, gone
		w.next[x.at] = w.next[right]
		if w.next[x.at] < n {
			w.prev[w.next[x.at]] = x.at
			push(x.at)
		}
		if w.prev[x.at] >= 0 {
			push(w.prev[x.at])
		}
	}
	for i := int32(0); i < n; i = w.next[i] {
		dst = append(dst, ids[i])
	}
	return dst
}

// queue is a binary heap: pop returns an element that no other comes before.
type queue[T interface{ before(T) bool }] []T

func (q *queue[T]) push(x T) {
	h := append(*q, x)
	*q = h
	i := len(h) - 1
	for i > 0 {
		up := (i - 1) / 2
		if !x.before(h[up]) {
			break
		}
		h[i] = h[up]
		i = up
	}
	h[i] = x
}

func (q *queue[T]) pop() T {
	h := *q
	top, x := h[0], h[len(h)-1]
	h = h[:len(h)-1]
	*q = h
	if len(h) == 0 {
		return top
	}
	i := 0
	for {
		down := 2*i + 1
		if down >= len(h) {
			break
		}
		if down+1 < len(h) && h[down+1].before(h[down]) {
			down++
		}
		if !h[down].before(x) {
			break
		}
		h[i] = h[down]
		i = down
	}
	h[i] = x
	return top
}
