package model

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"nha/atomicfile"
	"nha/autograd"
	"nha/backend"
	"nha/tensor"
	"nha/weights"
)

// LoadOptions say what a loaded model is for.
type LoadOptions struct {
	Train   bool   // allocate gradients, so that it can be trained
	Windows string // a pattern that replaces the model's windows (SPEC 2); empty: as stored
}

// Load reads a model directory (config.json, model.safetensors or shards). Every tensor must be there, of its shape, and no other (SPEC 4, 12). A model that is
// not to be trained reads its weights where they lie in the file when the backend can, in half precision if they are stored so.
func Load(dir string, b backend.Backend, o LoadOptions) (*Model, error) {
	c, err := ReadConfig(dir)
	if err != nil {
		return nil, err
	}
	if o.Windows != "" {
		if c.LayerWindows, err = ParseWindows(o.Windows, c.NumHiddenLayers); err != nil {
			return nil, err
		}
		if err := c.Resolve(); err != nil {
			return nil, err
		}
	}
	source, err := weights.OpenDir(dir)
	if err != nil {
		return nil, err
	}
	m, mapped, err := fromSource(c, source, b, o.Train)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", dir, err), source.Close())
	}
	if !mapped {
		return m, source.Close()
	}
	m.closers = append(m.closers, source.Close)
	return m, nil
}

// fromSource builds the model; mapped says that it reads from source as long as it lives.
func fromSource(c Config, source weights.Source, b backend.Backend, train bool) (m *Model, mapped bool, err error) {
	specs := c.Specs()
	if err := weights.Match(source, specs); err != nil {
		return nil, false, err
	}
	for _, s := range specs {
		if t, _ := source.Tensor(s.Name); !t.DType.Float() {
			return nil, false, fmt.Errorf("tensor %s is %v: a weight must be floating-point", s.Name, t.DType)
		}
	}
	if !train && b.Name() == "cpu" {
		return inPlace(c, source, b), true, nil
	}
	m = allocate(c, b, train)
	for _, p := range m.parameters {
		t, _ := source.Tensor(p.Name)
		m.write(p, t)
	}
	return m, false, nil
}

// inPlace is a model on the cpu backend whose weights stay where they lie. That backend reads matrices in half precision as
// they are, at half the bytes; other tensors of another type than its own, the vectors, are small and converted.
func inPlace(c Config, source weights.Source, b backend.Backend) *Model {
	m := &Model{Config: c, b: b}
	values := map[string]*autograd.Value{}
	for _, s := range c.Specs() {
		t, _ := source.Tensor(s.Name)
		half := t.DType == tensor.BF16 || t.DType == tensor.F16
		if t.DType != b.DType() && !(half && t.Shape.Rank() == 2) {
			converted := b.Alloc(b.DType(), t.Shape)
			b.Write(converted, t)
			t = converted
		}
		values[s.Name] = autograd.Parameter(t, tensor.Tensor{})
		m.parameters = append(m.parameters, Parameter{Name: s.Name, Value: values[s.Name]})
	}
	m.assemble(values)
	return m
}

// CheckWeights holds the weights of a model directory against a configuration without loading them.
func CheckWeights(dir string, c *Config) error {
	source, err := weights.OpenDir(dir)
	if err != nil {
		return err
	}
	defer source.Close()
	if err := weights.Match(source, c.Specs()); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	return nil
}

// Save writes config.json, model.safetensors and, where the config names tokens, generation_config.json into dir, which must exist. Weights are
// written in the config's dtype.
func (m *Model) Save(dir string) error {
	d, err := tensor.ParseDType(m.Config.DType)
	if err != nil {
		return err
	}
	var list []weights.Named
	for _, p := range m.parameters {
		host := tensor.New(d, p.Value.Shape)
		m.b.Read(host, m.exact(p))
		list = append(list, weights.Named{Name: p.Name, Tensor: host})
	}
	if err := weights.Write(filepath.Join(dir, weights.FileName), map[string]string{"format": "pt"}, list); err != nil {
		return err
	}
	if err := WriteConfig(dir, &m.Config); err != nil {
		return err
	}
	g := map[string]any{}
	for key, id := range map[string]*int{"bos_token_id": m.Config.BosTokenID, "eos_token_id": m.Config.EosTokenID, "pad_token_id": m.Config.PadTokenID} {
		if id != nil {
			g[key] = *id
		}
	}
	return writeJSON(filepath.Join(dir, "generation_config.json"), g)
}

// WriteConfig writes DIR/config.json.
func WriteConfig(dir string, c *Config) error { return writeJSON(filepath.Join(dir, "config.json"), c) }

func writeJSON(path string, v any) error {
	return atomicfile.WriteFile(path, 0o644, func(w io.Writer) error {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(v)
	})
}

// Exists reports whether dir looks like a model directory.
func Exists(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "config.json"))
	return err == nil
}
