package tokenizer

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// The vocabulary of a GGUF as tokenizer.json and tokenizer_config.json. Merges are written in the order of their ranks; those of
// SentencePiece, which have a score where a tokenizer.json has an order, in the order of Hugging Face's converter: the higher score
// first, of equals the longer left part. The stages around them are those of the model's family.

// ErrNoJSON is of a GGUF's vocabulary that no tokenizer.json gives the ids of.
var ErrNoJSON = errors.New("no tokenizer.json gives the ids of this GGUF's vocabulary")

// ggufOrigin is what a GGUF says beside the tokenizer that was made of it.
type ggufOrigin struct {
	spelling     []string // tokens by id
	pre          string   // tokenizer.ggml.pre, byte-level only
	unk, pad     int32    // -1 for none
	chatTemplate string
}

// origin keeps what Save writes. A value of another type than it should be is none here: nothing hangs on it but a name.
func (g *ggufVocab) origin() *ggufOrigin {
	o := &ggufOrigin{spelling: g.tokens, pre: g.pre, unk: -1, pad: -1}
	for key, to := range map[string]*int32{"unknown_token_id": &o.unk, "padding_token_id": &o.pad} {
		v, _ := g.value(ggufKey + key)
		if n, ok := wholeNumber(v); ok && n >= 0 && n < int64(len(g.tokens)) {
			*to = int32(n)
		}
	}
	if o.unk < 0 {
		o.unk = int32(slices.Index(g.types, unknownToken))
	}
	v, _ := g.value("tokenizer.chat_template")
	o.chatTemplate, _ = v.(string)
	return o
}

// splitJSON cuts by a pattern; the tokens are of bytes.
func splitJSON(pattern string) string {
	return `{"type": "Sequence", "pretokenizers": [
    {"type": "Split", "pattern": {"Regex": ` + quote(pattern) + `}, "behavior": "Isolated", "invert": false},
    ` + byteLevelJSON(false) + `]}`
}

// patternJSON are the pre_tokenizers of ggufPatterns. "default" and "falcon" have none: they cut at what no known tokenizer.json
// cuts at.
var patternJSON = map[string]string{
	"gpt-2":  byteLevelJSON(true),
	"smollm": `{"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true}, ` + byteLevelJSON(true) + `]}`,
	"llama3": splitJSON(llama3Pattern),
	"qwen2":  splitJSON(qwen2Pattern),
}

// describe writes the two files.
func (t *BPE) describe() (source, config []byte, err error) {
	d := description{vocab: t.gguf.spelling, added: t.list, ignoreMerges: t.whole != nil}
	if d.merges, err = t.rankedMerges(); err != nil {
		return nil, nil, err
	}
	around := surroundings{"null", "null", t.templateJSON(), byteLevelJSON(true)}
	switch {
	case t.chars != nil:
		d.byteFallback = true
		if t.gguf.unk >= 0 {
			d.unk = t.gguf.spelling[t.gguf.unk]
		}
		around.normalizer, around.decoder = spacesJSON(t.head.stripSpace)
	default:
		known := false
		if around.preTokenizer, known = patternJSON[ggufNames[t.gguf.pre]]; !known {
			return nil, nil, fmt.Errorf("%w: %spre %q cuts text as none of them does", ErrNoJSON, ggufKey, t.gguf.pre)
		}
		if t.gguf.pre == "qwen2" { // llama.cpp leaves it out
			around.normalizer = `{"type": "NFC"}`
		}
		if around.postProcessor == "null" {
			around.postProcessor = byteLevelJSON(true)
		}
	}
	list := []named{{"bos_token", t.name(t.bos)}, {"eos_token", t.name(t.eos)}}
	for _, n := range []struct {
		key string
		id  int32
	}{{"unk_token", t.gguf.unk}, {"pad_token", t.gguf.pad}} {
		if t.Special(n.id) { // transformers would make it one
			list = append(list, named{n.key, t.name(n.id)})
		}
	}
	return d.tokenizerJSON(around), configJSON(append(list, named{"chat_template", t.gguf.chatTemplate})...), nil
}

// name is the spelling of a token, "" of none.
func (t *BPE) name(id int32) string {
	if id < 0 {
		return ""
	}
	return t.gguf.spelling[id]
}

// ordered lists the merges by rank, those of one rank as Hugging Face's converter orders them.
func (t *BPE) ordered() []mergeRule {
	rules := slices.DeleteFunc(slices.Clone(t.merges.slots), func(r mergeRule) bool { return r.pair == noPair })
	length := func(id int32) int {
		if id < 0 {
			return 1
		}
		return utf8.RuneCountInString(t.gguf.spelling[id])
	}
	slices.SortFunc(rules, func(x, y mergeRule) int {
		if x.rank != y.rank {
			return cmp.Compare(x.rank, y.rank)
		}
		a, b := x.parts()
		c, d := y.parts()
		return cmp.Or(length(c)-length(a), length(d)-length(b), cmp.Compare(x.id, y.id), cmp.Compare(a, c), cmp.Compare(b, d))
	})
	return rules
}

// rankedMerges spells the merges. What they do must not hang on what a list of tokens cannot say: characters that are no tokens
// yet merge, and tokens of one score of which the leftmost counts.
func (t *BPE) rankedMerges() (merges [][2]string, err error) {
	rules := t.ordered()
	for len(rules) > 0 {
		end := slices.IndexFunc(rules, func(r mergeRule) bool { return r.rank != rules[0].rank })
		if end < 0 {
			end = len(rules)
		}
		if id, tied := t.tie(rules[:end]); tied {
			return nil, fmt.Errorf("%w: %sscores: that of %q is another token's too: neither comes first", ErrNoJSON, ggufKey, t.name(id))
		}
		for _, r := range rules[:end] {
			a, b := r.parts()
			if a < 0 || b < 0 {
				return nil, fmt.Errorf("%w: %stokens: %q merges from a character that is no token", ErrNoJSON, ggufKey, t.name(r.id))
			}
			merges = append(merges, [2]string{t.name(a), t.name(b)})
		}
		rules = rules[end:]
	}
	return merges, nil
}

// tie returns a token of the rules of one rank that may want a symbol which another wants too. Runs of U+2581, the
// indentations of Llama 2, do no harm: the longer left part first, they grow from the left in both programs.
func (t *BPE) tie(rules []mergeRule) (id int32, tied bool) {
	const several = -1
	makes := map[int32]int32{} // what a left part becomes
	runs := true
	for _, r := range rules {
		a, _ := r.parts()
		if other, ok := makes[a]; ok && other != r.id {
			makes[a] = several
		} else {
			makes[a] = r.id
		}
		runs = runs && strings.Trim(t.name(r.id), metaspace) == ""
	}
	for _, r := range rules {
		_, b := r.parts()
		if other, ok := makes[b]; ok && other != r.id && !runs {
			return r.id, true
		}
	}
	return 0, false
}

// spacesJSON are normalizer and decoder of SentencePiece's spaces: U+2581 for each, and one in front of a text.
func spacesJSON(inFront bool) (normalizer, decoder string) {
	const (
		replace = `{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}`
		decode  = `{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}`
		strip   = `, {"type": "Strip", "content": " ", "start": 1, "stop": 0}`
		list    = `{"type": "Sequence", "%s": [%s]}`
	)
	if !inFront {
		return replace, fmt.Sprintf(list, "decoders", decode)
	}
	return fmt.Sprintf(list, "normalizers", `{"type": "Prepend", "prepend": "▁"}, `+replace), fmt.Sprintf(list, "decoders", decode+strip)
}

// templateJSON is the post_processor that puts BOS in front of a text and EOS behind it, null where there is neither.
func (t *BPE) templateJSON() string {
	if len(t.before)+len(t.behind) == 0 {
		return "null"
	}
	piece := func(id int32, sequence int) string {
		return fmt.Sprintf(`{"SpecialToken": {"id": %s, "type_id": %d}}`, quote(t.name(id)), sequence)
	}
	around := func(sequence int) string {
		var list []string
		for _, id := range t.before {
			list = append(list, piece(id, sequence))
		}
		list = append(list, fmt.Sprintf(`{"Sequence": {"id": "%c", "type_id": %d}}`, 'A'+sequence, sequence))
		for _, id := range t.behind {
			list = append(list, piece(id, sequence))
		}
		return strings.Join(list, ", ")
	}
	ids := slices.Concat(t.before, t.behind)
	slices.Sort(ids)
	var tokens []string
	for _, id := range slices.Compact(ids) {
		name := quote(t.name(id))
		tokens = append(tokens, fmt.Sprintf(`%s: {"id": %s, "ids": [%d], "tokens": [%s]}`, name, name, id, name))
	}
	return fmt.Sprintf(`{"type": "TemplateProcessing",
    "single": [%s],
    "pair": [%s, %s],
    "special_tokens": {%s}}`, around(0), around(0), around(1), strings.Join(tokens, ", "))
}
