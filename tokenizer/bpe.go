package tokenizer

import (
	"hash/maphash"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// BPE is a byte-level byte-pair encoding: text is split at added tokens, cut into pre-tokens, and each pre-token's
// bytes are merged. Every byte is a token, so any string, valid UTF-8 or not, encodes and decodes to itself (unless
// the tokenizer asks for a space in front).
type BPE struct {
	tokens   [][]byte // bytes of each token; an added token's are its text, even where Hugging Face would tear it ("é")
	special  []bool
	byteIDs  [256]int32
	merges   mergeTable
	whole    map[string]int32 // ignore_merges: pre-tokens that are tokens need no merging; else nil
	added    [2]addedTokens   // matched in the text first those not normalised, then in what is left the others
	ordinary [2]addedTokens   // the same without special tokens
	pre      preTokenizer

	before, behind []int32 // template
	bos, eos       int32   // none if negative
	hash           string

	source, config []byte // the files, as they will be saved
	cache          pieceCache
	work           sync.Pool // of *mergeWork
}

var _ Tokenizer = (*BPE)(nil)

func (t *BPE) Encode(text string) []int32 {
	return t.EncodeAppend(make([]int32, 0, len(text)/4+1), text)
}

func (t *BPE) EncodeAppend(dst []int32, text string) []int32 {
	return t.encode(dst, text, t.added[:])
}

func (t *BPE) EncodeOrdinary(dst []int32, text string) []int32 {
	return t.encode(dst, text, t.ordinary[:])
}

// encode splits text at the added tokens of the first set, what is left at those of the next, and merges the rest.
func (t *BPE) encode(dst []int32, text string, sets []addedTokens) []int32 {
	if len(sets) == 0 {
		return t.encodeText(dst, text)
	}
	for {
		start, end, id := sets[0].find(text)
		if start < 0 {
			return t.encode(dst, text, sets[1:])
		}
		dst = append(t.encode(dst, text[:start], sets[1:]), id)
		text = text[end:]
	}
}

func (t *BPE) encodeText(dst []int32, text string) []int32 {
	if text == "" {
		return dst
	}
	if t.pre.prefixSpace && text[0] != ' ' {
		text = " " + text
	}
	w, _ := t.work.Get().(*mergeWork)
	if w == nil {
		w = new(mergeWork)
	}
	t.pre.pieces(text, func(piece string) {
		hash := maphash.String(t.cache.seed, piece)
		if ids, ok := t.cache.get(hash, piece); ok {
			dst = append(dst, ids...)
			return
		}
		start := len(dst)
		if id, ok := t.whole[piece]; ok {
			dst = append(dst, id)
		} else {
			dst = t.merges.merge(dst, &t.byteIDs, piece, w)
		}
		t.cache.put(hash, piece, dst[start:])
	})
	t.work.Put(w)
	return dst
}

func (t *BPE) Decode(ids []int32) string { return decode(t, ids) }

func (t *BPE) Token(id int32) []byte {
	if id < 0 || int(id) >= len(t.tokens) {
		return nil
	}
	return t.tokens[id]
}

func (t *BPE) Special(id int32) bool { return id >= 0 && int(id) < len(t.special) && t.special[id] }

func (t *BPE) VocabSize() int { return len(t.tokens) }

func (t *BPE) BOS() (int32, bool) { return max(t.bos, 0), t.bos >= 0 }

func (t *BPE) EOS() (int32, bool) { return max(t.eos, 0), t.eos >= 0 }

func (t *BPE) Template() (before, behind []int32) { return t.before, t.behind }

func (t *BPE) Hash() string { return t.hash }

// ID returns the id of an added token (the special ones among them) by its text.
func (t *BPE) ID(token string) (int32, bool) {
	for i := range t.added {
		if id, ok := t.added[i].ids[token]; ok {
			return id, true
		}
	}
	return 0, false
}

// Save writes the files that t was loaded from, byte for byte, or those that describe what Train made.
func (t *BPE) Save(dir string) error { return save(dir, t.source, t.config) }

// addedTokens finds tokens that are matched in the text itself: the leftmost, and of those the longest.
type addedTokens struct {
	ids     map[string]int32
	byFirst [256][]string // tokens by their first byte, longest first
	firsts  string        // these bytes
}

func (a *addedTokens) add(token string, id int32) {
	if a.ids == nil {
		a.ids = map[string]int32{}
	}
	a.ids[token] = id
	list := &a.byFirst[token[0]]
	if len(*list) == 0 {
		a.firsts += token[:1]
	}
	*list = append(*list, token)
	slices.SortStableFunc(*list, func(x, y string) int { return len(y) - len(x) })
}

// find returns where the first token in text starts and ends, start = -1 if there is none.
func (a *addedTokens) find(text string) (start, end int, id int32) {
	for i := 0; i < len(text); i++ {
		switch len(a.firsts) {
		case 0:
			return -1, 0, 0
		case 1:
			skip := strings.IndexByte(text[i:], a.firsts[0])
			if skip < 0 {
				return -1, 0, 0
			}
			i += skip
		}
		for _, token := range a.byFirst[text[i]] {
			if strings.HasPrefix(text[i:], token) {
				return i, i + len(token), a.ids[token]
			}
		}
	}
	return -1, 0, 0
}

// pieceCache remembers the ids of pre-tokens: two places for each hash, a new pre-token replaces the one that its own
// hash picks. Bounded, shared by all goroutines without a lock, and it allocates only for what it did not know.
type pieceCache struct {
	seed  maphash.Seed
	slots []atomic.Pointer[cachedPiece]
}

type cachedPiece struct {
	piece string
	ids   []int32
}

const (
	cacheSlots     = 1 << 16
	maxCachedPiece = 48 // bytes: longer ones seldom come again
)

func newPieceCache() pieceCache {
	return pieceCache{maphash.MakeSeed(), make([]atomic.Pointer[cachedPiece], cacheSlots)}
}

func (c *pieceCache) get(hash uint64, piece string) ([]int32, bool) {
	i := hash % cacheSlots
	if e := c.slots[i].Load(); e != nil && e.piece == piece {
		return e.ids, true
	}
	if e := c.slots[i^1].Load(); e != nil && e.piece == piece {
		return e.ids, true
	}
	return nil, false
}

func (c *pieceCache) put(hash uint64, piece string, ids []int32) {
	if len(piece) > maxCachedPiece {
		return
	}
	i := hash % cacheSlots
	if c.slots[i].Load() != nil && c.slots[i^1].Load() == nil {
		i ^= 1
	}
	c.slots[i].Store(&cachedPiece{strings.Clone(piece), slices.Clone(ids)})
}
