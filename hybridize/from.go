package hybridize

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"nha/model"
	"nha/tensor"
	"nha/weights"
)

// A conversion may go on from an earlier one of the same base (Recipe.From): attention transfer is the same for every placement of full layers,
// so it is done once, with all windows small, and placements are tried from there. What is taken over is what that conversion changed: gates, and
// the tensors that it trained, or its updates of low rank. A layer whose window is another here begins with the base's attention and with the
// other's gate: queries and keys that were fitted to a short window have forgotten how to find anything far away.
type origin struct {
	path    string
	hash    string
	windows model.Windows
	lora    *Adapter       // of its updates of low rank, where the recipe has such; nil: it is taken as it stands
	source  weights.Source // its tensors
}

// openOrigin finds the conversion that the recipe starts from, and checks that it can.
func (c *conversion) openOrigin(hybrid *model.Config) (_ *origin, err error) {
	o := &origin{}
	if o.path, err = model.Find(c.From); err != nil {
		return nil, fmt.Errorf("from: %w", err)
	}
	if weights.IsGGUF(o.path) {
		return nil, fmt.Errorf("from: %s is a GGUF file: name the directory that a conversion wrote", c.From)
	}
	config, err := model.ReadConfig(o.path)
	if err != nil {
		return nil, fmt.Errorf("from: %w", err)
	}
	o.windows = config.LayerWindows
	if config.NumSlots != hybrid.NumSlots {
		return nil, fmt.Errorf("from: %s has %d slots, this conversion %d: give both the same", c.From, config.NumSlots, hybrid.NumSlots)
	}
	same := func(a, b weights.Spec) bool { return a.Name == b.Name && a.Shape == b.Shape }
	if !slices.EqualFunc(config.Specs(), hybrid.Specs(), same) {
		return nil, fmt.Errorf("from: %s has not the tensors of a conversion of %s: name one of this base", c.From, c.Base)
	}
	if len(c.LoRA.Targets) > 0 {
		if err := o.readUpdates(c); err != nil {
			return nil, fmt.Errorf("from: %w", err)
		}
	}
	if o.hash, err = baseHash(o.path); err != nil {
		return nil, fmt.Errorf("from: %w", err)
	}
	if o.source, err = weights.OpenDir(o.path); err != nil {
		return nil, fmt.Errorf("from: %w", err)
	}
	for _, name := range o.source.Names() {
		if x, _ := o.source.Tensor(name); !x.DType.Float() {
			return nil, errors.Join(fmt.Errorf("from: %s is quantised: name the conversion as it was written", c.From), o.source.Close())
		}
	}
	return o, nil
}

// readUpdates reads the low-rank updates, which must be those of the recipe.
func (o *origin) readUpdates(c *conversion) error {
	dir := filepath.Join(o.path, adapterName)
	a, err := ReadAdapter(dir)
	if err != nil {
		return fmt.Errorf("the recipe has lora, so %s must have been made with it: %w", c.From, err)
	}
	var names []string
	for _, p := range c.lora().Projections(&c.config) {
		names = append(names, p.Name)
	}
	for _, name := range names {
		if _, ok := a.A[name]; !ok {
			return fmt.Errorf("%s has no update of %s, which lora.targets names: use the recipe's lora that it was made with", dir, name)
		}
	}
	if len(a.A) != len(names) || a.Rank != c.LoRA.Rank || a.Alpha != c.LoRA.Alpha {
		return fmt.Errorf("%s has %d updates of rank %d and alpha %v, the recipe %d of rank %d and alpha %v: use the recipe's lora that it was made with",
			dir, len(a.A), a.Rank, a.Alpha, len(names), c.LoRA.Rank, c.LoRA.Alpha)
	}
	o.lora = a
	return nil
}

func (o *origin) close() error {
	if o == nil {
		return nil
	}
	return o.source.Close()
}

// checkBase refuses a conversion of another base, where it says of which it is one.
func (o *origin) checkBase(hash, base string) error {
	said := ""
	if o.lora != nil {
		said = o.lora.NHA.BaseHash
	}
	text, err := os.ReadFile(filepath.Join(o.path, reportName))
	if err == nil {
		var r Report
		if err := json.Unmarshal(text, &r); err != nil {
			return fmt.Errorf("from: %s: %w", filepath.Join(o.path, reportName), err)
		}
		said = r.BaseHash
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if said != "" && said != hash {
		return fmt.Errorf("from: %s was made of another base than %s (hash %.12s, this one has %.12s)", o.path, base, said, hash)
	}
	return nil
}

// restored says that a tensor is the base's, as its layer has another window here.
func (o *origin) restored(name string, now model.Windows) bool {
	layer := layerOf(name)
	return layer >= 0 && o.windows[layer] != now[layer] && (strings.Contains(name, "self_attn") || strings.Contains(name, "input_layernorm")) && name != gateName(layer)
}

// changed are the tensors to begin with in place of the base's, its gates among them.
func (o *origin) changed(hybrid *model.Config, base weights.Source) (map[string]tensor.Tensor, error) {
	list := map[string]tensor.Tensor{}
	for _, s := range hybrid.Specs() {
		if o.restored(s.Name, hybrid.LayerWindows) {
			continue
		}
		x, ok := o.source.Tensor(s.Name)
		if o.lora != nil {
			x, ok = o.lora.Modules[s.Name]
		}
		was, there := base.Tensor(s.Name)
		if !ok || there && sameNumbers(x, was) {
			continue
		}
		list[s.Name] = tensor.New(tensor.F32, x.Shape)
		tensor.Convert(list[s.Name], x)
	}
	for layer := range hybrid.LayerWindows {
		if _, ok := list[gateName(layer)]; hybrid.NumSlots > 0 && !ok {
			return nil, fmt.Errorf("from: %s: no gate of layer %d", o.path, layer)
		}
	}
	return list, nil
}

// sameNumbers reports whether x is y in x's type.
func sameNumbers(x, y tensor.Tensor) bool {
	if x.Shape != y.Shape {
		return false
	}
	rounded := tensor.New(x.DType, y.Shape)
	exact := tensor.New(tensor.F32, y.Shape)
	tensor.Convert(exact, y)
	tensor.Convert(rounded, exact)
	return bytes.Equal(x.Bytes(), rounded.Bytes())
}

// updates are the low-rank matrices to begin with, by the model's names, where B holds the factor alpha / r: those of layers that are the
// base's again start anew.
func (o *origin) updates(now model.Windows) map[string]tensor.Tensor {
	if o == nil || o.lora == nil {
		return nil
	}
	list := map[string]tensor.Tensor{}
	for name, a := range o.lora.A {
		if o.restored(name, now) {
			continue
		}
		stem := strings.TrimSuffix(name, weightSuffix)
		b := o.lora.B[name].Clone()
		for i := range b.F32() {
			b.F32()[i] *= float32(o.lora.Alpha / float64(o.lora.Rank))
		}
		list[stem+loraASuffix], list[stem+loraBSuffix] = a, b
	}
	return list
}
