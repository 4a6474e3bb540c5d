package tokenizer

import (
	"context"
	"slices"
	"time"
)

// merger holds the distinct pre-tokens as ids, and for every pair of neighbours how often it stands in the text and in
// which words. A merge touches only the words that hold its pair and changes only the counts beside it.
type merger struct {
	d     *description
	ids   map[string]int32 // of d.vocab
	words []word
	pairs []pair
	index map[uint64]int32 // of pairs
	queue queue[candidate]

	grown []int32 // pairs that a merge has made more frequent
}

type word struct {
	ids   []int32
	count int64
}

type pair struct {
	a, b   int32
	count  int64
	words  []int32 // that hold the pair, or held it
	merged bool
	grown  bool
}

// candidate is a pair in the queue with the count it had when it was put there.
type candidate struct {
	count int64
	ids   uint64
	pair  int32
}

//lint:ignore U1000 queue calls it through its constraint
func (x candidate) before(y candidate) bool {
	return x.count > y.count || x.count == y.count && x.ids < y.ids
}

func newMerger(d *description, counts map[string]int64) *merger {
	m := &merger{d: d, ids: map[string]int32{}, index: map[uint64]int32{}}
	for id, token := range d.vocab {
		m.ids[token] = int32(id)
	}
	var byteIDs [256]int32
	for b, r := range byteRunes {
		byteIDs[b] = m.ids[string(r)]
	}
	size := 0
	for piece := range counts {
		size += len(piece)
	}
	arena := make([]int32, 0, size)
	m.words = make([]word, 0, len(counts))
	for piece, n := range counts {
		start := len(arena)
		for i := range len(piece) {
			arena = append(arena, byteIDs[piece[i]])
		}
		m.words = append(m.words, word{arena[start:len(arena):len(arena)], n})
	}
	for w := range m.words {
		ids := m.words[w].ids
		for i := 1; i < len(ids); i++ {
			m.change(ids[i-1], ids[i], m.words[w].count, int32(w))
		}
	}
	m.enqueue()
	return m
}

// change adds n to the count of (a, b); if n is positive, the pair stands in word w.
func (m *merger) change(a, b int32, n int64, w int32) {
	key := pairOf(a, b)
	i, ok := m.index[key]
	if !ok {
		i = int32(len(m.pairs))
		m.index[key] = i
		m.pairs = append(m.pairs, pair{a: a, b: b})
	}
	p := &m.pairs[i]
	p.count += n
	if n < 0 {
		return
	}
	if len(p.words) == 0 || p.words[len(p.words)-1] != w {
		p.words = append(p.words, w)
	}
	if !p.grown {
		p.grown = true
		m.grown = append(m.grown, i)
	}
}

// enqueue puts the grown pairs into the queue. Counts that shrink are found out when a candidate is popped.
func (m *merger) enqueue() {
	for _, i := range m.grown {
		p := &m.pairs[i]
		p.grown = false
		if p.count > 0 {
			m.queue.push(candidate{p.count, pairOf(p.a, p.b), i})
		}
	}
	m.grown = m.grown[:0]
}

// run merges until the vocabulary is full or no pair is frequent enough.
func (m *merger) run(ctx context.Context, o TrainOptions) error {
	progress := TrainProgress{Words: len(m.words), Want: o.VocabSize - len(m.d.vocab)}
	for _, w := range m.words {
		progress.Bytes += int64(len(w.ids)) * w.count
	}
	start, last := len(m.d.vocab), time.Now()
	for len(m.d.vocab) < o.VocabSize && len(m.queue) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		top := m.queue.pop()
		p := &m.pairs[top.pair]
		if top.count != p.count {
			if p.count > 0 {
				m.queue.push(candidate{p.count, top.ids, top.pair})
			}
			continue
		}
		if p.count < o.MinFrequency {
			break
		}
		m.merge(p)
		if o.Progress != nil && time.Since(last) > progressEvery {
			last = time.Now()
			progress.Merges = len(m.d.vocab) - start
			o.Progress(progress)
		}
	}
	if o.Progress != nil {
		progress.Merges = len(m.d.vocab) - start
		o.Progress(progress)
	}
	return nil
}

// merge makes one token of pair p everywhere.
func (m *merger) merge(p *pair) {
	a, b := p.a, p.b
	left, right := m.d.vocab[a], m.d.vocab[b]
	c, ok := m.ids[left+right] // two pairs may spell the same token
	if !ok {
		c = int32(len(m.d.vocab))
		m.d.vocab = append(m.d.vocab, left+right)
		m.ids[left+right] = c
	}
	if !p.merged {
		p.merged = true
		m.d.merges = append(m.d.merges, [2]string{left, right})
	}
	words := p.words
	p.words = nil
	slices.Sort(words)
	// The count of p itself is left as it is. If the pair comes up again, since another pair spells one of its tokens,
	// it is thus as frequent as it ever was and merged at once, as the encoder would.
	for _, w := range slices.Compact(words) {
		m.mergeWord(w, a, b, c)
	}
	m.enqueue()
}

// mergeWord replaces a b by c in one word, in place, and moves the counts of the pairs beside it.
func (m *merger) mergeWord(w, a, b, c int32) {
	ids, n := m.words[w].ids, m.words[w].count
	out := 0
	for i := 0; i < len(ids); i++ {
		if ids[i] != a || i+1 == len(ids) || ids[i+1] != b {
			ids[out] = ids[i]
			out++
			continue
		}
		if out > 0 {
			m.change(ids[out-1], a, -n, w)
			m.change(ids[out-1], c, n, w)
		}
		if i+2 < len(ids) {
			m.change(b, ids[i+2], -n, w)
			m.change(c, ids[i+2], n, w)
		}
		ids[out] = c
		out++
		i++
	}
	m.words[w].ids = ids[:out]
}
