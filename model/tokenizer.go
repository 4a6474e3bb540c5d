package model

import (
	"errors"
	"os"
	"path/filepath"

	"nha/tokenizer"
	"nha/weights"
)

// Tokenizer reads the tokenizer of a model: the tokenizer.json of a directory, what is inside a GGUF file, or the vocabulary of one that stands
// beside converted weights.
func Tokenizer(path string) (tokenizer.Tokenizer, error) {
	file := path
	if !weights.IsGGUF(path) {
		if _, err := os.Stat(filepath.Join(path, "tokenizer.json")); err == nil {
			return tokenizer.Load(path)
		}
		if file = filepath.Join(path, weights.VocabularyName); !weights.IsGGUF(file) {
			return tokenizer.Load(path)
		}
	}
	g, err := weights.OpenGGUF(file)
	if err != nil {
		return nil, err
	}
	t, err := tokenizer.FromGGUF(g.Value)
	return t, errors.Join(err, g.Close())
}
