package convert

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

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
		if err := writeFile(filepath.Join(dir, name), text); err != nil {
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
	if g := s.generation(); len(g) > 0 {
		text, err := json.MarshalIndent(g, "", "  ")
		if err != nil {
			return "", err
		}
		if err := writeFile(filepath.Join(dir, "generation_config.json"), text); err != nil {
			return "", err
		}
	}
	if _, ok := s.Value("tokenizer.ggml.model"); ok {
		t, unknown := tokenizer.FromGGUF(s.Value)
		if unknown == nil {
			err := t.Save(dir)
			if err == nil || !errors.Is(err, tokenizer.ErrNoJSON) {
				return "", err // with the template
			}
			unknown = err
		}
		kept = unknown.Error()
		if err := s.WriteVocabulary(filepath.Join(dir, weights.VocabularyName)); err != nil {
			return "", err
		}
	}
	if text := s.ChatTemplate(); text != "" {
		return kept, writeFile(filepath.Join(dir, "chat_template.jinja"), []byte(text))
	}
	return kept, nil
}

// generation is what a generation_config.json says: the ids that begin a text, and all that end an answer.
func (s ggufSource) generation() map[string]any {
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
