package tokenizer

import (
	"strings"
	"unicode"

	"golang.org/x/text/unicode/norm"
)

// Normalizers change the text before it is cut. A tokenizer.json names them one by one or in a Sequence; together they are
// a list of functions, applied to each stretch between added tokens.

type normalizer struct {
	name  string // goes into the hash
	apply func(string) string
}

func normalize(steps []normalizer, s string) string {
	for i := range steps {
		s = steps[i].apply(s)
	}
	return s
}

// parseNormalizer reads o and appends what it comes to.
func parseNormalizer(steps []normalizer, o *object) []normalizer {
	typ := o.text("type")
	step := normalizer{name: typ}
	switch typ {
	case "Sequence":
		for _, inner := range o.objects("normalizers") {
			steps = parseNormalizer(steps, inner)
		}
		o.end()
		return steps
	case "NFC":
		step.apply = norm.NFC.String
	case "NFD":
		step.apply = norm.NFD.String
	case "NFKC":
		step.apply = norm.NFKC.String
	case "NFKD":
		step.apply = norm.NFKD.String
	case "Lowercase":
		step.apply = lowercase
	case "Strip":
		left, right := o.flag("strip_left", true), o.flag("strip_right", true)
		step.name += strings.Repeat("<", btoi(left)) + strings.Repeat(">", btoi(right))
		step.apply = func(s string) string {
			if left {
				s = strings.TrimLeftFunc(s, unicode.IsSpace)
			}
			if right {
				s = strings.TrimRightFunc(s, unicode.IsSpace)
			}
			return s
		}
	case "Prepend":
		prefix := o.text("prepend")
		step.name += quote(prefix)
		step.apply = func(s string) string {
			if s == "" {
				return ""
			}
			return prefix + s
		}
	case "Replace":
		from, to := parsePattern(o), o.text("content")
		if from == "" {
			o.fail("pattern.String", "is empty")
		}
		step.name += quote(from) + quote(to)
		step.apply = func(s string) string { return strings.ReplaceAll(s, from, to) }
	default:
		o.fail("type", "%q is not supported: NFC, NFD, NFKC, NFKD, Lowercase, Strip, Prepend, Replace and Sequence are", typ)
		return steps
	}
	o.end()
	return append(steps, step)
}

// parsePattern reads a pattern that is a plain string.
func parsePattern(o *object) string {
	pattern := o.object("pattern")
	if pattern == nil {
		o.fail("pattern", "is missing")
		return ""
	}
	if r := pattern.raw("Regex"); r != nil {
		pattern.fail("Regex", "%s is not supported here: only a String is", r)
	}
	s := pattern.text("String")
	pattern.end()
	return s
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// lowercase maps each character by itself, as Rust does; the one whose lower case is two characters is U+0130.
func lowercase(s string) string {
	return strings.Map(lowerSince15, strings.ToLower(strings.ReplaceAll(s, "İ", "i\u0307")))
}

// lowerSince15 knows the capitals of Unicode 16 and 17, which Go 1.26 does not (a test counts them).
func lowerSince15(r rune) rune {
	switch {
	case r < 0x1c89:
	case r == 0x1c89:
		return 0x1c8a
	case r == 0xa7cb:
		return 0x0264
	case r == 0xa7cc || r == 0xa7da:
		return r + 1
	case r == 0xa7dc:
		return 0x019b
	case 0x10d50 <= r && r <= 0x10d65:
		return r + 0x20
	}
	return r
}
