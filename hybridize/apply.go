package hybridize

import (
	"nha/backend"
	"nha/convert"
	"nha/model"
	"nha/tensor"
	"nha/weights"
)

// Apply writes the hybrid that the adapter in a directory makes of a base: `nha convert --merge`. dtype is that of the weights written;
// Invalid: as the base has them, F32 from a GGUF file. A base other than the one that the adapter was trained on is an error.
func Apply(adapter, base, out string, dtype tensor.DType, force bool) error {
	a, err := ReadAdapter(adapter)
	if err != nil {
		return err
	}
	path, err := model.Find(base)
	if err != nil {
		return err
	}
	c, err := model.ReadConfig(path)
	if err != nil {
		return err
	}
	hash, err := baseHash(path)
	if err != nil {
		return err
	}
	edit, err := a.Edit(c, hash)
	if err != nil {
		return err
	}
	if dtype == tensor.Invalid && weights.IsGGUF(path) {
		dtype = tensor.F32
	}
	_, err = convert.Model(path, out, convert.Options{DType: dtype, Force: force, Edit: edit})
	return err
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
