package tokenizer

import (
	"fmt"
	"slices"
	"strings"
	"unicode"
)

// Before merging, text is cut into pre-tokens (words with their leading space, numbers, runs of marks) by a pattern;
// merges never cross a cut. The patterns in use are few and differ in details, so each is a hand-written scanner that
// reads exactly as its regular expression does: alternatives in order, greedy, with the backtracking worked out.
const (
	gpt2Pattern  = `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
	llama3Before = `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|`
	llama3Behind = `| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`

	llama3Pattern = llama3Before + `\p{N}{1,3}` + llama3Behind
	qwen2Pattern  = llama3Before + `\p{N}` + llama3Behind
)

// A scanner returns the length of the first pre-token of s, which is not empty.
type scanner func(s string) int

func scannerOf(pattern string) (scanner, error) {
	switch pattern {
	case gpt2Pattern:
		return scanGPT2, nil
	case llama3Pattern:
		return func(s string) int { return scanLlama3(s, 3, contractionFold) }, nil
	case qwen2Pattern:
		return func(s string) int { return scanLlama3(s, 1, contractionFold) }, nil
	}
	return nil, fmt.Errorf("unknown pattern %q; the patterns of GPT-2, Llama 3 and Qwen2 are supported", pattern)
}

// preTokenizer is what a tokenizer.json's pre_tokenizer comes to: what is put in front of a text, then scanners, each of which
// cuts the pieces of the one before.
type preTokenizer struct {
	prefixSpace bool // a stretch that does not begin with a space is given one
	meta        metaspaceRule
	stages      []stage
}

type stage struct {
	name string // goes into the hash: what the stage cuts
	scan scanner
}

// metaspaceRule is the Metaspace stage: spaces become U+2581, one is put in front.
type metaspaceRule struct {
	on     bool
	scheme string // always | first | never: whether a stretch without one in front is given one
}

// prepare puts in front of a stretch of text what belongs there.
func (p *preTokenizer) prepare(s string, first bool) string {
	switch {
	case s == "":
	case p.meta.on:
		s = strings.ReplaceAll(s, " ", metaspace)
		if (p.meta.scheme == "always" || p.meta.scheme == "first" && first) && !strings.HasPrefix(s, metaspace) {
			s = metaspace + s
		}
	case p.prefixSpace && s[0] != ' ':
		s = " " + s
	}
	return s
}

// pieces calls f for every pre-token of s.
func (p *preTokenizer) pieces(s string, f func(piece string)) { cut(p.stages, s, f) }

func cut(stages []stage, s string, f func(piece string)) {
	if len(stages) == 0 {
		if s != "" {
			f(s)
		}
		return
	}
	for len(s) > 0 {
		n := stages[0].scan(s)
		if len(stages) == 1 {
			f(s[:n])
		} else {
			cut(stages[1:], s[:n], f)
		}
		s = s[n:]
	}
}

func scanDigitRuns(s string) int { return scanDigits(s, false) }

func scanSingleDigits(s string) int { return scanDigits(s, true) }

// scanMetaspace cuts in front of every U+2581.
func scanMetaspace(s string) int {
	if i := strings.Index(s[1:], metaspace); i >= 0 {
		return i + 1
	}
	return len(s)
}

// scanDigits returns the end of the first run of numbers (a single one if single is set), or of what is none.
func scanDigits(s string, single bool) int {
	first, i := numeric(s, 0)
	for i < len(s) && !(first && single) {
		is, n := numeric(s, i)
		if is != first {
			break
		}
		i += n
	}
	return i
}

func scanGPT2(s string) int {
	c, n := classAt(s, 0)
	if s[0] == '\'' {
		if k := contraction(s); k > 0 {
			return k
		}
	}
	if s[0] == ' ' && len(s) > 1 {
		if d, m := classAt(s, 1); d != space {
			return runEnd(s, 1+m, d)
		}
	}
	if c != space {
		return runEnd(s, n, c)
	}
	end, last, _ := spaceRun(s)
	return cutSpaces(s, end, last)
}

func scanLlama3(s string, digits int, contraction func(string) int) int {
	c, n := classAt(s, 0)
	switch c {
	case letter:
		return runEnd(s, n, letter)
	case number:
		for range digits - 1 {
			if n == len(s) {
				break
			}
			d, m := classAt(s, n)
			if d != number {
				break
			}
			n += m
		}
		return n
	}
	if s[0] == '\'' {
		if k := contraction(s); k > 0 {
			return k
		}
	}
	next, m := other, 0
	if n < len(s) {
		next, m = classAt(s, n)
	}
	if m > 0 && next == letter && s[0] != '\r' && s[0] != '\n' {
		return runEnd(s, n+m, letter)
	}
	if c == other || s[0] == ' ' && m > 0 && next == other {
		end := runEnd(s, n, other)
		for end < len(s) && (s[end] == '\r' || s[end] == '\n') {
			end++
		}
		return end
	}
	end, last, newline := spaceRun(s)
	if newline > 0 {
		return newline
	}
	return cutSpaces(s, end, last)
}

// runEnd returns where the run of class c that includes s[:i] ends.
func runEnd(s string, i int, c class) int {
	for i < len(s) {
		d, n := classAt(s, i)
		if d != c {
			break
		}
		i += n
	}
	return i
}

// spaceRun measures the white space that s begins with: its end, the start of its last character, and the end of its
// last \r or \n (0 if there is none).
func spaceRun(s string) (end, last, newline int) {
	for end < len(s) {
		c, n := classAt(s, end)
		if c != space {
			break
		}
		last = end
		end += n
		if s[last] == '\r' || s[last] == '\n' {
			newline = end
		}
	}
	return end, last, newline
}

// cutSpaces is \s+(?!\S)|\s+ : the last white space before a word stays with the word, unless it is all there is.
func cutSpaces(s string, end, last int) int {
	if end < len(s) && last > 0 {
		return last
	}
	return end
}

// contraction is 's|'t|'re|'ve|'m|'ll|'d at the start of s, 0 for no match.
func contraction(s string) int {
	if len(s) < 2 {
		return 0
	}
	switch s[1] {
	case 's', 't', 'm', 'd':
		return 2
	}
	if len(s) >= 3 && slices.Contains([]string{"re", "ve", "ll"}, s[1:3]) {
		return 3
	}
	return 0
}

// contractionFold is the same under (?i:), where the long s folds to s.
func contractionFold(s string) int {
	if strings.HasPrefix(s, "'ſ") {
		return len("'ſ")
	}
	return contractionASCII(s)
}

// contractionASCII is the same for small and capital letters.
func contractionASCII(s string) int {
	var head [3]byte
	n := copy(head[:], s)
	for i, b := range head[:n] {
		if 'A' <= b && b <= 'Z' {
			head[i] = b + 'a' - 'A'
		}
	}
	return contraction(string(head[:n]))
}

// The scanners below are those of llama.cpp's patterns that match parts of a text: what lies between two matches is a piece.

// scanPunctuation cuts by [\p{P}\$\+<=>\^~\|]+ .
func scanPunctuation(s string) int { return scanRuns(s, isPunctuation) }

// scanPunctuationTick cuts by [\p{P}\$\+<=>\^~\|`]+ .
func scanPunctuationTick(s string) int {
	return scanRuns(s, func(r rune) bool { return r == '`' || isPunctuation(r) })
}

func isPunctuation(r rune) bool {
	return strings.ContainsRune("$+<=>^~|", r) || unicode.In(r, unicode.P)
}

// scanNumberRuns cuts by \p{N}+ .
func scanNumberRuns(s string) int {
	return scanRuns(s, func(r rune) bool { return classOf(r) == number })
}

// scanRuns returns the end of the first run of characters that is holds for, or that it does not hold for.
func scanRuns(s string, is func(rune) bool) int {
	first := false
	for i, r := range s {
		if i == 0 {
			first = is(r)
		} else if is(r) != first {
			return i
		}
	}
	return len(s)
}

// scanDigitTriples cuts by [0-9][0-9][0-9] .
func scanDigitTriples(s string) int {
	run := 0
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			run = 0
		} else if run++; run == 3 {
			if i == 2 {
				return 3
			}
			return i - 2
		}
	}
	return len(s)
}
