package eval

import (
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// The protocols are defined by Python programs. Where Python's strings and Go's differ, these are Python's.

// isSpace is str.isspace for one character: Unicode's white space and the four separators of ASCII.
func isSpace(r rune) bool { return unicode.IsSpace(r) || r >= 0x1c && r <= 0x1f }

// strip is str.strip().
func strip(s string) string { return strings.TrimFunc(s, isSpace) }

// capitalize is str.capitalize(): the first character in title case, the rest in lower case.
func capitalize(s string) string {
	r, n := utf8.DecodeRuneInString(s)
	if n == 0 {
		return s
	}
	return string(unicode.ToTitle(r)) + strings.ToLower(s[n:])
}

// space is \s of Python's re for text: isSpace as a character class.
const space = `[\t-\r\x1c-\x20\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}]`

var spaces = regexp.MustCompile(space + `+`)

// countWords is len(re.split(r"\s+", s)): one more than the runs of white space, those at the ends too.
func countWords(s string) int { return 1 + len(spaces.FindAllStringIndex(s, -1)) }

// contains is re.search(re.escape(label), text, re.IGNORECASE).
func contains(text, label string) bool { return indexFold(text, label) >= 0 }

// indexFold is where label first stands in text whatever the case, -1 if it does not.
func indexFold(text, label string) int {
	at := regexp.MustCompile(`(?i)` + regexp.QuoteMeta(label)).FindStringIndex(text)
	if at == nil {
		return -1
	}
	return at[0]
}

// cutSuffixFold takes suffix off the end of s, whatever the case.
func cutSuffixFold(s, suffix string) (string, bool) {
	if suffix == "" || !strings.HasSuffix(strings.ToLower(s), strings.ToLower(suffix)) {
		return s, false
	}
	n := utf8.RuneCountInString(suffix) // as Python cuts: by characters
	for range n {
		_, size := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-size]
	}
	return s, true
}
