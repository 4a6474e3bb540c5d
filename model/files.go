package model

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"nha/weights"
)

const (
	configName     = "config.json"
	generationName = "generation_config.json"
)

// files is an open model: its configuration, its weights and how it likes to generate, wherever they lie.
type files struct {
	config     Config
	source     weights.Source
	generation []byte // generation_config.json; nil: none
}

// open opens a model directory or a GGUF file.
func open(path string) (*files, error) {
	if weights.IsGGUF(path) {
		g, err := weights.OpenGGUF(path)
		if err != nil {
			return nil, err
		}
		f := &files{source: g}
		if f.config, err = ggufConfig(path, g); err != nil {
			return nil, errors.Join(err, g.Close())
		}
		return f, nil
	}
	c, err := ReadConfig(path)
	if err != nil {
		return nil, err
	}
	f := &files{config: c}
	if f.generation, err = os.ReadFile(filepath.Join(path, generationName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	f.source, err = weights.OpenDir(path)
	return f, err
}

// ReadConfig reads the configuration of a model directory or a GGUF file.
func ReadConfig(path string) (Config, error) {
	if weights.IsGGUF(path) {
		g, err := weights.OpenGGUF(path)
		if err != nil {
			return Config{}, err
		}
		defer g.Close()
		return ggufConfig(path, g)
	}
	name := filepath.Join(path, configName)
	data, err := os.ReadFile(name)
	if err != nil {
		return Config{}, fmt.Errorf("no model in %s: %w", path, err)
	}
	c, err := ParseConfig(data)
	if err != nil {
		return Config{}, fmt.Errorf("%s: %w", name, err)
	}
	return c, nil
}

// ggufConfig is the configuration that a GGUF file's metadata amounts to.
func ggufConfig(path string, g *weights.GGUF) (Config, error) {
	text, err := g.Config()
	if err != nil {
		return Config{}, err
	}
	c, err := ParseConfig(text)
	if err != nil {
		return Config{}, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// Exists reports whether path looks like a model.
func Exists(path string) bool {
	if weights.IsGGUF(path) {
		return true
	}
	_, err := os.Stat(filepath.Join(path, configName))
	return err == nil
}

// check holds the weights against what a model wants: every tensor, in its shape and of a type that can be weights.
func (f *files) check(specs []weights.Spec) error {
	if err := weights.Match(harmless{f.source, &f.config}, specs); err != nil {
		return err
	}
	for _, s := range specs {
		if t, _ := f.source.Tensor(s.Name); !t.DType.Float() && !(t.DType.Quantized() && t.Shape.Rank() == 2) {
			return fmt.Errorf("tensor %s is %v: a weight must be floating-point, or a quantised matrix", s.Name, t.DType)
		}
	}
	return f.checkTied()
}

// harmless is a source without the tensors that a model does not read and that change nothing, as the transformers library has it:
// the rotary frequencies that old checkpoints hold as buffers, which follow from the configuration, and the head of a model
// that ties it to the embedding.
type harmless struct {
	weights.Source
	config *Config
}

func (h harmless) Names() []string {
	return slices.DeleteFunc(h.Source.Names(), func(name string) bool {
		return h.config.raw != nil && strings.HasPrefix(name, "model.layers.") && strings.HasSuffix(name, ".rotary_emb.inv_freq") ||
			name == headName && h.config.TieWordEmbeddings
	})
}

// checkTied refuses a head that is there although it is tied, unless it is the embedding: the library would not tie them then.
func (f *files) checkTied() error {
	head, ok := f.source.Tensor(headName)
	if !ok || !f.config.TieWordEmbeddings {
		return nil
	}
	embedding, _ := f.source.Tensor(f.config.names().embedding)
	if head.DType != embedding.DType || head.Shape != embedding.Shape || !bytes.Equal(head.Bytes(), embedding.Bytes()) {
		return fmt.Errorf("tie_word_embeddings is true, but %s is there and differs from %s: set it to false", headName, f.config.names().embedding)
	}
	return nil
}
