package hybridize

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"nha/atomicfile"
	"nha/convert"
	"nha/model"
	"nha/tensor"
	"nha/weights"
)

// Adapter is what a conversion adds to a base model: low-rank updates of some projections (Hu et al. 2021),
//
//	W' = W + (alpha / r) B A,   A [r, in], B [out, r]
//
// and whole tensors, the gates, which the base does not have. In a directory it has PEFT's names, adapter_config.json and
// adapter_model.safetensors; what PEFT does not know, the windows and slots, stands in a block "nha".
type Adapter struct {
	Rank    int
	Alpha   float64
	Base    string // where the base came from, for people
	NHA     NHABlock
	A, B    map[string]tensor.Tensor // by the name of the projection's weight; F32
	Modules map[string]tensor.Tensor // whole tensors by name; F32
}

// NHABlock is the block "nha" of an adapter_config.json: what config.json of the hybrid gets (SPEC 2), and which base it is for.
type NHABlock struct {
	BaseHash            string  `json:"base_hash"` // model.Hash of the base
	NumSlots            int     `json:"num_slots"`
	LayerWindows        string  `json:"layer_windows"` // as on a command line
	EmptySlots          string  `json:"empty_slots"`
	GateLogitNormalizer float64 `json:"gate_logit_normalizer"`
	GateBias            bool    `json:"gate_bias,omitempty"`
}

// The names of PEFT.
const (
	adapterName        = "adapter" // folder in the hybrid's directory
	adapterConfigName  = "adapter_config.json"
	adapterWeightsName = "adapter_model.safetensors"
	adapterPrefix      = "base_model.model."
	weightSuffix       = ".weight"
	loraASuffix        = ".lora_A.weight"
	loraBSuffix        = ".lora_B.weight"
)

type adapterConfig struct {
	PEFTType      string   `json:"peft_type"`
	TaskType      string   `json:"task_type"`
	Base          string   `json:"base_model_name_or_path"`
	Rank          int      `json:"r"`
	Alpha         float64  `json:"lora_alpha"`
	Dropout       float64  `json:"lora_dropout"`
	Bias          string   `json:"bias"`
	FanInFanOut   bool     `json:"fan_in_fan_out"`
	InferenceMode bool     `json:"inference_mode"`
	UseRSLoRA     bool     `json:"use_rslora"`
	UseDoRA       bool     `json:"use_dora"`
	Targets       []string `json:"target_modules"`
	ModulesToSave []string `json:"modules_to_save"`
	NHA           NHABlock `json:"nha"`
}

// Save writes the adapter into dir, which must exist, with tensors of type as.
func (a *Adapter) Save(dir string, as tensor.DType) error {
	var list []weights.Named
	for name, t := range a.A {
		stem := adapterPrefix + strings.TrimSuffix(name, weightSuffix)
		list = append(list, weights.Named{Name: stem + loraASuffix, Tensor: t, As: as}, weights.Named{Name: stem + loraBSuffix, Tensor: a.B[name], As: as})
	}
	for name, t := range a.Modules {
		list = append(list, weights.Named{Name: adapterPrefix + name, Tensor: t, As: as})
	}
	if err := weights.Write(filepath.Join(dir, adapterWeightsName), map[string]string{"format": "pt"}, list); err != nil {
		return err
	}
	c := adapterConfig{PEFTType: "LORA", TaskType: "CAUSAL_LM", Base: a.Base, Rank: a.Rank, Alpha: a.Alpha, Bias: "none", InferenceMode: true,
		Targets: modules(a.A), ModulesToSave: modules(a.Modules), NHA: a.NHA}
	return atomicfile.WriteFile(filepath.Join(dir, adapterConfigName), 0o644, func(w io.Writer) error {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(c)
	})
}

// modules are the last parts of the names, PEFT's module names: q_proj of model.layers.0.self_attn.q_proj.weight.
func modules(tensors map[string]tensor.Tensor) []string {
	short := map[string]bool{}
	for name := range tensors {
		stem := strings.TrimSuffix(strings.TrimSuffix(name, weightSuffix), ".bias")
		short[stem[strings.LastIndexByte(stem, '.')+1:]] = true
	}
	return slices.Sorted(maps.Keys(short))
}

// ReadAdapter reads the adapter in dir. What it asks for beyond plain LoRA (DoRA, rank-stabilised scaling, biases, transposed
// weights) is an error, as is a tensor that belongs to neither an update nor a module.
func ReadAdapter(dir string) (*Adapter, error) {
	path := filepath.Join(dir, adapterConfigName)
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%s is not an adapter: %w", dir, err)
	}
	var c adapterConfig
	if err := json.Unmarshal(text, &c); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	switch {
	case c.PEFTType != "LORA":
		return nil, fmt.Errorf("%s: peft_type %q: only LORA is read", path, c.PEFTType)
	case c.UseDoRA || c.UseRSLoRA || c.FanInFanOut || c.Bias != "" && c.Bias != "none":
		return nil, fmt.Errorf("%s: use_dora, use_rslora, fan_in_fan_out and bias are not supported", path)
	}
	a := &Adapter{Rank: c.Rank, Alpha: c.Alpha, Base: c.Base, NHA: c.NHA, A: map[string]tensor.Tensor{}, B: map[string]tensor.Tensor{}, Modules: map[string]tensor.Tensor{}}
	file, err := weights.Open(filepath.Join(dir, adapterWeightsName))
	if err != nil {
		return nil, err
	}
	err = a.fill(file)
	if err := errors.Join(err, file.Close()); err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	return a, nil
}

func (a *Adapter) fill(s weights.Source) error {
	for _, full := range s.Names() {
		name, ok := strings.CutPrefix(full, adapterPrefix)
		if !ok {
			return fmt.Errorf("tensor %s: the names of an adapter begin with %s", full, adapterPrefix)
		}
		view, _ := s.Tensor(full)
		if !view.DType.Float() {
			return fmt.Errorf("tensor %s is %v: want F32, F16 or BF16", full, view.DType)
		}
		t := tensor.New(tensor.F32, view.Shape)
		tensor.Convert(t, view)
		if stem, ok := strings.CutSuffix(name, loraASuffix); ok {
			a.A[stem+weightSuffix] = t
		} else if stem, ok := strings.CutSuffix(name, loraBSuffix); ok {
			a.B[stem+weightSuffix] = t
		} else {
			a.Modules[name] = t
		}
	}
	for name, t := range a.A {
		b, ok := a.B[name]
		switch {
		case !ok:
			return fmt.Errorf("%s has lora_A and no lora_B", name)
		case t.Shape.Rank() != 2 || b.Shape.Rank() != 2 || t.Dim(0) != a.Rank || b.Dim(1) != a.Rank:
			return fmt.Errorf("%s: lora_A %v and lora_B %v do not have rank r = %d", name, t.Shape, b.Shape, a.Rank)
		}
	}
	for name := range a.B {
		if _, ok := a.A[name]; !ok {
			return fmt.Errorf("%s has lora_B and no lora_A", name)
		}
	}
	return nil
}

// Edit is the adapter as an edit of its base, of which c is the configuration and hash the model's: every tensor is updated where the adapter has
// something for it, its own tensors are added, the configuration gets slots and windows. A base other than the one that the adapter
// was trained on is an error, and so is an update of a tensor that the base does not have, or of another shape.
func (a *Adapter) Edit(c model.Config, hash string) (*convert.Edit, error) {
	if a.NHA.BaseHash != "" && hash != a.NHA.BaseHash {
		return nil, fmt.Errorf("the adapter was trained on another base (hash %.12s, this one has %.12s; it came from %q)", a.NHA.BaseHash, hash, a.Base)
	}
	shapes := map[string]tensor.Shape{}
	for _, s := range c.Specs() {
		shapes[s.Name] = s.Shape
	}
	for name, x := range a.A {
		s, ok := shapes[name]
		if !ok {
			return nil, fmt.Errorf("the adapter updates %s, which the base does not have", name)
		}
		if y := a.B[name]; s.Rank() != 2 || s.Dim(0) != y.Dim(0) || s.Dim(1) != x.Dim(1) {
			return nil, fmt.Errorf("the adapter's update of %s is [%d %d], the base has %v", name, y.Dim(0), x.Dim(1), s)
		}
	}
	e := &convert.Edit{Added: map[string]tensor.Tensor{}, Config: func(c *model.Config) error { return a.NHA.apply(c) }}
	for name, t := range a.Modules {
		if s, ok := shapes[name]; !ok {
			e.Added[name] = t
		} else if s != t.Shape {
			return nil, fmt.Errorf("the adapter's %s is %v, the base has %v", name, t.Shape, s)
		}
	}
	e.Tensor = func(name string, t tensor.Tensor) (tensor.Tensor, error) {
		if whole, ok := a.Modules[name]; ok {
			return whole, nil
		}
		if _, ok := a.A[name]; ok {
			return a.update(name, t), nil
		}
		return t, nil
	}
	return e, nil
}

// apply gives a base's configuration the slots and windows of the block.
func (b *NHABlock) apply(c *model.Config) error {
	if b.NumSlots > 0 {
		if err := c.Hybridize(model.Hybrid{Slots: b.NumSlots, EmptySlots: b.EmptySlots, GateLogitNormalizer: b.GateLogitNormalizer, GateBias: b.GateBias}); err != nil {
			return err
		}
	}
	if b.LayerWindows == "" { // an adapter of another program
		return nil
	}
	return c.ApplyWindows(b.LayerWindows)
}

// update is W + (alpha / r) B A in float32.
func (a *Adapter) update(name string, w tensor.Tensor) tensor.Tensor {
	merged := tensor.New(tensor.F32, w.Shape)
	tensor.Convert(merged, w)
	out, in, scale := w.Dim(0), w.Dim(1), float32(a.Alpha/float64(a.Rank))
	x, y, z := merged.F32(), a.A[name].F32(), a.B[name].F32()
	for i := range out {
		row := x[i*in : (i+1)*in]
		for r := range a.Rank {
			s := scale * z[i*a.Rank+r]
			for j, v := range y[r*in : (r+1)*in] {
				row[j] += s * v
			}
		}
	}
	return merged
}
