package convert

import (
	"encoding/json"
	"fmt"

	"nha/model"
	"nha/tensor"
	"nha/weights"
)

// config is the text of the edited config.json.
func (e *Edit) config(text []byte) ([]byte, error) {
	if e == nil || e.Config == nil {
		return text, nil
	}
	c, err := model.ParseConfig(text)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	if err := e.Config(&c); err != nil {
		return nil, err
	}
	return json.MarshalIndent(c, "", "  ")
}

// tensors are the source's, edited, and those added. A changed tensor keeps the type that it was stored in, but for blocks, which
// would round the change away: then it is float32. Added ones have the configuration's type.
func (e *Edit) tensors(s weights.Source, config []byte) (list []weights.Named, err error) {
	for _, name := range s.Names() {
		t, _ := s.Tensor(name)
		n := weights.Named{Name: name, Tensor: t, As: t.DType}
		if e != nil && e.Tensor != nil {
			if n.Tensor, err = e.Tensor(name, t); err != nil {
				return nil, err
			}
			if n.As.Quantized() {
				n.As = n.Tensor.DType
			}
		}
		list = append(list, n)
	}
	if e == nil || len(e.Added) == 0 {
		return list, nil
	}
	c, err := model.ParseConfig(config)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	as, err := tensor.ParseDType(c.DType)
	if err != nil {
		return nil, err
	}
	for name, t := range e.Added {
		list = append(list, weights.Named{Name: name, Tensor: t, As: as})
	}
	return list, nil
}
