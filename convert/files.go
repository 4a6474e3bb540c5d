package convert

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"nha/atomicfile"
	"nha/tensor"
	"nha/tokenizer"
	"nha/weights"
)

// passedOn are the files of a model directory that say the same whatever the weights' types: how it writes, reads and talks, and
// under which licence.
var passedOn = []string{"generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
	"merges.txt", "tokenizer.model", "chat_template.jinja", "chat_template.json", weights.VocabularyName, "LICENSE", "LICENSE.txt", "NOTICE"}

// dirSource is a Hugging Face directory.
type dirSource struct {
	weights.Source
	dir string
}

func (s dirSource) config() ([]byte, error) { return os.ReadFile(filepath.Join(s.dir, "config.json")) }

func (s dirSource) writeRest(dir string) (kept string, err error) {
	for _, name := range passedOn {
		text, err := os.ReadFile(filepath.Join(s.dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		if err := atomicfile.Write(filepath.Join(dir, name), 0o644, text); err != nil {
			return "", err
		}
	}
	return "", nil
}

// ggufSource is a GGUF file: tokenizer, template and ids of special tokens are in its metadata. The tokenizer is passed on as Hugging
// Face's of the same ids or, where there is none, as llama.cpp describes it.
type ggufSource struct{ *weights.GGUF }

func (s ggufSource) config() ([]byte, error) { return s.Config() }

func (s ggufSource) writeRest(dir string) (kept string, err error) {
	var t tokenizer.Tokenizer
	var unknown error // why there is no tokenizer.json
	_, some := s.Value("tokenizer.ggml.model")
	if some {
		if t, unknown = tokenizer.FromGGUF(s.Value); unknown == nil {
			if unknown = t.Save(dir); unknown != nil && !errors.Is(unknown, tokenizer.ErrNoJSON) {
				return "", unknown
			}
		}
	}
	if unknown != nil {
		kept = unknown.Error()
		if err := s.WriteVocabulary(filepath.Join(dir, weights.VocabularyName)); err != nil {
			return "", err
		}
	}
	if text := s.ChatTemplate(); text != "" && (!some || unknown != nil) { // else it is in tokenizer_config.json
		if err := atomicfile.Write(filepath.Join(dir, "chat_template.jinja"), 0o644, []byte(text)); err != nil {
			return "", err
		}
	}
	g := s.generation(t)
	if len(g) == 0 {
		return kept, nil
	}
	text, err := json.MarshalIndent(g, "", "  ")
	if err != nil {
		return "", err
	}
	return kept, atomicfile.Write(filepath.Join(dir, "generation_config.json"), 0o644, text)
}

// generation is what a generation_config.json says: the ids that begin a text, and all that end an answer, those among them that
// the tokenizer, where it is understood, knows by name.
func (s ggufSource) generation(t tokenizer.Tokenizer) map[string]any {
	g := map[string]any{}
	id := func(name string) (uint64, bool) {
		v, _ := s.Value("tokenizer.ggml." + name + "_token_id")
		n, ok := v.(uint64)
		return n, ok
	}
	if n, ok := id("bos"); ok {
		g["bos_token_id"] = n
	}
	if n, ok := id("padding"); ok {
		g["pad_token_id"] = n
	}
	var ends []uint64
	for _, name := range []string{"eos", "eot", "eom"} {
		if n, ok := id(name); ok {
			ends = append(ends, n)
		}
	}
	if b, ok := t.(*tokenizer.BPE); ok {
		for _, end := range b.Ends() {
			if n := uint64(end); !slices.Contains(ends, n) {
				ends = append(ends, n)
			}
		}
	}
	switch len(ends) {
	case 0:
	case 1:
		g["eos_token_id"] = ends[0]
	default:
		g["eos_token_id"] = ends
	}
	return g
}

// withDType is the text of a config.json with another dtype, under the key that it has.
func withDType(text []byte, d tensor.DType) ([]byte, error) {
	if d == tensor.Invalid {
		return text, nil
	}
	var c map[string]json.RawMessage
	if err := json.Unmarshal(text, &c); err != nil {
		return nil, fmt.Errorf("config.json: %w", err)
	}
	name, err := json.Marshal(map[tensor.DType]string{tensor.F32: "float32", tensor.F16: "float16", tensor.BF16: "bfloat16"}[d])
	if err != nil {
		return nil, err
	}
	key := "dtype"
	if _, ok := c["torch_dtype"]; ok {
		key = "torch_dtype"
	}
	c[key] = name
	return json.MarshalIndent(c, "", "  ")
}
