package hybridize

import (
	"nha/backend"
	"nha/convert"
	"nha/model"
	"nha/tensor"
	"nha/weights"
)

// Apply writes the hybrid that the adapter in a directory makes of a base: `nha convert --merge`. Of the options Edit is its own; without a DType
// weights are as the base has them, F32 from a GGUF file. A base other than the one that the adapter was trained on is an error.
func Apply(adapter, base, out string, o convert.Options) (r convert.Result, err error) {
	a, err := ReadAdapter(adapter)
	if err != nil {
		return r, err
	}
	path, err := model.Find(base)
	if err != nil {
		return r, err
	}
	c, err := model.ReadConfig(path)
	if err != nil {
		return r, err
	}
	hash, err := baseHash(path)
	if err != nil {
		return r, err
	}
	o.Edit, err = a.Edit(c, hash)
	if err != nil {
		return r, err
	}
	if o.DType == tensor.Invalid && weights.IsGGUF(path) {
		o.DType = tensor.F32
	}
	return convert.Model(path, out, o)
}

// baseHash identifies a base by its own numbers, on a processor: a card would round them.
func baseHash(path string) (string, error) {
	b, err := backend.Open("cpu", 0)
	if err != nil {
		return "", err
	}
	defer b.Close()
	m, err := model.Load(path, b, model.LoadOptions{})
	if err != nil {
		return "", err
	}
	defer m.Close()
	return m.Hash(), nil
}
