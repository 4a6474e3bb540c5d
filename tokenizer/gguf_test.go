package tokenizer

import (
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
)

// spmVocabulary is a small SentencePiece vocabulary as a GGUF's metadata: unknown, BOS, EOS, the bytes, characters, words.
func spmVocabulary() map[string]any {
	tokens := []string{"<unk>", "<s>", "</s>"}
	types := []int32{unknownToken, controlToken, controlToken}
	for b := range 256 {
		tokens, types = append(tokens, byteToken(byte(b))), append(types, byteType)
	}
	for _, t := range []string{"▁", "a", "b", "c", "é", "ab", "abc", "bc", "▁a", "▁▁", "▁ab", "日本", "aa", "x", "x,"} {
		tokens, types = append(tokens, t), append(types, 1)
	}
	tokens, types = append(tokens, "<|u|>", "gone"), append(types, userToken, unusedToken)
	scores := make([]float32, len(tokens))
	for i, t := range tokens {
		scores[i] = -float32(i)
		if t == "aa" || t == "ab" { // equal: the leftmost counts
			scores[i] = -270
		}
	}
	return map[string]any{"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.scores": scores,
		"tokenizer.ggml.token_type": types}
}

// bpeVocabulary is the tokenizer of testdata as a GGUF's metadata.
func bpeVocabulary(t testing.TB) map[string]any {
	b := loadTestdata(t)
	d := &document{}
	model := d.open(b.source).object("model")
	vocab := map[string]int32{}
	model.get("vocab", &vocab)
	var merges []string
	model.get("merges", &merges)
	if d.err != nil {
		t.Fatal(d.err)
	}
	tokens, types := make([]string, len(vocab)), make([]int32, len(vocab))
	for token, id := range vocab {
		tokens[id], types[id] = token, 1
		if b.special[id] {
			types[id] = controlToken
		}
	}
	return map[string]any{"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.tokens": tokens,
		"tokenizer.ggml.token_type": types, "tokenizer.ggml.merges": merges, "tokenizer.ggml.eos_token_id": uint64(b.eos)}
}

func fromMetadata(m map[string]any) (*BPE, error) {
	t, err := FromGGUF(func(key string) (any, bool) { v, ok := m[key]; return v, ok })
	if err != nil {
		return nil, err
	}
	return t.(*BPE), nil
}

func spelled(t *BPE, m map[string]any, ids []int32) string {
	var parts []string
	for _, id := range ids {
		parts = append(parts, m["tokenizer.ggml.tokens"].([]string)[id])
	}
	return strings.Join(parts, " ")
}

// What llama.cpp's tokenizer of SentencePiece's BPE does, rule by rule.
func TestSentencePiece(t *testing.T) {
	m := spmVocabulary()
	tk, err := fromMetadata(m)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ text, want, ordinary string }{
		{"", "", ""},
		{"abc", "▁ abc", ""}, // bc comes before ▁a
		{"bc", "▁ bc", ""},
		{"aab", "▁a ab", ""},         // ▁a has the higher score
		{"xaab", "▁ x aa b", ""},     // aa and ab are equal: the leftmost
		{"é", "▁ é", ""},             // in the vocabulary
		{"ß", "▁ <0xC3> <0x9F>", ""}, // not there: its bytes
		{"日本", "▁ 日本", ""},           // neither character is a token, both together are
		{"日", "▁ <0xE6> <0x97> <0xA5>", ""},
		{"a\nb", "▁a <0x0A> b", ""},
		{"  a", "▁▁ ▁a", ""},
		{"x,a x", "▁ x, a ▁ x", ""},
		{"\xff", "▁ <0xFF>", ""},
		{"a</s>b", "▁a </s> ▁ b", "▁a <0x3C> <0x2F> <0x73> <0x3E> b"}, // a space again behind a special token
		{"a<|u|>b", "▁a <|u|> ▁ b", "▁a <|u|> ▁ b"},
		{"gone", "▁ <0x67> <0x6F> <0x6E> <0x65>", ""},
	} {
		if c.ordinary == "" {
			c.ordinary = c.want
		}
		ids, ordinary := tk.Encode(c.text), tk.EncodeOrdinary(nil, c.text)
		if got := spelled(tk, m, ids); got != c.want {
			t.Errorf("%q: %s, want %s", c.text, got, c.want)
		}
		if got := spelled(tk, m, ordinary); got != c.ordinary {
			t.Errorf("%q ordinary: %s, want %s", c.text, got, c.ordinary)
		}
		if got := tk.Decode(ordinary); got != c.text && !strings.Contains(c.text, "<|u|>") {
			t.Errorf("%q came back as %q", c.text, got)
		}
		stream := func(d *StreamDecoder) string {
			var b strings.Builder
			for _, id := range ids {
				b.WriteString(d.Push(id))
			}
			return b.String() + d.Flush()
		}
		var all strings.Builder // every space kept
		for _, id := range ids {
			all.Write(tk.Token(id))
		}
		if got, want := stream(NewStreamDecoder(tk)), Lossy(tk.Decode(ids)); got != want {
			t.Errorf("%q streamed as %q, want %q", c.text, got, want)
		}
		if got, want := stream(NewStreamContinuation(tk)), Lossy(all.String()); got != want {
			t.Errorf("%q continued as %q, want %q", c.text, got, want)
		}
	}
	if before, behind := tk.Template(); !slices.Equal(before, []int32{1}) || behind != nil {
		t.Errorf("template %v %v", before, behind)
	}
	bos, _ := tk.BOS()
	eos, _ := tk.EOS()
	if bos != 1 || eos != 2 || !tk.Special(0) || !slices.Equal(tk.Ends(), []int32{2}) {
		t.Errorf("BOS %d, EOS %d, ends %v", bos, eos, tk.Ends())
	}
	if text := tk.Decode([]int32{int32(tk.VocabSize() - 1)}); text != "" {
		t.Errorf("an unused token decodes to %q", text)
	}
	m["tokenizer.ggml.add_space_prefix"], m["tokenizer.ggml.add_bos_token"], m["tokenizer.ggml.add_eos_token"] = false, false, true
	if tk, err = fromMetadata(m); err != nil {
		t.Fatal(err)
	}
	if got := spelled(tk, m, tk.Encode("ab ab")); got != "ab ▁ab" || tk.Decode(tk.Encode(" ab")) != " ab" {
		t.Errorf("without a space in front: %s", got)
	}
	if before, behind := tk.Template(); before != nil || !slices.Equal(behind, []int32{2}) {
		t.Errorf("template %v %v", before, behind)
	}
}

// The same byte-level vocabulary gives the same ids from a GGUF as from a tokenizer.json.
func TestGGUFEqualsJSON(t *testing.T) {
	b := loadTestdata(t)
	tk, err := fromMetadata(bpeVocabulary(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"", "It's 10:45, and\n\n  we'll see <|endoftext|>x", "日本 é \xff", strings.Repeat("the ", 50)} {
		if got, want := tk.Encode(text), b.Encode(text); !slices.Equal(got, want) || tk.Decode(got) != text {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
}

// What cannot be read exactly is an error that names the key.
func TestGGUFErrors(t *testing.T) {
	tokens := func(m map[string]any) []string {
		list := slices.Clone(m["tokenizer.ggml.tokens"].([]string))
		m["tokenizer.ggml.tokens"] = list
		return list
	}
	for _, c := range []struct {
		bpe    bool
		change func(m map[string]any)
		want   string
	}{
		{false, func(m map[string]any) { delete(m, "tokenizer.ggml.model") }, "model: is missing"},
		{false, func(m map[string]any) { m["tokenizer.ggml.model"] = "bert" }, `model: "bert" is not supported`},
		{false, func(m map[string]any) { m["tokenizer.ggml.model"] = 7 }, "model: is a int"},
		{false, func(m map[string]any) { delete(m, "tokenizer.ggml.tokens") }, "tokens: is missing"},
		{false, func(m map[string]any) { m["tokenizer.ggml.tokens"] = []string{} }, "tokens: is empty"},
		{false, func(m map[string]any) { tokens(m)[300-30] = "a" }, "tokens: \"a\" is both"},
		{false, func(m map[string]any) { tokens(m)[5] = "\xff" }, "tokens: token 5"},
		{false, func(m map[string]any) { tokens(m)[5] = strings.Repeat("x", maxTokenBytes+1) }, "tokens: token 5"},
		{false, func(m map[string]any) { tokens(m)[5] = "<0xZZ>" }, "is of type byte, but not spelled"},
		{false, func(m map[string]any) {
			tokens(m)[3+0xc3] = "q"
			m["tokenizer.ggml.token_type"].([]int32)[3+0xc3] = 1
		}, "has no token for the byte 0xc3"},
		{false, func(m map[string]any) { m["tokenizer.ggml.scores"] = []float32{1} }, "scores: has 1 entries for"},
		{false, func(m map[string]any) { m["tokenizer.ggml.scores"] = "x" }, "scores: is a string"},
		{false, func(m map[string]any) { m["tokenizer.ggml.scores"].([]float32)[270] = float32(math.NaN()) }, "scores: entry 270 is NaN"},
		{false, func(m map[string]any) { m["tokenizer.ggml.token_type"] = []int32{} }, "token_type: has 0 entries"},
		{false, func(m map[string]any) { m["tokenizer.ggml.bos_token_id"] = uint64(5000) }, "bos_token_id: 5000 is no id"},
		{false, func(m map[string]any) { m["tokenizer.ggml.eos_token_id"] = "2" }, "eos_token_id: is a string"},
		{false, func(m map[string]any) { m["tokenizer.ggml.add_space_prefix"] = 1 }, "add_space_prefix: is a int"},
		{true, func(m map[string]any) { m["tokenizer.ggml.pre"] = "surprise" }, `pre: "surprise" is not supported: `},
		{true, func(m map[string]any) { delete(m, "tokenizer.ggml.merges") }, "merges: is missing"},
		{true, func(m map[string]any) { m["tokenizer.ggml.merges"] = []string{"ab"} }, `merges: entry 0, "ab", is no pair`},
		{true, func(m map[string]any) { m["tokenizer.ggml.merges"] = []string{"a qq"} }, `the token "qq" is not there`},
		{true, func(m map[string]any) { m["tokenizer.ggml.add_bos_token"] = true }, "add_bos_token: is true, but"},
	} {
		m := spmVocabulary()
		if c.bpe {
			m = bpeVocabulary(t)
		}
		c.change(m)
		if _, err := fromMetadata(m); err == nil || !strings.Contains(err.Error(), "tokenizer.ggml."+c.want) && !strings.Contains(err.Error(), c.want) {
			t.Errorf("error %v, want one with %s", err, c.want)
		}
	}
}

// Every name of tokenizer.ggml.pre has its pattern, and every pattern a name.
func TestGGUFNames(t *testing.T) {
	used := map[string]bool{}
	for name, pattern := range ggufNames {
		if ggufPatterns[pattern] == nil {
			t.Errorf("%s: no pattern %s", name, pattern)
		}
		used[pattern] = true
	}
	if len(used) != len(ggufPatterns) {
		t.Errorf("%d of %d patterns have a name", len(used), len(ggufPatterns))
	}
	for name := range patternJSON {
		if ggufPatterns[name] == nil {
			t.Errorf("a tokenizer.json cuts by %s, which is no pattern", name)
		}
	}
	for _, name := range slices.Concat(ggufWhole, ggufBOS) {
		if ggufNames[name] == "" {
			t.Errorf("%s is no name", name)
		}
	}
}

// llama.cpp looks for the longest token first; Hugging Face takes the leftmost.
func TestOverlappingTokens(t *testing.T) {
	m := spmVocabulary()
	list := m["tokenizer.ggml.tokens"].([]string)
	for i, token := range []string{"<ab", "b>>>>", "<"} {
		list[len(list)-3-i] = token
		m["tokenizer.ggml.token_type"].([]int32)[len(list)-3-i] = userToken
	}
	tk, err := fromMetadata(m)
	if err != nil {
		t.Fatal(err)
	}
	if got := spelled(tk, m, tk.Encode("<ab>>>>x<ab")); got != "< ▁a b>>>> ▁ <0x78> <ab" {
		t.Errorf("%s", got)
	}
}

// FuzzGGUF builds vocabularies from anything: an error, or a tokenizer that works and whose tables are no larger than the
// tokens explain.
func FuzzGGUF(f *testing.F) {
	f.Add(strings.Join(spmVocabulary()["tokenizer.ggml.tokens"].([]string)[260:], "\n"), []byte{1, 2, 3}, true, "the ab日本 </s>")
	f.Add("a\nb\nab\n<x>", []byte{1, 1, 1, 3, 4}, true, "ab<x>")
	f.Add("ab\nabc", []byte{1}, false, "abc")
	bpe := bpeVocabulary(f)
	f.Fuzz(func(t *testing.T, words string, kinds []byte, spm bool, text string) {
		m := spmVocabulary()
		keep := 260 // with U+2581
		if !spm {
			m = maps.Clone(bpe)
			keep = 257
			m["tokenizer.ggml.pre"] = slices.Sorted(maps.Keys(ggufNames))[len(words)%len(ggufNames)]
		}
		tokens := slices.Clone(m["tokenizer.ggml.tokens"].([]string)[:keep])
		types := slices.Clone(m["tokenizer.ggml.token_type"].([]int32)[:keep])
		var scores []float32
		var merges []string
		size := 0
		for i, word := range strings.Split(words, "\n") {
			kind := int32(1)
			if len(kinds) > 0 {
				kind = int32(kinds[i%len(kinds)]) % 8
			}
			tokens, types = append(tokens, word), append(types, kind)
			size += len(word)
			if len(word) > 1 {
				merges = append(merges, word[:1]+" "+word[1:])
			}
		}
		for i := range tokens {
			scores = append(scores, float32(i%7))
		}
		m["tokenizer.ggml.tokens"], m["tokenizer.ggml.token_type"], m["tokenizer.ggml.scores"] = tokens, types, scores
		m["tokenizer.ggml.merges"] = merges
		tk, err := fromMetadata(m)
		if err != nil {
			return
		}
		if n := len(tk.merges.slots); n > 64+4*(size+8*keep) {
			t.Fatalf("%d slots for %d bytes of tokens", n, size)
		}
		ids := tk.EncodeOrdinary(nil, text)
		for _, id := range ids {
			if id < 0 || int(id) >= tk.VocabSize() {
				t.Fatalf("%q: id %d of %d", text, id, tk.VocabSize())
			}
		}
		odd := slices.ContainsFunc(types[keep:], func(k int32) bool { return k != 1 })
		if got := tk.Decode(ids); got != text && !odd && !strings.Contains(text, metaspace) {
			t.Fatalf("%q came back as %q", text, got)
		}
		if tk.Encode(text); len(tk.Hash()) != 64 || len(tk.Ends()) > tk.VocabSize() {
			t.Fatalf("hash %s, ends %v", tk.Hash(), tk.Ends())
		}
		if source, config, err := tk.describe(); err == nil {
			if _, err := parse(fileName, source, configName, config); err != nil {
				t.Fatalf("what is saved cannot be read: %v", err)
			}
		}
	})
}
