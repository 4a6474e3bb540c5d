package bench

import (
	"fmt"
	"strings"

	"nha/model"
)

// ModelSize is the shape of a model and of its batch, whatever its architecture. The head is a matrix of its own.
type ModelSize struct {
	HiddenSize, Layers, Heads, KVHeads, IntermediateSize, Vocabulary int
	Windows                                                          string // a pattern instead of the preset's 32; empty: the preset's
	Slots                                                            int    // of a preset that has them
	Batch, Context                                                   int
}

// Sizes are the shapes with a name.
var Sizes = []struct {
	Name string
	ModelSize
}{
	{"small", ModelSize{HiddenSize: 256, Layers: 6, Heads: 4, KVHeads: 4, IntermediateSize: 704, Vocabulary: 4096, Slots: 64, Batch: 8, Context: 256}},
	{"large", ModelSize{HiddenSize: 512, Layers: 6, Heads: 8, KVHeads: 8, IntermediateSize: 1408, Vocabulary: 8192, Slots: 64, Batch: 4, Context: 512}},
	{"135m", ModelSize{HiddenSize: 576, Layers: 30, Heads: 9, KVHeads: 3, IntermediateSize: 1536, Vocabulary: 49152, Slots: 64, Batch: 1, Context: 512}},
	{"1.2b", ModelSize{HiddenSize: 2048, Layers: 16, Heads: 32, KVHeads: 8, IntermediateSize: 8192, Vocabulary: 128256, Slots: 64, Batch: 1, Context: 512}},
	{"134m", ModelSize{HiddenSize: 768, Layers: 12, Heads: 12, KVHeads: 12, IntermediateSize: 2048, Vocabulary: 32000, Slots: 64, Batch: 32, Context: 1024}},
	{"374m", ModelSize{HiddenSize: 1024, Layers: 24, Heads: 16, KVHeads: 16, IntermediateSize: 2816, Vocabulary: 32000, Slots: 64, Batch: 16, Context: 2048}},
}

// FindSize is the size of that name.
func FindSize(name string) (ModelSize, error) {
	var names []string
	for _, s := range Sizes {
		if s.Name == name {
			return s.ModelSize, nil
		}
		names = append(names, s.Name)
	}
	return ModelSize{}, fmt.Errorf("unknown size %q: choose one of %s", name, strings.Join(names, ", "))
}

// Or is s with the numbers of other where those are not zero.
func (s ModelSize) Or(other ModelSize) ModelSize {
	for _, f := range []struct {
		to   *int
		from int
	}{{&s.HiddenSize, other.HiddenSize}, {&s.Layers, other.Layers}, {&s.IntermediateSize, other.IntermediateSize}, {&s.Vocabulary, other.Vocabulary},
		{&s.Slots, other.Slots}, {&s.Batch, other.Batch}, {&s.Context, other.Context}} {
		if f.from != 0 {
			*f.to = f.from
		}
	}
	if other.Heads != 0 {
		s.Heads, s.KVHeads = other.Heads, other.Heads
	}
	if other.KVHeads != 0 {
		s.KVHeads = other.KVHeads
	}
	if other.Windows != "" {
		s.Windows = other.Windows
	}
	return s
}

const defaultWindow = 32

// config is the model of a preset in this size.
func (s ModelSize) config(preset string) (model.Config, error) {
	if err := positive("layers", []int{s.Layers}, 1); err != nil {
		return model.Config{}, err
	}
	c := model.NewConfig(s.Vocabulary, s.HiddenSize, s.Layers)
	c.NumHeads, c.NumKVHeads, c.IntermediateSize = s.Heads, s.KVHeads, s.IntermediateSize
	if err := c.ApplyPreset(preset, defaultWindow, s.Slots); err != nil {
		return c, err
	}
	if s.Windows != "" {
		var err error
		if c.LayerWindows, err = model.ParseWindows(s.Windows, c.NumHiddenLayers); err != nil {
			return c, err
		}
	}
	c.MaxPositionEmbeddings = max(s.Context, c.MaxPositionEmbeddings)
	if err := c.Resolve(); err != nil {
		return c, err
	}
	return c, fits("the model", float64(c.Account(1).Parameters))
}

// IsPreset reports whether name is an architecture, not a directory.
func IsPreset(name string) bool {
	for _, p := range model.Presets {
		if p.Name == name {
			return true
		}
	}
	return false
}
