package tokenizer

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// description is a BPE as tokenizer.json spells it.
type description struct {
	vocab  []string      // by id, byte-level ones in byteRunes, added tokens as they are
	merges [][2]string   // by rank
	added  []*addedToken // by id

	unk                        string // of characters: the unknown token, "" for none
	byteFallback, ignoreMerges bool
}

// special makes the token id a special one.
func (d *description) special(id int) {
	d.added = append(d.added, &addedToken{content: d.vocab[id], id: int32(id), special: true})
}

// surroundings are the stages around the model, as JSON.
type surroundings struct{ normalizer, preTokenizer, postProcessor, decoder string }

// byteLevelJSON is the stage of byte-level BPE that cuts by GPT-2's pattern, or not at all.
func byteLevelJSON(pattern bool) string {
	return `{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": ` + strconv.FormatBool(pattern) + `}`
}

// byteLevel writes a byte-level BPE with GPT-2's pattern, or none without merges.
func (d *description) byteLevel() []byte {
	stage := byteLevelJSON(len(d.merges) > 0)
	return d.tokenizerJSON(surroundings{"null", stage, stage, stage})
}

// tokenizerJSON writes the file in the order of its ids and ranks.
func (d *description) tokenizerJSON(around surroundings) []byte {
	var b bytes.Buffer
	b.WriteString("{\n  \"version\": \"1.0\",\n  \"truncation\": null,\n  \"padding\": null,\n  \"added_tokens\": [")
	for i, a := range d.added {
		fmt.Fprintf(&b, `%s
    {"id": %d, "content": %s, "single_word": %v, "lstrip": %v, "rstrip": %v, "normalized": %v, "special": %v}`,
			comma(i), a.id, quote(a.content), a.singleWord, a.lstrip, a.rstrip, a.normalized, a.special)
	}
	unk := "null"
	if d.unk != "" {
		unk = quote(d.unk)
	}
	fmt.Fprintf(&b, `
  ],
  "normalizer": %s,
  "pre_tokenizer": %s,
  "post_processor": %s,
  "decoder": %s,
  "model": {
    "type": "BPE",
    "dropout": null,
    "unk_token": %s,
    "continuing_subword_prefix": null,
    "end_of_word_suffix": null,
    "fuse_unk": %v,
    "byte_fallback": %v,
    "ignore_merges": %v,
    "vocab": {`, around.normalizer, around.preTokenizer, around.postProcessor, around.decoder, unk, d.unk != "", d.byteFallback, d.ignoreMerges)
	for id, token := range d.vocab {
		b.WriteString(comma(id) + "\n      " + quote(token) + ": " + strconv.Itoa(id))
	}
	b.WriteString("\n    },\n    \"merges\": [")
	spelling := mergeSpelling(d.merges)
	for i, m := range d.merges {
		b.WriteString(comma(i) + "\n      " + spelling(m))
	}
	b.WriteString("\n    ]\n  }\n}\n")
	return b.Bytes()
}

// mergeSpelling writes merges as "a b", which every version of Hugging Face tokenizers reads, or all as ["a", "b"] where one would be
// read as something else.
func mergeSpelling(merges [][2]string) func([2]string) string {
	for _, m := range merges {
		if strings.Contains(m[0], " ") || strings.Contains(m[1], " ") || strings.HasPrefix(m[0], "#version") {
			return func(m [2]string) string { return "[" + quote(m[0]) + ", " + quote(m[1]) + "]" }
		}
	}
	return func(m [2]string) string { return quote(m[0] + " " + m[1]) }
}

// named is a key of tokenizer_config.json and its text.
type named struct{ key, text string }

// configJSON is a tokenizer_config.json for transformers' AutoTokenizer; a key whose text is empty is left out.
func configJSON(list ...named) []byte {
	var b bytes.Buffer
	b.WriteString("{\n  \"tokenizer_class\": \"PreTrainedTokenizerFast\",\n")
	for _, n := range list {
		if n.text != "" {
			b.WriteString("  " + quote(n.key) + ": " + quote(n.text) + ",\n")
		}
	}
	b.WriteString("  \"clean_up_tokenization_spaces\": false\n}\n")
	return b.Bytes()
}

func comma(i int) string {
	if i == 0 {
		return ""
	}
	return ","
}

// quote is s as a JSON string, < > and & left readable.
func quote(s string) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(s); err != nil {
		panic(err) // a string can always be encoded
	}
	return string(bytes.TrimSuffix(b.Bytes(), []byte("\n")))
}
