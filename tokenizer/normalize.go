package tokenizer

import (
	"strings"
	"unicode"
	"unicode/utf8"

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
		step.apply = form(norm.NFC)
	case "NFD":
		step.apply = form(norm.NFD)
	case "NFKC":
		step.apply = form(norm.NFKC)
	case "NFKD":
		step.apply = form(norm.NFKD)
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

// lowerSince15 knows the capitals of Unicode 16 and 17, which Go 1.26 does not.
func lowerSince15(r rune) rune {
	switch {
	case r < 0x1c89:
	case r == 0x1c89:
		return 0x1c8a
	case r == 0xa7cb:
		return 0x0264
	case r == 0xa7cc || r == 0xa7ce || r == 0xa7d2 || r == 0xa7d4 || r == 0xa7da:
		return r + 1
	case r == 0xa7dc:
		return 0x019b
	case 0x10d50 <= r && r <= 0x10d65:
		return r + 0x20
	case 0x16ea0 <= r && r <= 0x16eb8:
		return r + 0x1b
	}
	return r
}

// form is a normal form as Hugging Face computes it, with the tables of Unicode 9: what has come since, and would be moved,
// composed or taken apart, stands still between what is around it.
func form(f norm.Form) func(string) string {
	return func(s string) string {
		if f.IsNormalString(s) {
			return s
		}
		isNew := func(r rune) bool { return r >= 0x7fd && unicode.Is(movingSince9, r) }
		var b strings.Builder
		for {
			i := strings.IndexFunc(s, isNew)
			if i < 0 {
				b.WriteString(f.String(s))
				return b.String()
			}
			_, n := utf8.DecodeRuneInString(s[i:])
			b.WriteString(f.String(s[:i]))
			b.WriteString(s[i : i+n])
			s = s[i+n:]
		}
	}
}

var movingSince9 = &unicode.RangeTable{
	R16: []unicode.Range16{
		{0x07fd, 0x07fd, 1}, {0x0898, 0x089f, 1}, {0x08ca, 0x08d3, 1}, {0x09fe, 0x09fe, 1}, {0x0c3c, 0x0c3c, 1}, {0x0d3b, 0x0d3c, 1},
		{0x0eba, 0x0eba, 1}, {0x1715, 0x1715, 1}, {0x1abf, 0x1ace, 1}, {0x1df6, 0x1dfa, 1}, {0x32ff, 0x32ff, 1}, {0xa7f2, 0xa7f4, 1},
		{0xa82c, 0xa82c, 1}, {0xab69, 0xab69, 1},
	},
	R32: []unicode.Range32{
		{0x10781, 0x10785, 1}, {0x10787, 0x107b0, 1}, {0x107b2, 0x107ba, 1}, {0x10d24, 0x10d27, 1}, {0x10eab, 0x10eac, 1},
		{0x10efd, 0x10eff, 1}, {0x10f46, 0x10f50, 1}, {0x10f82, 0x10f85, 1}, {0x11070, 0x11070, 1}, {0x1133b, 0x1133b, 1},
		{0x1145e, 0x1145e, 1}, {0x11839, 0x1183a, 1}, {0x11938, 0x11938, 1}, {0x1193d, 0x1193e, 1}, {0x11943, 0x11943, 1},
		{0x119e0, 0x119e0, 1}, {0x11a34, 0x11a34, 1}, {0x11a47, 0x11a47, 1}, {0x11a99, 0x11a99, 1}, {0x11d42, 0x11d42, 1},
		{0x11d44, 0x11d45, 1}, {0x11d97, 0x11d97, 1}, {0x11f41, 0x11f42, 1}, {0x16ff0, 0x16ff1, 1}, {0x1e030, 0x1e06d, 1},
		{0x1e08f, 0x1e08f, 1}, {0x1e130, 0x1e136, 1}, {0x1e2ae, 0x1e2ae, 1}, {0x1e2ec, 0x1e2ef, 1}, {0x1e4ec, 0x1e4ef, 1},
		{0x1f16c, 0x1f16c, 1}, {0x1fbf0, 0x1fbf9, 1},
	},
}
