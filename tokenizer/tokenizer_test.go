package tokenizer

import (
	"bufio"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/dlclark/regexp2/v2"
	"pgregory.net/rapid"
)

func loadTestdata(t testing.TB) *BPE {
	t.Helper()
	loaded, err := Load("testdata")
	if err != nil {
		t.Fatal(err)
	}
	return loaded.(*BPE)
}

// testdata is a tokenizer that Train made and the ids Hugging Face gives for it (NHA_UPDATE=1 scripts/tokenizer-truth/run).
func TestGolden(t *testing.T) {
	b := loadTestdata(t)
	f, err := os.Open(filepath.Join("testdata", "cases.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	n := 0
	for ; lines.Scan(); n++ {
		var c goldenCase
		unmarshal(t, lines.Bytes(), &c)
		if got := b.Encode(c.Text); !slices.Equal(got, c.IDs) {
			t.Errorf("%q: %v, want %v", c.Text, got, c.IDs)
		}
		if got := Lossy(b.Decode(c.IDs)); got != c.Decoded {
			t.Errorf("%v: decoded %q, want %q", c.IDs, got, c.Decoded)
		}
	}
	if n < 100 {
		t.Fatalf("%d cases in testdata/cases.jsonl", n)
	}
}

// The counts are those of tokenizers 0.23.3, which scripts/tokenizer-truth/run compares character by character.
func TestClasses(t *testing.T) {
	var count [4]int
	for r := rune(0); r <= utf8.MaxRune; r++ {
		if utf8.ValidRune(r) {
			count[classOf(r)]++
		}
	}
	if count[letter] != 141028 || count[number] != 1911 || count[space] != 25 {
		t.Errorf("%d letters, %d numbers, %d spaces, want 141028, 1911, 25: Go's Unicode %s needs other tables in unicode.go",
			count[letter], count[number], count[space], unicode.Version)
	}
}

// The scanners against a regular expression engine that knows look-ahead.
func TestScanners(t *testing.T) {
	for _, pattern := range []string{gpt2Pattern, llama3Pattern, qwen2Pattern} {
		re, err := regexp2.Compile(pattern)
		if err != nil {
			t.Fatal(err)
		}
		scan, err := scannerOf(pattern)
		if err != nil {
			t.Fatal(err)
		}
		pre := preTokenizer{stages: []stage{{scan: scan}}}
		rng := rand.New(rand.NewPCG(3, 4))
		for _, text := range randomTexts(rng, 2000, []string{"It's 10:45, and we'll see;\n\n\tif (x1 == 2000) { return 'a' }  // ok\n"}) {
			if strings.ContainsFunc(text, func(r rune) bool { return unicode.In(r, lettersSince15, numbersSince15) }) {
				continue // that engine has Go's tables
			}
			var got, want []string
			pre.pieces(text, func(piece string) { got = append(got, piece) })
			m, err := re.FindStringMatch(text)
			for ; m != nil && err == nil; m, err = re.FindNextMatch(m) {
				want = append(want, m.String())
			}
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(got, want) {
				t.Fatalf("%q: %q, want %q", text, got, want)
			}
		}
	}
}

// mergeNaively merges the pair of lowest rank, the leftmost of equals, until there is none.
func mergeNaively(m *mergeTable, ids []int32) []int32 {
	ids = slices.Clone(ids)
	for {
		best, at := noRank, 0
		for i := 1; i < len(ids); i++ {
			if r := m.rank(ids[i-1], ids[i]); r < best {
				best, at = r, i-1
			}
		}
		if best == noRank {
			return ids
		}
		ids[at] = m.slot(pairOf(ids[at], ids[at+1])).id
		ids = slices.Delete(ids, at+1, at+2)
	}
}

func TestMerge(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		// Any rules over a few tokens, also such as no training makes: long chains, later tokens merged earlier.
		const tokens = 12
		n := rapid.IntRange(0, 60).Draw(t, "rules")
		m := newMergeTable(n)
		for rank := range n {
			id := func(name string) int32 { return rapid.Int32Range(0, tokens-1).Draw(t, name) }
			m.set(mergeRule{pairOf(id("a"), id("b")), int32(rank), id("c")})
		}
		var byteIDs [256]int32
		for i := range byteIDs {
			byteIDs[i] = int32(i % tokens)
		}
		piece := string(rapid.SliceOfN(rapid.ByteRange(0, tokens-1), 1, 90).Draw(t, "piece"))
		var ids []int32
		for i := range len(piece) {
			ids = append(ids, byteIDs[piece[i]])
		}
		want := mergeNaively(&m, ids)
		if got := (&BPE{merges: m, byteIDs: byteIDs}).mergeBytes(nil, piece, new(mergeWork)); !slices.Equal(got, want) {
			t.Errorf("merge: %v, want %v", got, want)
		}
		w := &mergeWork{ids: slices.Clone(ids)}
		if got := m.mergeLong(nil, w); !slices.Equal(got, want) {
			t.Errorf("mergeLong: %v, want %v", got, want)
		}
	})
}

func TestSpecialTokens(t *testing.T) {
	b := loadTestdata(t)
	eos, ok := b.EOS()
	if !ok || !b.Special(eos) || string(b.Token(eos)) != EndOfText {
		t.Fatalf("EOS = %d %v %q", eos, ok, b.Token(eos))
	}
	if id, ok := b.BOS(); ok {
		t.Errorf("BOS = %d, want none", id)
	}
	if id, ok := b.ID(EndOfText); !ok || id != eos {
		t.Errorf("ID = %d %v", id, ok)
	}
	text := "the end" + EndOfText + " of the" + EndOfText
	want := slices.Concat(b.Encode("the end"), []int32{eos}, b.Encode(" of the"), []int32{eos})
	if got := b.Encode(text); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	ordinary := b.EncodeOrdinary(nil, text)
	if slices.Contains(ordinary, eos) || b.Decode(ordinary) != text {
		t.Errorf("EncodeOrdinary: %v %q", ordinary, b.Decode(ordinary))
	}
	for _, id := range []int32{-1, int32(b.VocabSize())} {
		if b.Token(id) != nil || b.Special(id) || b.Decode([]int32{id}) != "" {
			t.Errorf("id %d outside the vocabulary: %q", id, b.Token(id))
		}
	}
}

func TestBytes(t *testing.T) {
	text := "a\xff\x00é" + EndOfText
	plain, end := Bytes{}, Bytes{EndOfText: true}
	if got := plain.Encode(text); len(got) != len(text) || plain.Decode(got) != text {
		t.Errorf("%v", got)
	}
	if got, want := end.Encode(text), []int32{'a', 255, 0, 0xc3, 0xa9, 256}; !slices.Equal(got, want) || end.Decode(got) != text {
		t.Errorf("%v, want %v", got, want)
	}
	if got := end.EncodeOrdinary(nil, text); len(got) != len(text) {
		t.Errorf("%v", got)
	}
	if id, ok := end.EOS(); id != 256 || !ok || !end.Special(id) || end.VocabSize() != 257 {
		t.Errorf("EOS = %d %v", id, ok)
	}
	if _, ok := plain.EOS(); ok || plain.VocabSize() != 256 || plain.Token(256) != nil || plain.Token(-1) != nil {
		t.Error("plain bytes have an EOS")
	}
	if plain.Hash() == end.Hash() {
		t.Error("hashes are equal")
	}
}

func TestSaveLoad(t *testing.T) {
	b := loadTestdata(t)
	for _, want := range []Tokenizer{b, Bytes{}, Bytes{EndOfText: true}} {
		dir := t.TempDir()
		for range 2 { // also over what is there
			if err := want.Save(dir); err != nil {
				t.Fatal(err)
			}
		}
		for _, path := range []string{dir, filepath.Join(dir, "tokenizer.json")} {
			got, err := Load(path)
			if err != nil {
				t.Fatal(err)
			}
			wantEOS, _ := want.EOS()
			gotEOS, _ := got.EOS()
			if got.Hash() != want.Hash() || got.VocabSize() != want.VocabSize() || gotEOS != wantEOS {
				t.Errorf("%T came back as another: %s %d", want, got.Hash(), got.VocabSize())
			}
			if _, ok := want.(Bytes); ok && got != want {
				t.Errorf("%#v came back as %T", want, got)
			}
		}
		files, err := os.ReadDir(dir)
		if err != nil || len(files) != 2 {
			t.Errorf("%v %v: want two files", files, err)
		}
	}
	if err := b.Save(filepath.Join(t.TempDir(), "absent")); err == nil || !strings.Contains(err.Error(), "absent") {
		t.Errorf("saving into no directory: %v", err)
	}
}

// The hash follows what the ids depend on, not how the file is written.
func TestHash(t *testing.T) {
	b := loadTestdata(t)
	parsed := func(change func(root map[string]any)) string {
		p, err := parse("x", vary(t, b.source, change), "y", b.config)
		if err != nil {
			t.Fatal(err)
		}
		return p.Hash()
	}
	if parsed(func(map[string]any) {}) != b.Hash() {
		t.Error("other spacing, other hash")
	}
	seen := map[string]string{b.Hash(): "unchanged"}
	for name, change := range map[string]func(root map[string]any){
		"merges": func(root map[string]any) {
			m := root["model"].(map[string]any)["merges"].([]any)
			m[0], m[1] = m[1], m[0]
		},
		"pattern":  func(root map[string]any) { root["pre_tokenizer"] = splitStage(llama3Pattern) },
		"special":  func(root map[string]any) { root["added_tokens"].([]any)[0].(map[string]any)["special"] = false },
		"added":    func(root map[string]any) { addTokens(root, added(1000, "<x>", true, false)) },
		"whole":    func(root map[string]any) { root["model"].(map[string]any)["ignore_merges"] = true },
		"prefix":   func(root map[string]any) { root["pre_tokenizer"].(map[string]any)["add_prefix_space"] = true },
		"no merge": func(root map[string]any) { root["model"].(map[string]any)["merges"] = []any{} },
	} {
		h := parsed(change)
		if other, ok := seen[h]; ok {
			t.Errorf("%s: hash of %s", name, other)
		}
		seen[h] = name
	}
}

func TestConcurrent(t *testing.T) {
	b := loadTestdata(t)
	rng := rand.New(rand.NewPCG(5, 6))
	texts := randomTexts(rng, 300, []string{"The quick brown fox jumps over the lazy dog. "})
	want := make([][]int32, len(texts))
	for i, text := range texts {
		want[i] = withEmptyCache(t, b).Encode(text)
	}
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for i, text := range texts {
				if got := b.Encode(text); !slices.Equal(got, want[i]) {
					t.Errorf("%q: %v, want %v", text, got, want[i])
				}
			}
		})
	}
	group.Wait()
}

// withEmptyCache returns a tokenizer like b that has seen nothing.
func withEmptyCache(t *testing.T, b *BPE) *BPE {
	t.Helper()
	p, err := parse("x", b.source, "y", b.config)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestEncodeAllocatesNothing(t *testing.T) {
	b := loadTestdata(t)
	text := strings.Repeat("The encoder allocates nothing for words that it has seen. ", 20) + strings.Repeat("x", 500)
	ids := b.Encode(text)
	if n := testing.AllocsPerRun(20, func() { ids = b.EncodeAppend(ids[:0], text) }); n > 0 {
		t.Errorf("%v allocations for a text seen before", n)
	}
}

func TestLossy(t *testing.T) {
	for in, want := range map[string]string{
		"":                 "",
		"aé日😀\ufffd":       "aé日😀\ufffd",
		"a\xe2\x82b":       "a\ufffdb",
		"\xf0\x9f\x98":     "\ufffd",
		"\xf0\x9f\x98\xf0": "\ufffd\ufffd",
		"\xff\xfe":         "\ufffd\ufffd",
		"\xed\xa0\x80":     "\ufffd\ufffd\ufffd",
		"\xc0\x80":         "\ufffd\ufffd",
		"\x80é":            "\ufffdé",
	} {
		if got := Lossy(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// Whatever ids come, each string pushed out is valid and all of them are what Decode gives.
func TestStreamDecoder(t *testing.T) {
	for _, tk := range []Tokenizer{loadTestdata(t), Bytes{EndOfText: true}} {
		rapid.Check(t, func(t *rapid.T) {
			text := rapid.OneOf(rapid.String(), rapid.Custom(func(t *rapid.T) string {
				return string(rapid.SliceOf(rapid.Byte()).Draw(t, "bytes"))
			})).Draw(t, "text")
			ids := tk.Encode(text)
			d := NewStreamDecoder(tk)
			var b strings.Builder
			for i, id := range ids {
				s := d.Push(id)
				if !utf8.ValidString(s) {
					t.Fatalf("pushing id %d of %v gave %q", i, ids, s)
				}
				b.WriteString(s)
				if so := tk.Decode(ids[:i+1]); utf8.ValidString(so) && b.String() != so {
					t.Fatalf("%q held back of %q", so[b.Len():], so)
				}
			}
			b.WriteString(d.Flush())
			if b.String() != Lossy(text) {
				t.Fatalf("%q, want %q", b.String(), Lossy(text))
			}
		})
	}
}

func FuzzRoundTrip(f *testing.F) {
	for _, s := range []string{"", "a", "It's 1 a.m.", "\xff\xfe é \u2028\n", "日本語<|endoftext|>x", strings.Repeat("ab ", 50)} {
		f.Add(s)
	}
	b := loadTestdata(f)
	tokenizers := []Tokenizer{b, Bytes{}, Bytes{EndOfText: true}}
	for _, pattern := range []string{llama3Pattern, qwen2Pattern} {
		p, err := parse("x", vary(f, b.source, func(root map[string]any) { root["pre_tokenizer"] = splitStage(pattern) }), "y", b.config)
		if err != nil {
			f.Fatal(err)
		}
		tokenizers = append(tokenizers, p)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, tk := range tokenizers {
			if got := tk.Decode(tk.Encode(text)); got != text {
				t.Errorf("%T: %q came back as %q", tk, text, got)
			}
			if got := tk.Decode(tk.EncodeOrdinary(nil, text)); got != text {
				t.Errorf("%T: %q came back as %q from EncodeOrdinary", tk, text, got)
			}
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	tk := loadTestdata(b)
	text := strings.Join(goSources(b, 1<<20), "\n")
	var ids []int32
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		ids = tk.EncodeAppend(ids[:0], text)
	}
}
