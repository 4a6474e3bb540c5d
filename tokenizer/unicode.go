package tokenizer

import (
	"unicode"
	"unicode/utf8"
)

// The patterns of byte-level BPE divide characters into four classes: \s, \p{L}, \p{N} and the rest. Hugging Face
// tokenizers 0.23 matches them with Unicode 16, Go 1.26 has Unicode 15, so what Unicode 15.1 and 16 added stands here;
// a test counts the classes and fails when Go's tables change.

type class uint8

const (
	other class = iota
	space
	letter
	number
)

var lettersSince15 = &unicode.RangeTable{
	R16: []unicode.Range16{{0x1c89, 0x1c8a, 1}, {0xa7cb, 0xa7cd, 1}, {0xa7da, 0xa7dc, 1}},
	R32: []unicode.Range32{
		{0x105c0, 0x105f3, 1}, {0x10d4a, 0x10d65, 1}, {0x10d6f, 0x10d85, 1}, {0x10ec2, 0x10ec4, 1}, {0x11380, 0x11389, 1},
		{0x1138b, 0x1138b, 1}, {0x1138e, 0x1138e, 1}, {0x11390, 0x113b5, 1}, {0x113b7, 0x113b7, 1}, {0x113d1, 0x113d1, 1},
		{0x113d3, 0x113d3, 1}, {0x11bc0, 0x11be0, 1}, {0x13460, 0x143fa, 1}, {0x16100, 0x1611d, 1}, {0x16d40, 0x16d6c, 1},
		{0x18cff, 0x18cff, 1}, {0x1e5d0, 0x1e5ed, 1}, {0x1e5f0, 0x1e5f0, 1}, {0x2ebf0, 0x2ee5d, 1},
	},
}

var numbersSince15 = &unicode.RangeTable{
	R32: []unicode.Range32{
		{0x10d40, 0x10d49, 1}, {0x116d0, 0x116e3, 1}, {0x11bf0, 0x11bf9, 1}, {0x16130, 0x16139, 1}, {0x16d70, 0x16d79, 1},
		{0x1ccf0, 0x1ccf9, 1}, {0x1e5f1, 0x1e5fa, 1},
	},
}

// numeric says whether a Digits stage takes the character at s[i], and its length. That stage is Rust's is_numeric, of
// Unicode 17.
func numeric(s string, i int) (bool, int) {
	if s[i] < utf8.RuneSelf {
		return '0' <= s[i] && s[i] <= '9', 1
	}
	r, n := utf8.DecodeRuneInString(s[i:])
	return classOf(r) == number || 0x11de0 <= r && r <= 0x11de9 || 0x16ff4 <= r && r <= 0x16ff6, n
}

// basicClasses holds the class of every character of the basic plane.
var basicClasses = func() (t [1 << 16]class) {
	mark := func(c class, tables ...*unicode.RangeTable) {
		for _, table := range tables {
			for _, r := range table.R16 {
				for x := uint32(r.Lo); x <= uint32(r.Hi); x += uint32(r.Stride) {
					t[x] = c
				}
			}
		}
	}
	mark(space, unicode.White_Space)
	mark(letter, unicode.L, lettersSince15)
	mark(number, unicode.N, numbersSince15)
	return t
}()

func classOf(r rune) class {
	switch {
	case r < 1<<16:
		return basicClasses[r]
	case unicode.In(r, unicode.L, lettersSince15):
		return letter
	case unicode.In(r, unicode.N, numbersSince15):
		return number
	}
	return other // all white space is in the basic plane
}

// classAt returns the class and length of the character at s[i]. A byte that is not UTF-8 is of the rest.
func classAt(s string, i int) (class, int) {
	if b := s[i]; b < utf8.RuneSelf {
		return basicClasses[b], 1
	}
	r, n := utf8.DecodeRuneInString(s[i:])
	if r == utf8.RuneError && n == 1 {
		return other, 1
	}
	return classOf(r), n
}

// byteRunes is GPT-2's printable character for each byte, in which a tokenizer.json spells its vocabulary: bytes that
// are printable in Latin-1 stand for themselves, the others are numbered from U+0100.
var byteRunes = func() (t [256]rune) {
	next := rune(256)
	for b := range rune(256) {
		if '!' <= b && b <= '~' || 0xa1 <= b && b <= 0xac || 0xae <= b {
			t[b] = b
		} else {
			t[b] = next
			next++
		}
	}
	return t
}()

// runeBytes inverts byteRunes; -1 for a character that stands for no byte. All of them lie below U+0144.
var runeBytes = func() (t [0x144]int16) {
	for i := range t {
		t[i] = -1
	}
	for b, r := range byteRunes {
		t[r] = int16(b)
	}
	return t
}()

// fromByteRunes returns the bytes that a vocabulary entry spells, or ok = false if a character stands for no byte.
func fromByteRunes(s string) (raw []byte, ok bool) {
	raw = make([]byte, 0, len(s))
	for _, r := range s {
		if int(r) >= len(runeBytes) || runeBytes[r] < 0 {
			return nil, false
		}
		raw = append(raw, byte(runeBytes[r]))
	}
	return raw, true
}
