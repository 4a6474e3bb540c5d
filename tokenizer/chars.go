package tokenizer

import (
	"math"
	"slices"
	"strings"
	"unicode/utf8"
)

// The alphabet of SentencePiece's BPE is characters. A character that the vocabulary lacks becomes its bytes' tokens (byte
// fallback) or the unknown token. Two programs define what that means, and differ:
//
//   - Hugging Face tokenizers (a tokenizer.json): bytes first, then merges in the order of the file's list.
//   - llama.cpp (a GGUF): any two neighbours whose texts together are a token may merge, the token of the highest score first,
//     of equal scores the leftmost; what is still no token then becomes bytes. One token may be merged in several ways, which
//     have one score there and different ranks in a tokenizer.json: that is where the two disagree, in runs such as "aaaa".
//
// Both are rules for pairs with a rank, so one mergeTable serves. A GGUF's unknown characters are symbols below -1 until the
// end.
type charTable struct {
	ascii  [utf8.RuneSelf]int32 // symbols of characters, absent if there is none
	others map[rune]int32
	late   bool  // llama.cpp: bytes are resolved behind the merges
	unk    int32 // the token of what has no bytes either, absent for none: it is dropped
	fuse   bool  // a run of unknown characters is one unk

	// Two characters that no merge joins are no part of one token wherever they meet, so text is cut there: then words can be
	// merged, and remembered, one by one, and the ids are those of the whole. Looked at are pairs of ASCII characters, and
	// metaspaces with what is before them.
	joins    [utf8.RuneSelf][utf8.RuneSelf]bool // this ASCII character, then that
	crossing map[rune]bool                      // this character, then a metaspace
}

const (
	absent    = math.MinInt32
	metaspace = "▁" // U+2581, which SentencePiece writes for a space
)

func newCharTable() *charTable {
	c := &charTable{others: map[rune]int32{}, unk: absent}
	for i := range c.ascii {
		c.ascii[i] = absent
	}
	return c
}

func (c *charTable) set(r rune, symbol int32) {
	if r < utf8.RuneSelf {
		c.ascii[r] = symbol
	} else {
		c.others[r] = symbol
	}
}

func (c *charTable) symbol(r rune) int32 {
	if r < utf8.RuneSelf {
		return c.ascii[r]
	}
	if s, ok := c.others[r]; ok {
		return s
	}
	return absent
}

// unknownSymbol is the symbol of a character that is no token, and unknownByte that of a byte that is no UTF-8.
func unknownSymbol(r rune) int32 { return -2 - r }

func unknownByte(b byte) int32 { return -2 - (utf8.MaxRune + 1) - int32(b) }

// encode appends the tokens of a pre-token to dst.
func (c *charTable) encode(dst []int32, m *mergeTable, byteIDs *[256]int32, piece string, w *mergeWork) []int32 {
	w.ids = w.ids[:0]
	pending := int32(absent) // an unknown token not yet written, which a fusing one joins
	for i := 0; i < len(piece); {
		r, n := rune(piece[i]), 1
		if r >= utf8.RuneSelf {
			r, n = utf8.DecodeRuneInString(piece[i:])
		}
		symbol := int32(absent)
		if r != utf8.RuneError || n > 1 {
			symbol = c.symbol(r)
		}
		switch {
		case symbol != absent:
			if pending != absent {
				w.ids, pending = append(w.ids, pending), absent
			}
			w.ids = append(w.ids, symbol)
		case c.late && n == 1 && r == utf8.RuneError:
			w.ids = append(w.ids, unknownByte(piece[i]))
		case c.late:
			w.ids = append(w.ids, unknownSymbol(r))
		case allThere(byteIDs, piece[i:i+n]):
			w.ids = appendBytes(w.ids, byteIDs, piece[i:i+n])
		case c.unk == absent || c.fuse && pending != absent:
			pending = max(pending, c.unk)
		default:
			if pending != absent {
				w.ids = append(w.ids, pending)
			}
			pending = c.unk
		}
		i += n
	}
	if pending != absent {
		w.ids = append(w.ids, pending)
	}
	start := len(dst)
	dst = m.merge(dst, w)
	if c.late {
		dst = expandUnknown(dst, start, byteIDs, w)
	}
	return dst
}

func allThere(byteIDs *[256]int32, s string) bool {
	for i := range len(s) {
		if byteIDs[s[i]] < 0 {
			return false
		}
	}
	return true
}

func appendBytes(dst []int32, byteIDs *[256]int32, s string) []int32 {
	for i := range len(s) {
		dst = append(dst, byteIDs[s[i]])
	}
	return dst
}

// expandUnknown writes the bytes of the unknown characters in dst[start:].
func expandUnknown(dst []int32, start int, byteIDs *[256]int32, w *mergeWork) []int32 {
	if !slices.ContainsFunc(dst[start:], func(id int32) bool { return id < 0 }) {
		return dst
	}
	w.ids = append(w.ids[:0], dst[start:]...)
	dst = dst[:start]
	var buf [utf8.UTFMax]byte
	for _, id := range w.ids {
		switch r := -2 - id; {
		case id >= 0:
			dst = append(dst, id)
		case r > utf8.MaxRune:
			dst = append(dst, byteIDs[r-utf8.MaxRune-1])
		default:
			for _, b := range buf[:utf8.EncodeRune(buf[:], r)] {
				dst = append(dst, byteIDs[b])
			}
		}
	}
	return dst
}

// crosses notes that left and right may merge.
func (c *charTable) crosses(left, right string) {
	a, _ := utf8.DecodeLastRuneInString(left)
	b, _ := utf8.DecodeRuneInString(right)
	switch {
	case a < utf8.RuneSelf && b < utf8.RuneSelf:
		c.joins[a][b] = true
	case string(b) == metaspace:
		if c.crossing == nil {
			c.crossing = map[rune]bool{}
		}
		c.crossing[a] = true
	}
}

// scanWord returns the length of the first part of s that can be merged by itself.
func (c *charTable) scanWord(s string) int {
	for i := 1; i < len(s); i++ {
		switch a, b := s[i-1], s[i]; {
		case a|b < utf8.RuneSelf:
			if !c.joins[a][b] {
				return i
			}
		case b == metaspace[0] && strings.HasPrefix(s[i:], metaspace):
			if r, _ := utf8.DecodeLastRuneInString(s[:i]); !c.crossing[r] {
				return i
			}
			i += len(metaspace) - 1
		}
	}
	return len(s)
}
