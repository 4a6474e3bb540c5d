package data

import (
	"slices"
	"strings"
	"testing"

	"github.com/dlclark/regexp2/v2"
	"pgregory.net/rapid"
)

// The patterns by which byte-level BPE tokenizers cut text before they merge.
var patterns = map[string]string{
	"gpt2":   `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`,
	"llama3": `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`,
	"qwen2":  `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`,
}

func split(t *rapid.T, re *regexp2.Regexp, text string) []string {
	var list []string
	m, err := re.FindStringMatch(text)
	for ; m != nil && err == nil; m, err = re.FindNextMatch(m) {
		list = append(list, m.String())
	}
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// A text that is cut where nextCut says splits into the same words as the whole text.
func TestCutsAreTokenizerCuts(t *testing.T) {
	for name, pattern := range patterns {
		re := regexp2.MustCompile(pattern, regexp2.None)
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				parts := rapid.SliceOfN(rapid.SampledFrom([]string{"a", "Word", " ", " ", "  ", "\n", "\n", "\n\n", "\r\n", "\t", "'s", "é", "語", "\u3000", "\u00a0", "\u0085", ".", "!?", "12", "1234"}), 0, 60).Draw(t, "text")
				text := strings.Join(parts, "")
				var got []string
				for rest := text; rest != ""; {
					n := nextCut(rest, rapid.IntRange(1, 10).Draw(t, "size"))
					got = append(got, split(t, re, rest[:n])...)
					rest = rest[n:]
				}
				if want := split(t, re, text); !slices.Equal(got, want) {
					t.Fatalf("%q: cut %q, whole %q", text, got, want)
				}
				if n := lastCut([]byte(text)); n > 0 {
					if got := append(split(t, re, text[:n]), split(t, re, text[n:])...); !slices.Equal(got, split(t, re, text)) {
						t.Fatalf("%q: last cut at %d", text, n)
					}
				}
			})
		})
	}
}

func TestCutPrefersSpaces(t *testing.T) {
	text := "one\ntwo three\nfour"
	if got := text[nextCut(text, 2):]; got != " three\nfour" {
		t.Fatalf("cut before %q", got)
	}
	if got := text[lastCut([]byte(text)):]; got != " three\nfour" {
		t.Fatalf("cut before %q", got)
	}
	if got := nextCut("nowhere", 3); got != 7 {
		t.Fatal(got)
	}
}
