package tokenizer

import (
	"bytes"
	"encoding/json"
	"strconv"
)

// description is a byte-level BPE as tokenizer.json spells it, with GPT-2's pattern, or none without merges.
type description struct {
	vocab   []string    // by id, in byteRunes, added tokens as they are
	merges  [][2]string // by rank
	special []int       // ids of special tokens
}

// tokenizerJSON writes the file in the order of its ids and ranks. Merges are written as "a b", which every version of
// Hugging Face tokenizers reads.
func (d *description) tokenizerJSON() []byte {
	var b bytes.Buffer
	b.WriteString("{\n  \"version\": \"1.0\",\n  \"truncation\": null,\n  \"padding\": null,\n  \"added_tokens\": [")
	for i, id := range d.special {
		b.WriteString(comma(i) + "\n    {\"id\": " + strconv.Itoa(id) + ", \"content\": " + quote(d.vocab[id]) +
			", \"single_word\": false, \"lstrip\": false, \"rstrip\": false, \"normalized\": false, \"special\": true}")
	}
	byteLevel := `{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": ` +
		strconv.FormatBool(len(d.merges) > 0) + `}`
	b.WriteString("\n  ],\n  \"normalizer\": null,\n  \"pre_tokenizer\": " + byteLevel +
		",\n  \"post_processor\": " + byteLevel + ",\n  \"decoder\": " + byteLevel + ",\n")
	b.WriteString(`  "model": {
    "type": "BPE",
    "dropout": null,
    "unk_token": null,
    "continuing_subword_prefix": null,
    "end_of_word_suffix": null,
    "fuse_unk": false,
    "byte_fallback": false,
    "ignore_merges": false,
    "vocab": {`)
	for id, token := range d.vocab {
		b.WriteString(comma(id) + "\n      " + quote(token) + ": " + strconv.Itoa(id))
	}
	b.WriteString("\n    },\n    \"merges\": [")
	for i, m := range d.merges {
		b.WriteString(comma(i) + "\n      " + quote(m[0]+" "+m[1]))
	}
	b.WriteString("\n    ]\n  }\n}\n")
	return b.Bytes()
}

// configJSON is a tokenizer_config.json for transformers' AutoTokenizer; eos may be "".
func configJSON(eos string) []byte {
	var b bytes.Buffer
	b.WriteString("{\n  \"tokenizer_class\": \"PreTrainedTokenizerFast\",\n")
	if eos != "" {
		b.WriteString("  \"eos_token\": " + quote(eos) + ",\n")
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
