package tokenizer

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"unicode/utf8"
)

// A GGUF keeps its vocabulary in metadata, and llama.cpp defines what it means:
//
//	tokenizer.ggml.model "gpt2"   byte-level BPE: tokens, merges, and tokenizer.ggml.pre, the name of the pattern that cuts
//	tokenizer.ggml.model "llama"  SentencePiece's BPE: tokens and scores (chars.go)
//
// Tokens have types. A user-defined one is found in any text, a control token (and unknown) where special tokens are wanted.
// No normalizer is applied (llama.cpp has none, so composed and decomposed letters differ where a tokenizer.json has NFC).

// The types of tokens that matter here.
const (
	unknownToken = 2
	controlToken = 3
	userToken    = 4
	unusedToken  = 5
	byteType     = 6
)

// maxTokenBytes bounds a token, since the ways to make one are its length and each is looked up.
const maxTokenBytes = 4096

// ggufPatterns are the values of tokenizer.ggml.pre that are understood. llama.cpp writes case-blind contractions without the
// long s that Hugging Face's (?i:'s) takes, which is why the pattern is not the tokenizer.json's.
var ggufPatterns = map[string][]stage{
	"gpt-2":   {gpt2Stage},
	"llama3":  {llama3Stage},
	"qwen2":   {qwen2Stage},
	"smollm":  {{"single digits", scanSingleDigits}, gpt2Stage},
	"default": {{"punctuation", scanPunctuation}, gpt2Stage, {"numbers", scanNumberRuns}, {"digit triples", scanDigitTriples}},
	"falcon":  {{"punctuation and `", scanPunctuationTick}, gpt2Stage, {"digit triples", scanDigitTriples}},
}

var (
	gpt2Stage   = stage{patternName + gpt2Pattern, scanGPT2}
	llama3Stage = stage{"llama.cpp 3", func(s string) int { return scanLlama3(s, 3, contractionASCII) }}
	qwen2Stage  = stage{"llama.cpp 1", func(s string) int { return scanLlama3(s, 1, contractionASCII) }}
)

// ggufNames says which pattern a name of tokenizer.ggml.pre means.
var ggufNames = map[string]string{
	"default": "default", "falcon": "falcon",
	"gpt-2": "gpt-2", "phi-2": "gpt-2", "jina-es": "gpt-2", "jina-de": "gpt-2", "gigachat": "gpt-2", "a.x-4.0": "gpt-2",
	"mellum": "gpt-2", "mpt": "gpt-2", "olmo": "gpt-2", "jais": "gpt-2", "trillion": "gpt-2", "granite-docling": "gpt-2", "exaone4": "gpt-2",
	"roberta-bpe": "gpt-2",
	"llama3":      "llama3", "llama-v3": "llama3", "llama-bpe": "llama3", "falcon3": "llama3", "falcon-h1": "llama3", "pixtral": "llama3",
	"lfm2": "llama3", "dbrx": "llama3", "smaug-bpe": "llama3", "glm4": "llama3", "chatglm-bpe": "llama3",
	"qwen2": "qwen2", "deepseek-r1-qwen": "qwen2", "stablelm2": "qwen2", "hunyuan": "qwen2", "megrez": "qwen2", "solar-open": "qwen2",
	"smollm": "smollm", "starcoder": "smollm", "refact": "smollm", "command-r": "smollm", "codeshell": "smollm", "exaone": "smollm",
	"minerva-7b": "smollm", "mellum2": "smollm",
}

// Two more things hang on the name: whether pre-tokens that are tokens stay whole, and whether BOS is put in front where the
// file does not say.
var (
	ggufWhole = []string{"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "lfm2", "glm4"}
	ggufBOS   = []string{"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "lfm2"}
)

// controlLooking are texts that llama.cpp takes for control tokens whatever type the file gives them.
var controlLooking = []string{"<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
	"<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>", "<eos>",
	"<｜end▁of▁sentence｜>", "<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>", "<|fim_suffix|>",
	"<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>", "<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>",
	"<MID>", "▁<MID>", "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>",
	"<reponame>", "<|file_sep|>"}

const ggufKey = "tokenizer.ggml."

// FromGGUF builds the tokenizer that a GGUF's metadata describes; value returns the value of a key. The ids are llama.cpp's.
func FromGGUF(value func(key string) (any, bool)) (Tokenizer, error) {
	g := ggufVocab{value: value}
	t := &BPE{bos: -1, eos: -1}
	switch model := g.text("model"); {
	case g.err != nil:
	case model == "gpt2":
		g.read()
		g.byteLevel(t)
	case model == "llama":
		g.read()
		g.sentencePiece(t)
	default:
		g.fail("model", "%q is not supported: gpt2 and llama are", model)
	}
	if g.err != nil {
		return nil, fmt.Errorf("the GGUF's vocabulary: %w", g.err)
	}
	t.gguf = g.origin()
	t.hash = t.computeHash()
	t.cache = newPieceCache()
	return t, nil
}

// ggufVocab reads the keys; its first error stays.
type ggufVocab struct {
	value  func(string) (any, bool)
	err    error
	tokens []string
	types  []int64
	ids    map[string]int32
	pre    string // the name of the pattern, byte-level only
}

func (g *ggufVocab) fail(key, format string, args ...any) {
	if g.err == nil {
		g.err = errors.New(ggufKey + key + ": " + fmt.Sprintf(format, args...))
	}
}

func (g *ggufVocab) text(key string) string {
	v, ok := g.value(ggufKey + key)
	if !ok {
		g.fail(key, "is missing: the file holds no tokenizer")
		return ""
	}
	s, ok := v.(string)
	if !ok {
		g.fail(key, "is a %T, want a string", v)
	}
	return s
}

func (g *ggufVocab) flag(key string, absent bool) bool {
	v, ok := g.value(ggufKey + key)
	if !ok {
		return absent
	}
	b, ok := v.(bool)
	if !ok {
		g.fail(key, "is a %T, want a bool", v)
	}
	return b
}

// id reads the id of a token, -1 for none. One outside the vocabulary is what llama.cpp drops with a warning.
func (g *ggufVocab) id(key string, absent int32) int32 {
	v, ok := g.value(ggufKey + key)
	if !ok {
		if int(absent) >= len(g.tokens) {
			return -1
		}
		return absent
	}
	n, ok := wholeNumber(v)
	if !ok {
		g.fail(key, "is a %T, want a whole number", v)
	}
	if n < 0 || n >= int64(len(g.tokens)) {
		if n == math.MaxUint32 || n == -1 {
			return -1
		}
		g.fail(key, "%d is no id: there are %d tokens", n, len(g.tokens))
		return -1
	}
	return int32(n)
}

func wholeNumber(v any) (int64, bool) {
	switch n := v.(type) {
	case int64:
		return n, true
	case uint64:
		return int64(min(n, math.MaxInt64)), true
	case int32:
		return int64(n), true
	case uint32:
		return int64(n), true
	}
	return 0, false
}

func (g *ggufVocab) texts(key string) []string {
	v, _ := g.value(ggufKey + key)
	list, ok := v.([]string)
	if !ok {
		g.fail(key, "is missing or no list of strings")
	}
	return list
}

// numbers reads a list of n numbers; nil if it is absent.
func numbers[T int64 | float32](g *ggufVocab, key string, n int) []T {
	v, ok := g.value(ggufKey + key)
	if !ok {
		return nil
	}
	var list []T
	switch v := v.(type) {
	case []int32:
		list = make([]T, len(v))
		for i, x := range v {
			list[i] = T(x)
		}
	case []float32:
		list = make([]T, len(v))
		for i, x := range v {
			list[i] = T(x)
		}
	case []any:
		list = make([]T, len(v))
		for i, x := range v {
			n, ok := wholeNumber(x)
			if !ok {
				g.fail(key, "entry %d is a %T", i, x)
				return nil
			}
			list[i] = T(n)
		}
	default:
		g.fail(key, "is a %T, want a list of numbers", v)
		return nil
	}
	if len(list) != n {
		g.fail(key, "has %d entries for %d tokens", len(list), n)
	}
	return list
}

// read reads what both kinds have.
func (g *ggufVocab) read() {
	g.tokens = g.texts("tokens")
	if g.err == nil && len(g.tokens) == 0 {
		g.fail("tokens", "is empty")
	}
	g.types = numbers[int64](g, "token_type", len(g.tokens))
	if g.types == nil {
		g.types = make([]int64, len(g.tokens))
	}
	g.ids = make(map[string]int32, len(g.tokens))
	for id, token := range g.tokens {
		if token == "" {
			token = fmt.Sprintf("[EMPTY_%d]", id)
		}
		if other, ok := g.ids[token]; ok {
			g.fail("tokens", "%q is both %d and %d", token, other, id)
			return
		}
		if len(token) > maxTokenBytes || !utf8.ValidString(token) {
			g.fail("tokens", "token %d, %.40q..., is longer than %d bytes or no UTF-8", id, token, maxTokenBytes)
			return
		}
		g.ids[token] = int32(id)
		if g.err == nil && slices.Contains(controlLooking, token) {
			g.types[id] = controlToken
		}
	}
	if g.err == nil {
		g.tokens = slices.Clone(g.tokens)
		for token, id := range g.ids {
			g.tokens[id] = token
		}
	}
}

// finish enters added tokens, ends and the template.
func (g *ggufVocab) finish(t *BPE, bos, eos int32, addBOS bool) {
	t.special = make([]bool, len(g.tokens))
	var list []*addedToken
	for id, typ := range g.types {
		if typ == controlToken || typ == unknownToken || typ == userToken {
			list = append(list, &addedToken{content: g.tokens[id], id: int32(id), special: typ != userToken})
		}
	}
	g.phi3(list)
	t.enterAdded(list)
	t.added[0].asLlama()
	t.bos, t.eos = g.id("bos_token_id", bos), g.id("eos_token_id", eos)
	for _, key := range []string{"eot_token_id", "eom_token_id"} {
		if id := g.id(key, -1); id >= 0 {
			t.turnEnds = append(t.turnEnds, id)
		}
	}
	for _, end := range []struct {
		key string
		add bool
		id  int32
		to  *[]int32
	}{{"add_bos_token", addBOS, t.bos, &t.before}, {"add_eos_token", false, t.eos, &t.behind}} {
		if !g.flag(end.key, end.add) {
			continue
		}
		if _, said := g.value(ggufKey + end.key); end.id >= 0 {
			*end.to = []int32{end.id}
		} else if said {
			g.fail(end.key, "is true, but the file names no such token")
		}
	}
}

// phi3 sets what llama.cpp knows about a model by its name: Phi-3's special tokens take the white space behind them.
func (g *ggufVocab) phi3(list []*addedToken) {
	name, _ := g.value("general.name")
	s, _ := name.(string)
	s = strings.ToLower(s)
	if !strings.Contains(s, "phi-3") && !strings.Contains(s, "phi3") {
		return
	}
	for _, a := range list {
		a.rstrip = !slices.Contains([]string{"<unk>", "<s>", "<|endoftext|>"}, a.content)
	}
}

// byteLevel builds the tokenizer of model "gpt2".
func (g *ggufVocab) byteLevel(t *BPE) {
	g.pre = "default"
	if _, ok := g.value(ggufKey + "pre"); ok {
		g.pre = g.text("pre")
	}
	name, ok := ggufNames[g.pre]
	if !ok {
		g.fail("pre", "%q is not supported: %s are", g.pre, strings.Join(slices.Sorted(maps.Keys(ggufNames)), ", "))
	}
	merges := g.texts("merges")
	if g.err != nil {
		return
	}
	t.pre.stages = ggufPatterns[name]
	if slices.Contains(ggufWhole, g.pre) {
		t.whole = map[string]int32{}
	}
	for i := range t.byteIDs {
		t.byteIDs[i] = noByte
	}
	t.tokens = make([][]byte, len(g.tokens))
	for id, token := range g.tokens {
		raw, spelled := fromByteRunes(token)
		if spelled && len(raw) == 1 {
			t.byteIDs[raw[0]] = int32(id)
		}
		if spelled && t.whole != nil {
			t.whole[string(raw)] = int32(id)
		}
		if typ := g.types[id]; !spelled || typ == unknownToken || typ == controlToken || typ == userToken {
			raw = []byte(token)
		}
		t.tokens[id] = raw
	}
	if slices.Contains(t.byteIDs[:], noByte) {
		t.lost = lostBehind
	}
	t.merges = newMergeTable(len(merges))
	for rank, line := range merges {
		i := -1
		if line != "" {
			i = strings.IndexByte(line[1:], ' ') + 1
		}
		if i <= 0 {
			g.fail("merges", "entry %d, %q, is no pair of tokens", rank, line)
			return
		}
		var ids [3]int32
		for k, token := range []string{line[:i], line[i+1:], line[:i] + line[i+1:]} {
			id, ok := g.ids[token]
			if !ok {
				g.fail("merges", "entry %d, %q: the token %q is not there", rank, line, token)
				return
			}
			ids[k] = id
		}
		if pair := pairOf(ids[0], ids[1]); t.merges.slot(pair).pair == noPair { // of two for one pair the first counts
			t.merges.set(mergeRule{pair, int32(rank), ids[2]})
		}
	}
	g.finish(t, -1, -1, slices.Contains(ggufBOS, g.pre))
}

// sentencePiece builds the tokenizer of model "llama".
func (g *ggufVocab) sentencePiece(t *BPE) {
	scores := numbers[float32](g, "scores", len(g.tokens))
	prefix := g.flag("add_space_prefix", true)
	if g.err != nil {
		return
	}
	if scores == nil {
		scores = make([]float32, len(g.tokens))
	}
	t.chars = newCharTable()
	t.chars.late = true
	t.tokens = make([][]byte, len(g.tokens))
	for id, token := range g.tokens {
		if r, n := utf8.DecodeRuneInString(token); n == len(token) {
			t.chars.set(r, int32(id))
		}
		text := []byte(token)
		switch g.types[id] {
		case unknownToken, controlToken, userToken:
		case unusedToken:
			text = []byte{}
		case byteType:
			b, ok := byteOfToken(token)
			if !ok {
				g.fail("tokens", "token %d, %q, is of type byte, but not spelled <0x41>", id, token)
				return
			}
			text = []byte{b}
		default:
			text = []byte(strings.ReplaceAll(token, metaspace, " "))
		}
		t.tokens[id] = text
	}
	for b := range t.byteIDs {
		id, ok := g.ids[byteToken(byte(b))]
		if !ok && b < utf8.RuneSelf {
			id, ok = g.ids[string(rune(b))]
		}
		if !ok {
			g.fail("tokens", "has no token for the byte 0x%02x, spelled %q", b, byteToken(byte(b)))
			return
		}
		t.byteIDs[b] = id
	}
	g.scoredMerges(t, scores)
	t.norm = []normalizer{{name: "spaces", apply: func(s string) string { return strings.ReplaceAll(s, " ", metaspace) }}}
	if prefix {
		t.head.stripSpace = true
		t.norm = []normalizer{{name: "spaces behind one", apply: func(s string) string { return metaspace + strings.ReplaceAll(s, " ", metaspace) }}}
	}
	t.pre.stages = []stage{{scan: t.chars.scanWord}}
	g.finish(t, 1, 2, true)
}

// scoredMerges lists every way to make a token out of two symbols; its rank is its token's place by score.
func (g *ggufVocab) scoredMerges(t *BPE, scores []float32) {
	order := slices.Clone(scores)
	slices.SortFunc(order, func(a, b float32) int {
		switch {
		case a > b:
			return -1
		case a < b:
			return 1
		}
		return 0
	})
	order = slices.Compact(order)
	ranks := make(map[float32]int32, len(order))
	for i, s := range order {
		ranks[s] = int32(i)
	}
	symbol := func(text string) (int32, bool) {
		if id, ok := g.ids[text]; ok {
			return id, true
		}
		r, n := utf8.DecodeRuneInString(text)
		return unknownSymbol(r), n == len(text)
	}
	var rules []mergeRule
	for id, token := range g.tokens {
		rank, ok := ranks[scores[id]]
		if !ok {
			g.fail("scores", "entry %d is %v", id, scores[id])
			return
		}
		for i := range token {
			left, right := token[:i], token[i:]
			if i == 0 {
				continue
			}
			a, ok := symbol(left)
			if !ok {
				continue
			}
			if b, ok := symbol(right); ok {
				rules = append(rules, mergeRule{pairOf(a, b), rank, int32(id)})
				t.chars.crosses(left, right)
			}
		}
	}
	t.merges = newMergeTable(len(rules))
	for _, r := range rules {
		t.merges.set(r)
	}
}
