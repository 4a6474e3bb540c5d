package tokenizer

import (
	"bytes"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// What a tokenizer.json asks for and is not understood is an error that names the file and the field.
func TestLoadErrors(t *testing.T) {
	source := loadTestdata(t).source
	model := func(root map[string]any) map[string]any { return root["model"].(map[string]any) }
	vocab := func(root map[string]any) map[string]any { return model(root)["vocab"].(map[string]any) }
	added0 := func(root map[string]any) map[string]any { return root["added_tokens"].([]any)[0].(map[string]any) }
	pre := func(root map[string]any) map[string]any { return root["pre_tokenizer"].(map[string]any) }
	template := func(single ...any) map[string]any {
		return map[string]any{"type": "TemplateProcessing", "single": single, "pair": []any{}, "special_tokens": map[string]any{
			EndOfText: map[string]any{"id": EndOfText, "ids": []int{5}, "tokens": []string{EndOfText}}}}
	}
	for _, c := range []struct {
		change func(root map[string]any)
		want   string
	}{
		{func(r map[string]any) { r["version"] = "2.0" }, `version: "2.0"`},
		{func(r map[string]any) { r["surprise"] = 1 }, "surprise: unknown key"},
		{func(r map[string]any) { r["truncation"] = map[string]any{"max_length": 5} }, "truncation: "},
		{func(r map[string]any) { r["padding"] = map[string]any{} }, "padding: "},
		{func(r map[string]any) { r["normalizer"] = map[string]any{"type": "BertNormalizer"} }, `normalizer.type: "BertNormalizer"`},
		{func(r map[string]any) { r["normalizer"] = map[string]any{"type": "NFC", "x": 1} }, "normalizer.x: unknown key"},
		{func(r map[string]any) {
			r["normalizer"] = map[string]any{"type": "Sequence", "normalizers": []any{map[string]any{"type": "Precompiled"}}}
		}, `normalizer.normalizers[0].type: "Precompiled"`},
		{func(r map[string]any) {
			r["normalizer"] = map[string]any{"type": "Replace", "pattern": map[string]any{"Regex": " {2,}"}, "content": " "}
		}, "normalizer.pattern.Regex"},
		{func(r map[string]any) {
			r["normalizer"] = map[string]any{"type": "Replace", "pattern": map[string]any{"String": ""}, "content": " "}
		}, "normalizer.pattern.String: is empty"},
		{func(r map[string]any) { r["normalizer"] = "NFC" }, "normalizer: JSON type string, want object"},
		{func(r map[string]any) { delete(r, "model") }, "model: is missing"},
		{func(r map[string]any) { r["model"] = []int{} }, "model: JSON type array, want object"},
		{func(r map[string]any) { model(r)["type"] = "Unigram" }, `model.type: "Unigram"`},
		{func(r map[string]any) { model(r)["dropout"] = 0.1 }, "model.dropout: 0.1"},
		{func(r map[string]any) { model(r)["end_of_word_suffix"] = "</w>" }, `model.end_of_word_suffix: "</w>"`},
		{func(r map[string]any) { model(r)["continuing_subword_prefix"] = "##" }, "model.continuing_subword_prefix"},
		{func(r map[string]any) { model(r)["byte_fallback"] = true }, "model.byte_fallback: is not supported beside ByteLevel"},
		{func(r map[string]any) { model(r)["ignore_merges"] = "yes" }, "model.ignore_merges: JSON type string"},
		{func(r map[string]any) { model(r)["Vocab"] = 1 }, "model.Vocab: unknown key"},
		{func(r map[string]any) { vocab(r)["Ā"] = 0 }, "model.vocab: tokens"},
		{func(r map[string]any) { vocab(r)["extra"] = 2000000000 }, `model.vocab: token "extra" has id 2000000000`},
		{func(r map[string]any) { vocab(r)["extra"] = -1 }, `model.vocab: token "extra" has id -1`},
		{func(r map[string]any) { vocab(r)["extra"] = 1e12 }, "model.vocab: JSON type number"},
		{func(r map[string]any) { vocab(r)["extra"] = 1.5 }, "model.vocab: JSON type number"},
		{func(r map[string]any) { delete(vocab(r), "!") }, "without a hole"},
		{func(r map[string]any) { delete(model(r), "vocab") }, "model.vocab: is missing"},
		{func(r map[string]any) {
			vocab(r)["日"] = vocab(r)["!"]
			delete(vocab(r), "!")
			model(r)["unk_token"] = "日"
		}, "model.vocab: has no token for the byte 0x21"},
		{func(r map[string]any) { delete(model(r), "merges") }, "model.merges: is missing"},
		{func(r map[string]any) { model(r)["merges"] = []string{"a b c"} }, `model.merges[0]: "a b c" is not a pair`},
		{func(r map[string]any) { model(r)["merges"] = [][]string{{"a"}} }, `model.merges[0]: "a" is not a pair`},
		{func(r map[string]any) { model(r)["merges"] = []string{"qq a"} }, `the token "qq" is not in model.vocab`},
		{func(r map[string]any) { model(r)["merges"] = []string{"! !", "Q Q"} }, `model.merges[0]: "! !": the token "!!" is not`},
		{func(r map[string]any) { model(r)["merges"] = 7 }, "model.merges: JSON type number"},
		{func(r map[string]any) { r["added_tokens"] = map[string]any{} }, "added_tokens: JSON type object"},
		{func(r map[string]any) { added0(r)["rstrip"] = "yes" }, "added_tokens[0].rstrip: JSON type string"},
		{func(r map[string]any) { added0(r)["id"] = 7 }, `added_tokens[0].id: "<|endoftext|>" has id 7 here and 0`},
		{func(r map[string]any) { added0(r)["content"] = "" }, "added_tokens[0].content: is empty"},
		{func(r map[string]any) { added0(r)["colour"] = "red" }, "added_tokens[0].colour: unknown key"},
		{func(r map[string]any) { addTokens(r, added(0, EndOfText, true, false)) }, "added_tokens[1].content"},
		{func(r map[string]any) { addTokens(r, added(1001, "<x>", true, false)) }, "without a hole"},
		{func(r map[string]any) { addTokens(r, added(5, "<x>", true, false)) }, "have the same id 5"},
		{func(r map[string]any) { pre(r)["type"] = "Whitespace" }, `pre_tokenizer.type: "Whitespace"`},
		{func(r map[string]any) { pre(r)["type"] = "Metaspace" }, `pre_tokenizer.replacement: "" is not supported`},
		{func(r map[string]any) {
			r["pre_tokenizer"] = map[string]any{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "last"}
		}, `pre_tokenizer.prepend_scheme: "last"`},
		{func(r map[string]any) {
			r["pre_tokenizer"] = map[string]any{"type": "Metaspace", "replacement": "▁", "add_prefix_space": false}
		}, "pre_tokenizer.add_prefix_space: false needs"},
		{func(r map[string]any) {
			r["pre_tokenizer"] = map[string]any{"type": "Digits", "individual_digits": true}
		}, "pre_tokenizer: ends with no ByteLevel"},
		{func(r map[string]any) { r["pre_tokenizer"] = nil }, "decoder: and pre_tokenizer must both be ByteLevel"},
		{func(r map[string]any) { pre(r)["new_option"] = true }, "pre_tokenizer.new_option: unknown key"},
		{func(r map[string]any) { r["pre_tokenizer"] = splitStage(`\w+`) }, `pre_tokenizer.pretokenizers[0].pattern.Regex: unknown pattern "\\w+"`},
		{func(r map[string]any) {
			r["pre_tokenizer"] = splitStage(gpt2Pattern)
			pre(r)["pretokenizers"].([]any)[0].(map[string]any)["behavior"] = "MergedWithNext"
		}, "pre_tokenizer.pretokenizers[0].behavior"},
		{func(r map[string]any) {
			r["pre_tokenizer"] = splitStage(gpt2Pattern)
			pre(r)["pretokenizers"].([]any)[1].(map[string]any)["use_regex"] = true
		}, "pre_tokenizer.pretokenizers[1].use_regex: a second pattern"},
		{func(r map[string]any) {
			r["pre_tokenizer"] = splitStage(gpt2Pattern)
			pre(r)["pretokenizers"].([]any)[1].(map[string]any)["add_prefix_space"] = true
		}, "pre_tokenizer.pretokenizers[1].add_prefix_space"},
		{func(r map[string]any) { r["decoder"] = nil }, "decoder: is missing"},
		{func(r map[string]any) { r["decoder"] = map[string]any{"type": "WordPiece"} }, `decoder.type: "WordPiece"`},
		{func(r map[string]any) {
			r["decoder"] = map[string]any{"type": "Sequence", "decoders": []any{map[string]any{"type": "Fuse"}, map[string]any{"type": "ByteFallback"}}}
		}, `decoder.decoders[1].type: "ByteFallback"`},
		{func(r map[string]any) {
			r["decoder"] = map[string]any{"type": "Sequence", "decoders": []any{map[string]any{"type": "Fuse"},
				map[string]any{"type": "Strip", "content": " ", "start": 2, "stop": 0}}}
		}, "decoder.decoders[1].content"},
		{func(r map[string]any) { r["post_processor"] = map[string]any{"type": "RobertaProcessing"} }, `post_processor.type: "RobertaProcessing"`},
		{func(r map[string]any) { r["post_processor"] = template() }, "post_processor.single: has no sequence A"},
		{func(r map[string]any) {
			r["post_processor"] = template(map[string]any{"Sequence": map[string]any{"id": "B", "type_id": 0}})
		}, "post_processor.single: is not supported"},
		{func(r map[string]any) {
			r["post_processor"] = template(map[string]any{"SpecialToken": map[string]any{"id": "<s>", "type_id": 0}})
		}, "post_processor.special_tokens.<s>: is missing"},
		{func(r map[string]any) {
			r["post_processor"] = template(map[string]any{"SpecialToken": map[string]any{"id": EndOfText, "type_id": 0}})
		}, "post_processor.special_tokens.<|endoftext|>.ids"},
	} {
		_, err := parse("dir/tokenizer.json", vary(t, source, c.change), "dir/tokenizer_config.json", nil)
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "dir/tokenizer.json: ") {
			t.Errorf("error %v, want one with %s", err, c.want)
		}
	}
	for in, want := range map[string]string{
		string(source[:len(source)/2]):   "truncated?",
		"":                               "truncated?",
		"[]":                             "JSON type array, want object",
		"null":                           "version",
		"\xff\xfe":                       "is not UTF-8",
		string(source) + "}":             "not valid JSON",
		strings.Repeat("[", 100000) + "": "not valid JSON",
	} {
		if _, err := parse("t.json", []byte(in), "", nil); err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "t.json: ") {
			t.Errorf("%.20q: error %v, want one with %s", in, err, want)
		}
	}
}

func TestLoadConfig(t *testing.T) {
	dir := t.TempDir()
	b := loadTestdata(t)
	source := vary(t, b.source, func(root map[string]any) {
		addTokens(root, added(1000, "<s>", true, false), added(1001, "</s>", true, false))
	})
	if err := os.WriteFile(filepath.Join(dir, fileName), source, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ config, bos, eos, err string }{
		{`{"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": false}, "chat_template": "x"}`, "<s>", "</s>", ""},
		{`{"bos_token": null}`, "", "", ""},
		{`{"eos_token": "</t>"}`, "", "", `tokenizer_config.json: eos_token: "</t>" is not a token`},
		{`{"eos_token": 3}`, "", "", "tokenizer_config.json: eos_token: JSON type number"},
		{`{"eos_token": `, "", "", "tokenizer_config.json: is not valid JSON"},
	} {
		if err := os.WriteFile(filepath.Join(dir, configName), []byte(c.config), 0o644); err != nil {
			t.Fatal(err)
		}
		tk, err := Load(dir)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: error %v, want %s", c.config, err, c.err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, end := range []struct {
			id   func() (int32, bool)
			want string
		}{{tk.BOS, c.bos}, {tk.EOS, c.eos}} {
			if id, ok := end.id(); ok != (end.want != "") || ok && string(tk.Token(id)) != end.want {
				t.Errorf("%s: %d %v, want %q", c.config, id, ok, end.want)
			}
		}
		out := t.TempDir()
		if err := tk.Save(out); err != nil {
			t.Fatal(err)
		}
		if saved, _ := os.ReadFile(filepath.Join(out, configName)); string(saved) != c.config {
			t.Errorf("saved config %s, want %s", saved, c.config)
		}
	}
	if err := os.Remove(filepath.Join(dir, configName)); err != nil {
		t.Fatal(err)
	}
	tk, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if id, ok := tk.EOS(); !ok || string(tk.Token(id)) != EndOfText {
		t.Errorf("without a config EOS = %d %v", id, ok)
	}
	if _, err := Load(filepath.Join(dir, "absent")); err == nil || !strings.Contains(err.Error(), "absent") {
		t.Errorf("loading nothing: %v", err)
	}
}

// A byte that is no token is dropped, and its neighbours may merge.
func TestLostBytes(t *testing.T) {
	b := loadTestdata(t)
	source := vary(t, b.source, func(root map[string]any) {
		vocab := root["model"].(map[string]any)["vocab"].(map[string]any)
		vocab["日"] = vocab["Ą"] // 0x04
		delete(vocab, "Ą")
	})
	lossy, err := parse("x", source, "y", nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := lossy.Encode("th\x04e"), b.Encode("the"); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	m := bpeVocabulary(t)
	list := m["tokenizer.ggml.tokens"].([]string)
	list[slices.Index(list, "Ą")] = "日"
	llama, err := fromMetadata(m)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := llama.Encode("th\x04e"), append(b.Encode("th"), b.Encode("e")...); !slices.Equal(got, want) {
		t.Errorf("llama.cpp's kind: %v, want %v", got, want)
	}
}

// A template is told, not applied.
func TestTemplate(t *testing.T) {
	source := vary(t, loadTestdata(t).source, func(root map[string]any) {
		addTokens(root, added(1000, "<s>", true, false), added(1001, "</s>", true, false))
		special := func(name string) any { return map[string]any{"SpecialToken": map[string]any{"id": name, "type_id": 0}} }
		root["post_processor"] = map[string]any{"type": "TemplateProcessing",
			"single": []any{special("<s>"), map[string]any{"Sequence": map[string]any{"id": "A", "type_id": 0}}, special("</s>")},
			"special_tokens": map[string]any{
				"<s>":  map[string]any{"id": "<s>", "ids": []int{1000}, "tokens": []string{"<s>"}},
				"</s>": map[string]any{"id": "</s>", "ids": []int{1001}, "tokens": []string{"</s>"}}}}
	})
	b, err := parse("x", source, "y", nil)
	if err != nil {
		t.Fatal(err)
	}
	before, behind := b.Template()
	if !slices.Equal(before, []int32{1000}) || !slices.Equal(behind, []int32{1001}) {
		t.Errorf("template %v %v", before, behind)
	}
	if ids := b.Encode("x"); len(ids) != 1 {
		t.Errorf("Encode added something: %v", ids)
	}
	bos, _ := b.BOS()
	eos, _ := b.EOS()
	if bos != 1000 || eos != 1001 {
		t.Errorf("BOS %d EOS %d from the template", bos, eos)
	}
}

// Any value of a file may be missing or another: an error, or a tokenizer that works, never a panic.
func TestLoadMutations(t *testing.T) {
	var sources [][]byte
	for _, v := range variants {
		sources = append(sources, vary(t, trained(t, TrainOptions{VocabSize: 270}, "the then there the 日本 日本").source, func(root map[string]any) {
			v.change(root)
			for i, token := range root["added_tokens"].([]any) { // variants number them behind 6000 others
				token.(map[string]any)["id"] = float64(i)
			}
		}))
	}
	rng := rand.New(rand.NewPCG(7, 8))
	accepted := 0
	for range 1500 {
		source := vary(t, sources[rng.IntN(len(sources))], func(root map[string]any) {
			if rng.IntN(2) == 0 {
				delete(root, "added_tokens")
			}
			mutate(rng, root)
		})
		b, err := parse("tokenizer.json", source, "tokenizer_config.json", nil)
		if err != nil {
			continue
		}
		accepted++
		text := "x the 日本<s>, 12 there\n"
		if got := b.Decode(b.Encode(text)); strings.TrimPrefix(got, " ") != text && !b.pre.prefixSpace && b.norm == nil && b.lost == lostNone {
			t.Fatalf("%s\n%q came back as %q", source, text, got)
		}
	}
	if accepted == 0 {
		t.Error("every mutation was refused: they test little")
	}
}

// mutate changes one value somewhere below a JSON value, the nearer the more likely.
func mutate(rng *rand.Rand, v any) any {
	odd := []any{nil, true, -1, 0, 1, 1.5, 1e300, 1 << 31, "", "x", "a b", "ByteLevel", "Sequence", []any{}, []any{1}, map[string]any{}, map[string]any{"x": 1}}
	if rng.IntN(4) == 0 {
		return odd[rng.IntN(len(odd))]
	}
	switch v := v.(type) {
	case map[string]any:
		if len(v) > 0 {
			keys := slices.Sorted(maps.Keys(v))
			key := keys[rng.IntN(len(keys))]
			if rng.IntN(8) == 0 {
				delete(v, key)
			} else {
				v[key] = mutate(rng, v[key])
			}
		}
		return v
	case []any:
		if len(v) > 0 {
			i := rng.IntN(len(v))
			v[i] = mutate(rng, v[i])
		}
		return v
	}
	return odd[rng.IntN(len(odd))]
}

// spmSource is a tokenizer.json of SentencePiece's kind, changed.
func spmSource(t testing.TB, change func(root map[string]any)) []byte {
	t.Helper()
	vocab := map[string]any{"<unk>": 0, "<s>": 1, "</s>": 2}
	for b := range 256 {
		vocab[byteToken(byte(b))] = 3 + b
	}
	for i, token := range []string{"▁", "a", "b", "c", "t", "h", "e", "th", "the", "▁the", "ab", "▁▁"} {
		vocab[token] = 259 + i
	}
	root := map[string]any{
		"version":      "1.0",
		"added_tokens": []any{added(0, "<unk>", true, false), added(1, "<s>", true, false), added(2, "</s>", true, false)},
		"normalizer": map[string]any{"type": "Sequence", "normalizers": []any{map[string]any{"type": "Prepend", "prepend": "▁"},
			map[string]any{"type": "Replace", "pattern": map[string]any{"String": " "}, "content": "▁"}}},
		"decoder": map[string]any{"type": "Sequence", "decoders": []any{
			map[string]any{"type": "Replace", "pattern": map[string]any{"String": "▁"}, "content": " "},
			map[string]any{"type": "ByteFallback"}, map[string]any{"type": "Fuse"},
			map[string]any{"type": "Strip", "content": " ", "start": 1, "stop": 0}}},
		"model": map[string]any{"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "vocab": vocab,
			"merges": []any{"t h", "th e", "▁ the", "a b", "▁ ▁"}},
	}
	return vary(t, []byte("{}"), func(empty map[string]any) {
		change(root)
		for key, value := range root {
			empty[key] = value
		}
	})
}

// SentencePiece's kind of tokenizer.json, stage by stage; what Hugging Face answers is TestTruth's.
func TestSentencePieceJSON(t *testing.T) {
	for _, c := range []struct {
		change     func(root map[string]any)
		text, want string // tokens
		decoded    string
	}{
		{func(map[string]any) {}, "the ab", "▁the ▁ ab", "the ab"},
		{func(map[string]any) {}, "thé\n", "▁ th <0xC3> <0xA9> <0x0A>", "thé\n"},
		{func(map[string]any) {}, "a</s>the", "▁ a </s> ▁the", "a</s> the"},
		{func(map[string]any) {}, "  a", "▁▁ ▁ a", "  a"},
		{func(r map[string]any) {
			r["model"].(map[string]any)["byte_fallback"] = false
		}, "xya", "▁ <unk> a", "<unk>a"},
		{func(r map[string]any) {
			r["model"].(map[string]any)["byte_fallback"], r["model"].(map[string]any)["fuse_unk"] = false, false
		}, "xya", "▁ <unk> <unk> a", "<unk><unk>a"},
		{func(r map[string]any) {
			r["normalizer"] = nil
			r["pre_tokenizer"] = map[string]any{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false}
		}, "the</s>the  a", "▁the </s> the ▁▁ a", "the</s>the  a"},
		{func(r map[string]any) {
			r["normalizer"] = nil
			r["pre_tokenizer"] = map[string]any{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": true}
		}, "a  the", "a ▁ ▁the", "a  the"},
		{func(r map[string]any) {
			r["added_tokens"] = append(r["added_tokens"].([]any), flagged(271, "ab", "single_word"), flagged(272, "<m>", "lstrip", "rstrip"))
			r["model"].(map[string]any)["vocab"].(map[string]any)["ab"] = 271
			r["model"].(map[string]any)["vocab"].(map[string]any)["<m>"] = 272
			r["model"].(map[string]any)["vocab"].(map[string]any)["q"] = 269
		}, "ab abt  <m>  c", "ab ▁▁ ab t <m> ▁ c", "ab  abt<m> c"},
	} {
		b, err := parse("x", spmSource(t, c.change), "y", nil)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		root := (&document{}).open(b.source)
		vocab := map[string]int32{}
		root.object("model").get("vocab", &vocab)
		ids := b.Encode(c.text)
		for _, id := range ids {
			for token, have := range vocab {
				if have == id {
					names = append(names, token)
				}
			}
		}
		if got := strings.Join(names, " "); got != c.want {
			t.Errorf("%q: %s, want %s", c.text, got, c.want)
		}
		if got := b.Decode(ids); got != c.decoded {
			t.Errorf("%q decoded as %q, want %q", c.text, got, c.decoded)
		}
	}
}

// FuzzLoad reads anything without a panic; what is accepted round-trips, and saves and loads as itself.
func FuzzLoad(f *testing.F) {
	source := trained(f, TrainOptions{VocabSize: 260}, "the then there the").source
	f.Add(source, []byte(`{"eos_token": "<|endoftext|>"}`))
	f.Add(Bytes{EndOfText: true}.source(), []byte("{}"))
	f.Add(source[:len(source)/2], []byte(nil))
	f.Add(spmSource(f, func(map[string]any) {}), []byte(`{"bos_token": "<s>"}`))
	f.Add(spmSource(f, func(root map[string]any) {
		root["pre_tokenizer"] = map[string]any{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true}
		root["normalizer"] = map[string]any{"type": "NFKC"}
	}), []byte("{}"))
	f.Fuzz(func(t *testing.T, source, config []byte) {
		b, err := parse("tokenizer.json", source, "tokenizer_config.json", config)
		if err != nil {
			return
		}
		if b.VocabSize() > len(source) {
			t.Fatalf("%d tokens from %d bytes", b.VocabSize(), len(source))
		}
		for _, text := range []string{"It's 1 a.m.\n\n x\xff", string(config), string(source[:min(len(source), 100)])} {
			if got := b.Decode(b.Encode(text)); got != text && b.chars == nil && b.norm == nil && b.lost == lostNone && !(b.pre.prefixSpace && strings.ReplaceAll(got, " ", "") == strings.ReplaceAll(text, " ", "")) {
				t.Fatalf("%q came back as %q", text, got)
			}
		}
		again, err := parse("tokenizer.json", bytes.Clone(b.source), "tokenizer_config.json", config)
		if err != nil || again.Hash() != b.Hash() {
			t.Fatalf("read again: %v", err)
		}
	})
}
