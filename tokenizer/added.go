package tokenizer

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Added tokens are found in the text itself before the model sees it: the leftmost match, and of those that start there the
// longest. What their flags ask for is done to a match, not to the search, as Hugging Face does it: a match that a flag
// rejects has used up its text, nothing shorter is looked for inside it. llama.cpp searches for one token after the other, the
// longest first, and never sees those that it shall not find: that is another answer only where two tokens overlap.

type addedToken struct {
	content             string
	id                  int32
	special, normalized bool
	singleWord          bool // only between characters that are no \w
	lstrip, rstrip      bool // takes the white space on this side with it
}

type addedTokens struct {
	byText  map[string]*addedToken
	byFirst [256][]string // texts by their first byte, longest first
	firsts  string        // these bytes

	llama        bool     // special tokens that are text do not use theirs up, and white space is ASCII
	longestFirst []string // llama.cpp, where tokens overlap: all of them, longest first
}

// add enters a under text, which is its content or what a normalizer makes of that. Of two for one text the later counts.
func (a *addedTokens) add(text string, token *addedToken) {
	if text == "" { // a normalizer may leave nothing: it is never found
		return
	}
	if a.byText == nil {
		a.byText = map[string]*addedToken{}
	}
	if a.byText[text] == nil {
		list := &a.byFirst[text[0]]
		if len(*list) == 0 {
			a.firsts += text[:1]
		}
		*list = append(*list, text)
		slices.SortStableFunc(*list, func(x, y string) int { return len(y) - len(x) })
	}
	a.byText[text] = token
}

// find returns the first token in text at or behind from, nil if there is none.
func (a *addedTokens) find(text string, from int, ordinary bool) (start, end int, token *addedToken) {
	for i := from; i < len(text); i++ {
		switch len(a.firsts) {
		case 0:
			return 0, 0, nil
		case 1:
			skip := strings.IndexByte(text[i:], a.firsts[0])
			if skip < 0 {
				return 0, 0, nil
			}
			i += skip
		}
		for _, t := range a.byFirst[text[i]] {
			if strings.HasPrefix(text[i:], t) {
				if token := a.byText[t]; !(ordinary && a.llama && token.special) {
					return i, i + len(t), token
				}
			}
		}
	}
	return 0, 0, nil
}

// split calls between for every stretch of text without added tokens, with where it starts, and found for each token. With
// ordinary set special tokens are text.
func (a *addedTokens) split(text string, ordinary bool, between func(at int, part string), found func(id int32)) {
	if a.longestFirst != nil {
		a.splitLongest(a.longestFirst, text, ordinary, between, found)
		return
	}
	done := 0
	for from := 0; ; {
		start, end, token := a.find(text, from, ordinary)
		if token == nil {
			break
		}
		from = end
		if ordinary && token.special || token.singleWord && insideWord(text, start, end) {
			continue
		}
		if token.lstrip {
			start = max(done, len(strings.TrimRightFunc(text[:start], a.isSpace)))
		}
		if token.rstrip {
			end = len(text) - len(strings.TrimLeftFunc(text[end:], a.isSpace))
		}
		if done < start {
			between(done, text[done:start])
		}
		found(token.id)
		done = end
	}
	if done < len(text) {
		between(done, text[done:])
	}
}

// splitLongest is split for the tokens in list, each of which is found before the next is looked for.
func (a *addedTokens) splitLongest(list []string, text string, ordinary bool, between func(at int, part string), found func(id int32)) {
	for i, t := range list {
		token := a.byText[t]
		if ordinary && token.special || !strings.Contains(text, t) {
			continue
		}
		for text != "" {
			at := strings.Index(text, t)
			if at < 0 {
				break
			}
			a.splitLongest(list[i+1:], text[:at], ordinary, between, found)
			found(token.id)
			text = text[at+len(t):]
			if token.rstrip {
				text = strings.TrimLeftFunc(text, a.isSpace)
			}
		}
	}
	if text != "" {
		between(0, text)
	}
}

// overlap says whether the end of a token may be the beginning of another: then their order decides who is found.
func (a *addedTokens) overlap() bool {
	texts := slices.Sorted(maps.Keys(a.byText))
	for _, t := range texts {
		for i := 1; i < len(t); i++ {
			at, _ := slices.BinarySearch(texts, t[i:])
			if at < len(texts) && strings.HasPrefix(texts[at], t[i:]) {
				return true
			}
		}
	}
	return false
}

// asLlama makes a search as llama.cpp does.
func (a *addedTokens) asLlama() {
	a.llama = true
	if a.overlap() {
		a.longestFirst = slices.SortedFunc(maps.Keys(a.byText), func(x, y string) int {
			return cmp.Or(len(y)-len(x), int(a.byText[x].id-a.byText[y].id))
		})
	}
}

func (a *addedTokens) isSpace(r rune) bool {
	return unicode.IsSpace(r) && (r < utf8.RuneSelf || !a.llama)
}

// insideWord says whether a character of a word stands at either side of text[start:end].
func insideWord(text string, start, end int) bool {
	before, n := utf8.DecodeLastRuneInString(text[:start])
	behind, m := utf8.DecodeRuneInString(text[end:])
	return n > 0 && wordRune(before) || m > 0 && wordRune(behind)
}

// wordRune is the \w of Rust's regular expressions: Alphabetic, M, Nd, Pc and Join_Control.
func wordRune(r rune) bool {
	return unicode.In(r, unicode.L, unicode.M, unicode.Nd, unicode.Nl, unicode.Pc, unicode.Other_Alphabetic, unicode.Join_Control, lettersSince15)
}
