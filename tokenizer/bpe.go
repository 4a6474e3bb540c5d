package tokenizer

import (
	"bytes"
	"hash/maphash"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// BPE is a byte-pair encoding. Text is split at added tokens, normalised, cut into pre-tokens, and the symbols of each
// pre-token are merged. There are two alphabets. Byte-level (GPT-2, Llama 3, Qwen): a symbol is a byte, so any string, valid
// UTF-8 or not, encodes and decodes to itself, unless the tokenizer normalises or asks for a space in front. Characters
// (SentencePiece: Llama 2, Mistral): a symbol is a character, one that the vocabulary lacks falls back to its bytes.
type BPE struct {
	tokens  [][]byte // bytes of each token; an added token's are its text, even where Hugging Face would tear it ("é")
	special []bool
	byteIDs [256]int32 // tokens of single bytes: the alphabet, or the fallback of chars; -1 for none
	lost    lostBytes  // byte-level: what becomes of bytes that are no token
	chars   *charTable // nil for byte-level
	merges  mergeTable
	whole   map[string]int32 // ignore_merges: pre-tokens that are tokens need no merging; else nil
	list    []*addedToken
	added   [2]addedTokens // found in the text first those not normalised, then in what is left, normalised, the others
	norm    []normalizer
	pre     preTokenizer
	head    headRule

	before, behind []int32 // template
	bos, eos       int32   // none if negative
	turnEnds       []int32 // of a GGUF: the ends of a turn that it names
	hash           string

	source, config []byte      // the files, as they will be saved
	gguf           *ggufOrigin // or what they are made of
	cache          pieceCache
	work           sync.Pool // of *mergeWork
}

// lostBytes says how bytes without a token, which some vocabularies have, are dropped: before merging, so that their
// neighbours may merge (Hugging Face), or behind it (llama.cpp).
type lostBytes uint8

const (
	lostNone lostBytes = iota
	lostBefore
	lostBehind
)

// headRule says what decoding takes from the first token of a text.
type headRule struct {
	stripSpace bool             // one space
	bare       map[int32][]byte // Metaspace: these tokens lose every space that stood for U+2581
}

var _ Tokenizer = (*BPE)(nil)

func (t *BPE) Encode(text string) []int32 {
	return t.EncodeAppend(make([]int32, 0, len(text)/4+1), text)
}

func (t *BPE) EncodeAppend(dst []int32, text string) []int32 { return t.encode(dst, text, false) }

func (t *BPE) EncodeOrdinary(dst []int32, text string) []int32 { return t.encode(dst, text, true) }

func (t *BPE) encode(dst []int32, text string, ordinary bool) []int32 {
	found := func(id int32) { dst = append(dst, id) }
	t.added[0].split(text, ordinary, func(at int, part string) {
		part = normalize(t.norm, part)
		t.added[1].split(part, ordinary, func(within int, part string) {
			dst = t.encodeText(dst, part, at+within == 0)
		}, found)
	}, found)
	return dst
}

// encodeText encodes a stretch without added tokens; first says that the text begins with it.
func (t *BPE) encodeText(dst []int32, text string, first bool) []int32 {
	w, _ := t.work.Get().(*mergeWork)
	if w == nil {
		w = new(mergeWork)
	}
	t.pre.pieces(t.pre.prepare(text, first), func(piece string) {
		hash := maphash.String(t.cache.seed, piece)
		if ids, ok := t.cache.get(hash, piece); ok {
			dst = append(dst, ids...)
			return
		}
		start := len(dst)
		if id, ok := t.whole[piece]; ok {
			dst = append(dst, id)
		} else if t.chars != nil {
			dst = t.chars.encode(dst, &t.merges, &t.byteIDs, piece, w)
		} else {
			dst = t.mergeBytes(dst, piece, w)
		}
		t.cache.put(hash, piece, dst[start:])
	})
	t.work.Put(w)
	return dst
}

// mergeBytes appends the tokens of piece, whose symbols are its bytes.
func (t *BPE) mergeBytes(dst []int32, piece string, w *mergeWork) []int32 {
	w.ids = w.ids[:0]
	for i := range len(piece) {
		id := t.byteIDs[piece[i]]
		if id < 0 && t.lost == lostBefore {
			continue
		}
		w.ids = append(w.ids, id)
	}
	start := len(dst)
	dst = t.merges.merge(dst, w)
	if t.lost == lostBehind {
		dst = append(dst[:start], slices.DeleteFunc(dst[start:], func(id int32) bool { return id < 0 })...)
	}
	return dst
}

func (t *BPE) Decode(ids []int32) string { return decode(t, ids) }

// first returns the bytes of a token that begins a text.
func (t *BPE) first(id int32) []byte {
	if bare, ok := t.head.bare[id]; ok {
		return bare
	}
	token := t.Token(id)
	if t.head.stripSpace {
		token = bytes.TrimPrefix(token, []byte(" "))
	}
	return token
}

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
	for _, a := range t.list {
		if a.content == token {
			return a.id, true
		}
	}
	return 0, false
}

// turnEnd lists the special tokens that end a turn or a text in the models there are.
var turnEnd = []string{"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|end_of_text|>", "<|endoftext|>", "<end_of_turn>", "</s>"}

// Ends returns the tokens behind which a model has said all: EOS, the ends of a turn that a GGUF names, and the special
// tokens that are spelled as one (<|im_end|>, <|eot_id|> and the like).
func (t *BPE) Ends() []int32 {
	var ends []int32
	if t.eos >= 0 {
		ends = append(ends, t.eos)
	}
	ends = append(ends, t.turnEnds...)
	for _, a := range t.list {
		if a.special && slices.Contains(turnEnd, a.content) {
			ends = append(ends, a.id)
		}
	}
	slices.Sort(ends)
	return slices.Compact(ends)
}

// Save writes the files that t was loaded from, byte for byte, those that describe what Train made, or those that say what a
// GGUF's vocabulary does; where no tokenizer.json can, the error is an ErrNoJSON and nothing is written.
func (t *BPE) Save(dir string) error {
	if t.gguf == nil {
		return save(dir, t.source, t.config)
	}
	source, config, err := t.describe()
	if err != nil {
		return err
	}
	return save(dir, source, config)
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
