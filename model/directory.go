package model

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"nha/atomicfile"
	"nha/autograd"
	"nha/backend"
	"nha/tensor"
	"nha/weights"
)

// Load reads a model: a directory (config.json, model.safetensors or shards) or a GGUF file. Every tensor must be there, of its shape, and no other
// (SPEC 4, 12; harmless says which are passed over). A model that is not to be trained reads its weights where they lie in the
// file when the backend can, in half precision or quantised if they are stored so.
func Load(path string, b backend.Backend, o LoadOptions) (*Model, error) {
	if err := checkCache(o.Cache, b); err != nil {
		return nil, err
	}
	f, err := open(path)
	if err != nil {
		return nil, err
	}
	m, err := f.load(b, o)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), f.source.Close())
	}
	m.cache = o.Cache
	if o.Cache == tensor.Invalid && b.Name() == "cpu" && m.narrow(f) {
		m.cache = tensor.F16
	}
	return m, nil
}

func (f *files) load(b backend.Backend, o LoadOptions) (*Model, error) {
	c := f.config
	if o.Hybrid != nil {
		if err := c.Hybridize(*o.Hybrid); err != nil {
			return nil, err
		}
	}
	if o.Windows != "" {
		if err := c.ApplyWindows(o.Windows); err != nil {
			return nil, err
		}
	}
	specs := f.config.Specs()
	if o.LoRA.stored(f.source) {
		specs = append(specs, o.LoRA.specs(&c)...)
	}
	if err := f.check(specs); err != nil {
		return nil, err
	}
	stored := map[string]tensor.Tensor{}
	for _, s := range specs {
		stored[s.Name], _ = f.source.Tensor(s.Name)
	}
	if !o.Train && !o.Own && o.Share == nil && readsInPlace(b) {
		m := inPlace(c, stored, b)
		m.generation, m.closers = f.generation, append(m.closers, f.source.Close)
		return m, nil
	}
	m := allocate(c, b, o)
	m.generation = f.generation
	for _, p := range m.tensors {
		t, there := stored[p.Name] // a new gate is not
		if _, shared := o.shared(weights.Spec{Name: p.Name, Shape: p.Value.Shape}); shared {
			continue
		}
		if there {
			m.write(p, t)
		} else if start, ok := o.LoRA.start(p); ok {
			m.write(p, start)
		}
	}
	return m, f.source.Close()
}

// readsInPlace reports whether a backend takes matrices in half precision or quantised, and from the host's memory.
func readsInPlace(b backend.Backend) bool { return b.Name() == "cpu" || b.Name() == "cpu-f32" }

// inPlace is a model whose weights stay where they lie. Matrices are multiplied as they are stored, at fewer bytes; other tensors of another type
// than the backend's, the vectors, are small and converted.
func inPlace(c Config, stored map[string]tensor.Tensor, b backend.Backend) *Model {
	m := &Model{Config: c, b: b}
	values := map[string]*autograd.Value{}
	for _, s := range c.Specs() {
		t, ok := stored[s.Name]
		if !ok { // a new gate
			t = b.Alloc(b.DType(), s.Shape)
		}
		narrow := t.DType == tensor.BF16 || t.DType == tensor.F16 || t.DType.Quantized()
		if t.DType != b.DType() && !(narrow && t.Shape.Rank() == 2) {
			converted := b.Alloc(b.DType(), t.Shape)
			b.Write(converted, t)
			t = converted
		}
		values[s.Name] = autograd.Parameter(t, tensor.Tensor{})
		m.tensors = append(m.tensors, Parameter{Name: s.Name, Value: values[s.Name]})
	}
	m.assemble(values)
	return m
}

// CheckWeights holds the weights of a model against a configuration without loading them.
func CheckWeights(path string, c *Config) error {
	f, err := open(path)
	if err != nil {
		return err
	}
	defer f.source.Close()
	if err := f.check(c.Specs()); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// Save writes config.json, model.safetensors and generation_config.json (as it was read, else with the config's tokens) into dir, which must
// exist. Weights are written in the config's dtype.
func (m *Model) Save(dir string) error {
	d, err := tensor.ParseDType(m.Config.DType)
	if err != nil {
		return err
	}
	var list []weights.Named
	for _, p := range m.tensors {
		list = append(list, weights.Named{Name: p.Name, Tensor: m.Host(p, d)})
	}
	if err := weights.Write(filepath.Join(dir, weights.FileName), map[string]string{"format": "pt"}, list); err != nil {
		return err
	}
	if err := WriteConfig(dir, &m.Config); err != nil {
		return err
	}
	if m.generation != nil {
		return atomicfile.Write(filepath.Join(dir, generationName), 0o644, m.generation)
	}
	g := map[string]any{}
	for key, id := range map[string]*int{"bos_token_id": m.Config.BosTokenID, "eos_token_id": m.Config.EosTokenID, "pad_token_id": m.Config.PadTokenID} {
		if id != nil {
			g[key] = *id
		}
	}
	return writeJSON(filepath.Join(dir, generationName), g)
}

// Host is a copy of a tensor on the host, rounded to type d from all the digits that the model has.
func (m *Model) Host(p Parameter, d tensor.DType) tensor.Tensor {
	host := tensor.New(d, p.Value.Shape)
	m.b.Read(host, m.exact(p))
	return host
}

// Set replaces a tensor's values by those of a host tensor of the same shape. One that is mapped from a file cannot be set: load the model to train.
func (m *Model) Set(p Parameter, x tensor.Tensor) { m.write(p, x) }

// WriteConfig writes DIR/config.json.
func WriteConfig(dir string, c *Config) error { return writeJSON(filepath.Join(dir, configName), c) }

func writeJSON(path string, v any) error {
	return atomicfile.WriteFile(path, 0o644, func(w io.Writer) error {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(v)
	})
}
