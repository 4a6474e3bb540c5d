package tokenizer

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// TestTruth holds this package against Hugging Face tokenizers, which scripts/tokenizer-truth/run installs.
func TestTruth(t *testing.T) {
	python := os.Getenv("NHA_PYTHON")
	if python == "" {
		t.Skip("scripts/tokenizer-truth/run runs this against Hugging Face tokenizers")
	}
	corpus := goSources(t, 6<<20)
	rng := rand.New(rand.NewPCG(1, 2))
	corpus = append(corpus, randomTexts(rng, 300, corpus)...)
	dir := t.TempDir()

	b, err := Train(context.Background(), all(corpus), TrainOptions{VocabSize: 6000})
	if err != nil {
		t.Fatal(err)
	}
	t.Run("train", func(t *testing.T) {
		for _, vocab := range []int{300, 1000, 6000, 20000} {
			theirs := filepath.Join(dir, "theirs.json")
			ask(t, python, corpus, func(int, json.RawMessage) {}, "train", fmt.Sprint(vocab), theirs)
			compareTraining(t, corpus, vocab, theirs)
		}
	})
	base := filepath.Join(dir, "base")
	if err := os.Mkdir(base, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := b.Save(base); err != nil {
		t.Fatal(err)
	}
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			path := filepath.Join(dir, fileName)
			if err := os.WriteFile(path, vary(t, b.source, v.change), 0o644); err != nil {
				t.Fatal(err)
			}
			loaded, err := Load(path)
			if err != nil {
				t.Fatal(err)
			}
			tk := loaded.(*BPE)
			compareEncoding(t, python, path, tk, withTokens(rng, truthTexts(rng, corpus), tk))
			compareDecoding(t, python, path, tk, rng)
			if v.cuts {
				comparePieces(t, python, path, tk)
			}
		})
	}
	for _, v := range spmVariants {
		t.Run(v.name, func(t *testing.T) {
			trained := filepath.Join(dir, v.train+".json")
			if _, err := os.Stat(trained); err != nil {
				ask(t, python, corpus, func(int, json.RawMessage) {}, v.train, "3000", trained)
			}
			source, err := os.ReadFile(trained)
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, fileName)
			source = vary(t, source, func(root map[string]any) {
				root["added_tokens"] = root["added_tokens"].([]any)[:3] // the bytes are no added tokens
				v.change(root)
			})
			if err := os.WriteFile(path, source, 0o644); err != nil {
				t.Fatal(err)
			}
			loaded, err := Load(path)
			if err != nil {
				t.Fatal(err)
			}
			tk := loaded.(*BPE)
			compareEncoding(t, python, path, tk, withTokens(rng, truthTexts(rng, corpus), tk))
			compareDecoding(t, python, path, tk, rng)
		})
	}
	t.Run("bytes", func(t *testing.T) {
		if err := (Bytes{EndOfText: true}).Save(dir); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, fileName)
		compareEncoding(t, python, path, Bytes{EndOfText: true}, truthTexts(rng, corpus))
	})
	if os.Getenv("NHA_UPDATE") != "" {
		writeGolden(t, python, readAll(t, "*.go"), rng)
	}
}

// variants are the ways a tokenizer.json may differ from what Train writes.
var variants = []struct {
	name   string
	cuts   bool // its pattern is held against every character
	change func(root map[string]any)
}{
	{"gpt2", true, func(map[string]any) {}},
	{"llama3", true, func(root map[string]any) {
		root["pre_tokenizer"] = splitStage(llama3Pattern)
		root["model"].(map[string]any)["ignore_merges"] = true
		root["post_processor"] = map[string]any{"type": "Sequence", "processors": []any{
			map[string]any{"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true},
			map[string]any{"type": "TemplateProcessing",
				"single": []any{
					map[string]any{"SpecialToken": map[string]any{"id": "<s>", "type_id": 0}},
					map[string]any{"Sequence": map[string]any{"id": "A", "type_id": 0}},
					map[string]any{"SpecialToken": map[string]any{"id": "</s>", "type_id": 0}}},
				"pair": []any{
					map[string]any{"Sequence": map[string]any{"id": "A", "type_id": 0}},
					map[string]any{"Sequence": map[string]any{"id": "B", "type_id": 1}}},
				"special_tokens": map[string]any{
					"<s>":  map[string]any{"id": "<s>", "ids": []int{6000}, "tokens": []string{"<s>"}},
					"</s>": map[string]any{"id": "</s>", "ids": []int{6001}, "tokens": []string{"</s>"}}}}}}
		addTokens(root, added(6000, "<s>", true, false), added(6001, "</s>", true, false))
	}},
	{"qwen2", true, func(root map[string]any) {
		root["pre_tokenizer"] = splitStage(qwen2Pattern)
		addTokens(root, added(6000, "<|im_start|>", true, false), added(6001, "<|im_end|>", true, false),
			added(6002, "<think>", false, false), added(6003, "<|im", false, true), added(6004, "日本", false, true),
			added(6005, "｜x▁y", true, false), added(0, "of", false, true))
	}},
	{"removed", false, func(root map[string]any) {
		stage := splitStage(llama3Pattern)
		split := stage["pretokenizers"].([]any)[0].(map[string]any)
		split["behavior"], split["invert"] = "Removed", true
		root["pre_tokenizer"] = stage
	}},
	{"digits", true, func(root map[string]any) {
		root["pre_tokenizer"] = map[string]any{"type": "Sequence", "pretokenizers": []any{
			map[string]any{"type": "Digits", "individual_digits": true},
			map[string]any{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}}}
	}},
	{"digit runs", false, func(root map[string]any) {
		root["pre_tokenizer"] = map[string]any{"type": "Sequence", "pretokenizers": []any{
			map[string]any{"type": "Digits", "individual_digits": false},
			map[string]any{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}}}
	}},
	{"prefix space, merges as lists", false, func(root map[string]any) {
		root["pre_tokenizer"].(map[string]any)["add_prefix_space"] = true
		model := root["model"].(map[string]any)
		var pairs [][]string
		for _, m := range model["merges"].([]any) {
			pairs = append(pairs, strings.Split(m.(string), " "))
		}
		model["merges"] = pairs
	}},
	{"no pattern", false, func(root map[string]any) {
		root["pre_tokenizer"].(map[string]any)["use_regex"] = false
	}},
	{"qwen2, NFC", false, func(root map[string]any) {
		root["normalizer"] = map[string]any{"type": "NFC"}
		root["pre_tokenizer"] = splitStage(qwen2Pattern)
		addTokens(root, added(6000, "<|im_start|>", true, false), added(6001, "<|im_end|>", true, false), added(6002, "\u1112\u1161\u11ab", false, true))
	}},
	{"flags of added tokens", false, func(root map[string]any) {
		addTokens(root, flagged(6000, "<mask>", "lstrip"), flagged(6001, "<r>", "rstrip"), flagged(6002, "the", "single_word"),
			flagged(6003, "<lr>", "lstrip", "rstrip"), flagged(6004, "日", "single_word", "lstrip", "rstrip"), flagged(6005, "ing", "normalized", "single_word"))
	}},
	{"normalisers", false, func(root map[string]any) {
		root["normalizer"] = map[string]any{"type": "Sequence", "normalizers": []any{
			map[string]any{"type": "Strip", "strip_left": true, "strip_right": true},
			map[string]any{"type": "NFKC"},
			map[string]any{"type": "Lowercase"},
			map[string]any{"type": "Replace", "pattern": map[string]any{"String": "..."}, "content": "…"}}}
		addTokens(root, added(6000, "The", false, true), added(6001, "Ǆ", false, true), added(6002, "<X>", false, false))
	}},
}

// spmVariants are the ways of SentencePiece's tokenizers, from what truth.py trains.
var spmVariants = []struct {
	name, train string
	change      func(root map[string]any)
}{
	{"llama2", "train-spm", func(root map[string]any) {}},
	{"llama2, merges across spaces", "train-across", func(root map[string]any) {}},
	{"metaspace first", "train-spm", func(root map[string]any) {
		root["normalizer"] = nil
		root["pre_tokenizer"] = map[string]any{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false}
		addTokens(root, added(3000, "[INST]", true, false), added(3001, "[/INST]", true, false), flagged(3002, "<x>", "rstrip", "normalized"))
	}},
	{"metaspace always", "train-spm", func(root map[string]any) {
		root["normalizer"] = map[string]any{"type": "NFKC"}
		root["pre_tokenizer"] = map[string]any{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}
		root["decoder"] = map[string]any{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}
	}},
	{"metaspace never", "train-across", func(root map[string]any) {
		root["normalizer"] = nil
		root["pre_tokenizer"] = map[string]any{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": false}
		root["model"].(map[string]any)["ignore_merges"] = true
	}},
	{"unknown, fused", "train-spm", func(root map[string]any) {
		root["model"].(map[string]any)["byte_fallback"] = false
		addTokens(root, flagged(3000, "the", "normalized"))
	}},
	{"unknown, one by one", "train-spm", func(root map[string]any) {
		model := root["model"].(map[string]any)
		model["byte_fallback"], model["fuse_unk"] = false, false
	}},
	{"unknown, dropped", "train-spm", func(root map[string]any) {
		model := root["model"].(map[string]any)
		model["byte_fallback"], model["unk_token"] = false, nil
	}},
}

// flagged is an added token that is not special, with these keys true.
func flagged(id int, content string, keys ...string) map[string]any {
	token := added(id, content, false, false)
	for _, key := range keys {
		token[key] = true
	}
	return token
}

func splitStage(pattern string) map[string]any {
	return map[string]any{"type": "Sequence", "pretokenizers": []any{
		map[string]any{"type": "Split", "pattern": map[string]any{"Regex": pattern}, "behavior": "Isolated", "invert": false},
		map[string]any{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}}}
}

func added(id int, content string, special, normalized bool) map[string]any {
	return map[string]any{"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
		"normalized": normalized, "special": special}
}

// addTokens appends added tokens; those that the vocabulary has already take its id, and leave theirs to the next.
func addTokens(root map[string]any, tokens ...map[string]any) {
	vocab := root["model"].(map[string]any)["vocab"].(map[string]any)
	taken := 0
	for _, token := range tokens {
		if id, ok := vocab[token["content"].(string)]; ok {
			token["id"] = id
			taken++
		} else {
			token["id"] = token["id"].(int) - taken
		}
		root["added_tokens"] = append(root["added_tokens"].([]any), token)
	}
}

// vary applies change to a tokenizer.json.
func vary(t testing.TB, source []byte, change func(root map[string]any)) []byte {
	t.Helper()
	var root map[string]any
	if err := json.Unmarshal(source, &root); err != nil {
		t.Fatal(err)
	}
	change(root)
	out, err := json.Marshal(root)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// ask puts questions to truth.py and calls f with the answer to each.
func ask[Q any](t *testing.T, python string, questions []Q, f func(i int, answer json.RawMessage), args ...string) {
	t.Helper()
	var in bytes.Buffer
	for _, q := range questions {
		line, err := json.Marshal(q)
		if err != nil {
			t.Fatal(err)
		}
		in.Write(append(line, '\n'))
	}
	cmd := exec.Command(python, append([]string{"../scripts/tokenizer-truth/truth.py"}, args...)...)
	cmd.Stdin, cmd.Stderr = &in, os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("truth.py %v: %v", args, err)
	}
	answers := bufio.NewScanner(bytes.NewReader(out))
	answers.Buffer(nil, 1<<26)
	n := 0
	for ; answers.Scan(); n++ {
		f(n, answers.Bytes())
	}
	if !strings.HasPrefix(args[0], "train") && n != len(questions) {
		t.Fatalf("truth.py %v: %d answers to %d questions", args, n, len(questions))
	}
}

func unmarshal(t *testing.T, raw json.RawMessage, into any) {
	t.Helper()
	if err := json.Unmarshal(raw, into); err != nil {
		t.Fatal(err)
	}
}

const mostShown = 5

func compareEncoding(t *testing.T, python, path string, tk Tokenizer, texts []string) {
	wrong, tokens := 0, 0
	ask(t, python, texts, func(i int, raw json.RawMessage) {
		var want struct {
			IDs, Template, Ordinary []int32
			Decoded                 string
		}
		unmarshal(t, raw, &want)
		got := tk.Encode(texts[i])
		before, behind := tk.Template()
		template := slices.Concat(before, got, behind)
		ordinary := tk.EncodeOrdinary(nil, texts[i])
		tokens += len(got)
		if slices.Equal(got, want.IDs) && slices.Equal(template, want.Template) &&
			slices.Equal(ordinary, want.Ordinary) && Lossy(tk.Decode(got)) == want.Decoded {
			return
		}
		if wrong++; wrong <= mostShown {
			t.Errorf("%q:\n got %v template %v ordinary %v %q\nwant %+v", texts[i], got, template, ordinary, tk.Decode(got), want)
		}
	}, "encode", path)
	fmt.Printf("%s: %d strings, %d tokens, %d differ\n", t.Name(), len(texts), tokens, wrong)
}

// compareDecoding decodes ids at random, most of them torn characters, whole and as a stream.
func compareDecoding(t *testing.T, python, path string, tk *BPE, rng *rand.Rand) {
	var lists [][]int32
	for range 2000 {
		ids := make([]int32, rng.IntN(20))
		for i := range ids {
			ids[i] = int32(rng.IntN(tk.VocabSize()))
			if rng.IntN(2) == 0 {
				ids[i] = max(0, tk.byteIDs[rng.IntN(256)])
			}
		}
		if tk.chars != nil && !wholeBytes(ids) {
			continue // Hugging Face tears such a run as a whole, Lossy what is broken of it
		}
		lists = append(lists, ids)
	}
	wrong := 0
	ask(t, python, lists, func(i int, raw json.RawMessage) {
		var want string
		unmarshal(t, raw, &want)
		var stream strings.Builder
		d := NewStreamDecoder(tk)
		for _, id := range lists[i] {
			stream.WriteString(d.Push(id))
		}
		stream.WriteString(d.Flush())
		if got := Lossy(tk.Decode(lists[i])); got == want && stream.String() == want {
			return
		}
		if wrong++; wrong <= mostShown {
			t.Errorf("%v: decoded %q, streamed %q, want %q", lists[i], tk.Decode(lists[i]), stream.String(), want)
		}
	}, "decode", path)
	fmt.Printf("%s: %d lists of ids decoded, %d differ\n", t.Name(), len(lists), wrong)
}

// wholeBytes says whether every run of tokens of bytes, which truth.py numbers from 3, is UTF-8.
func wholeBytes(ids []int32) bool {
	var run []byte
	for _, id := range append(ids[:len(ids):len(ids)], 0) {
		if id >= 3 && id < 259 {
			run = append(run, byte(id-3))
			continue
		}
		if !utf8.Valid(run) {
			return false
		}
		run = run[:0]
	}
	return true
}

// comparePieces cuts every character there is, each between a letter, a number, a mark and a space.
func comparePieces(t *testing.T, python, path string, tk *BPE) {
	var texts []string
	var b strings.Builder
	for r := rune(1); r <= utf8.MaxRune; r++ {
		if utf8.ValidRune(r) {
			fmt.Fprintf(&b, "a%c1%c.%c %c\n%c's", r, r, r, r, r)
		}
		if r%64 == 0 || r == utf8.MaxRune {
			texts = append(texts, b.String())
			b.Reset()
		}
	}
	wrong := 0
	ask(t, python, texts, func(i int, raw json.RawMessage) {
		var want, got []string
		unmarshal(t, raw, &want)
		tk.pre.pieces(texts[i], func(piece string) { got = append(got, piece) })
		if slices.Equal(got, want) {
			return
		}
		if wrong++; wrong <= mostShown {
			at := 0
			for at < min(len(got), len(want)) && got[at] == want[at] {
				at++
			}
			t.Errorf("pieces differ at %q, want %q", got[at:min(at+4, len(got))], want[at:min(at+4, len(want))])
		}
	}, "pieces", path)
	fmt.Printf("%s: every character cut in %d texts, %d differ\n", t.Name(), len(texts), wrong)
}

func compareTraining(t *testing.T, corpus []string, vocab int, path string) {
	ours, err := Train(context.Background(), all(corpus), TrainOptions{VocabSize: vocab})
	if err != nil {
		t.Fatal(err)
	}
	loaded, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	theirs := loaded.(*BPE)
	wrong := 0
	for id := range max(ours.VocabSize(), theirs.VocabSize()) {
		if x, y := ours.Token(int32(id)), theirs.Token(int32(id)); !bytes.Equal(x, y) {
			if wrong++; wrong <= mostShown {
				t.Errorf("token %d is %q, want %q", id, x, y)
			}
		}
	}
	if ours.Hash() != theirs.Hash() { // the merges count too
		t.Errorf("vocabulary %d: hash %s, want %s", vocab, ours.Hash(), theirs.Hash())
	}
	fmt.Printf("%s: vocabulary %d, %d tokens differ, hashes %.8s %.8s\n", t.Name(), ours.VocabSize(), wrong, ours.Hash(), theirs.Hash())
}

// readAll returns the files that match a pattern.
func readAll(t testing.TB, pattern string) (documents []string) {
	paths, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		documents = append(documents, string(text))
	}
	return documents
}

// goSources returns up to size bytes of the Go distribution's own files: English in comments, code, odd test strings.
func goSources(t testing.TB, size int) (documents []string) {
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(strings.TrimSpace(string(goroot)), "src")
	err = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || filepath.Ext(path) != ".go" || size <= 0 {
			return err
		}
		text, err := os.ReadFile(path)
		if err == nil && utf8.Valid(text) && len(text) < 1<<20 {
			documents = append(documents, string(text))
			size -= len(text)
		}
		return err
	})
	if err != nil || len(documents) == 0 {
		t.Skipf("no Go sources under %s: %v", root, err)
	}
	return documents
}

// truthTexts are strings of many kinds.
func truthTexts(rng *rand.Rand, corpus []string) []string {
	texts := []string{"", " ", "\n", "a", "'", "'s", "a1a!", "é", "日本語", "  a", "a  ", "\r\n\r\n a", "I'm we'LL 'ſ 'K'll",
		"1234567890", "a\u00a0b\u0085c\u3000 d", strings.Repeat("a", 3000), strings.Repeat("ab", 2000), strings.Repeat(" ", 500) + "x",
		strings.Repeat("<|endoftext|>", 3), " <|endoftext|> ", "<|endoftext|", "a<|endoftext|>b<|im_start|>user\n<|im_end|><|im<think>日本語of"}
	return append(texts, randomTexts(rng, truthStrings(), corpus)...)
}

func randomTexts(rng *rand.Rand, n int, corpus []string) (texts []string) {
	fragments := strings.Split("'s|'T|'re|'VE|'m|'ll|'d|'|''|a|A|the| the|ing|tion|é|ß|ſ|日本|語|Ж|ق|अ|क्ष|ก| |  |\t|\n|\r\n|\u00a0|\u2003|\u200b|\u0085|"+
		"0|7|42|2026|½|Ⅷ|٣|.|,|...|!?|--|=>|_|/* |*/|{|}|$|€|😀|👩‍👩‍👧|🇩🇪|👍🏽|\u0301|\ufeff|\ufffd|\x00|\x7f|<|<|endoftext|>|<|im_start|>|<think>|of|<s>|</s>", "|")
	for i := range n {
		var b strings.Builder
		switch i % 5 {
		case 0: // a stretch of English and code
			d := []rune(corpus[rng.IntN(len(corpus))])
			from := rng.IntN(len(d) + 1)
			b.WriteString(string(d[from:min(len(d), from+rng.IntN(400))]))
		case 1: // any characters
			for range rng.IntN(40) {
				r := rune(rng.IntN(utf8.MaxRune + 1))
				if rng.IntN(2) == 0 {
					r = rune(rng.IntN(0x3000))
				}
				if utf8.ValidRune(r) {
					b.WriteRune(r)
				}
			}
		case 2: // fragments that patterns care about
			for range rng.IntN(40) {
				b.WriteString(fragments[rng.IntN(len(fragments))])
			}
		case 3: // white space
			for range rng.IntN(30) {
				b.WriteString(strings.Repeat(pick(rng, " \t\n\r\v\u00a0\u3000x1."), 1+rng.IntN(4)))
			}
		case 4: // fragments and added tokens, no white space: long pre-tokens
			for range rng.IntN(100) {
				b.WriteString(pick(rng, "abcdefghinorstéжи日"))
			}
			b.WriteString(EndOfText)
		}
		texts = append(texts, b.String())
	}
	return texts
}

// pick returns one of the characters of s.
func pick(rng *rand.Rand, s string) string {
	runes := []rune(s)
	return string(runes[rng.IntN(len(runes))])
}

// writeGolden makes testdata: a small tokenizer trained on this package, and Hugging Face's ids.
func writeGolden(t *testing.T, python string, corpus []string, rng *rand.Rand) {
	b, err := Train(context.Background(), all(corpus), TrainOptions{VocabSize: 1000})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Save("testdata"); err != nil {
		t.Fatal(err)
	}
	texts := truthTexts(rng, corpus)[:222]
	var out bytes.Buffer
	ask(t, python, texts, func(i int, raw json.RawMessage) {
		var want goldenCase
		unmarshal(t, raw, &want)
		want.Text = texts[i]
		line, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		out.Write(append(line, '\n'))
	}, "encode", filepath.Join("testdata", fileName))
	if err := os.WriteFile(filepath.Join("testdata", "cases.jsonl"), out.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// goldenCase is a line of testdata/cases.jsonl.
type goldenCase struct {
	Text    string  `json:"text"`
	IDs     []int32 `json:"ids"`
	Decoded string  `json:"decoded"`
}
