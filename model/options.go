package model

import (
	"hash/fnv"
	"math"
	"math/rand/v2"
	"strings"

	"nha/autograd"
	"nha/tensor"
	"nha/weights"
)

// LoadOptions say what a loaded model is for.
type LoadOptions struct {
	Train   bool                   // allocate gradients, so that it can be trained
	Trains  func(name string) bool // which tensors: nil, all of them. The others have no gradient
	LoRA    *LoRA                  // updates of low rank, which train; nil: none
	Own     bool                   // its tensors are copies, which Set may change
	Share   *Model                 // the model whose frozen tensors this one takes instead of loading them; it must stay open
	Shares  func(name string) bool // which of them, those that are the same in both files; nil: all
	Windows string                 // a pattern that replaces the model's windows (SPEC 2); empty: as stored
	// Cache is the type of the keys and values in decode states: F16 halves their memory on the cpu backends. None: F16 for quantised weights and
	// for GGUF files in F16 on backend cpu, else the backend's type.
	Cache  tensor.DType
	Hybrid *Hybrid // makes a hybrid of a pretrained model: its gates are zero, for the caller to set
}

func (o *LoadOptions) trains(name string) bool {
	if !o.Train {
		return false
	}
	return isLoRA(name) || o.Trains == nil || o.Trains(name)
}

// shared is the tensor of the model that this one shares with.
func (o *LoadOptions) shared(s weights.Spec) (*autograd.Value, bool) {
	if o.Share == nil || o.trains(s.Name) || o.Shares != nil && !o.Shares(s.Name) {
		return nil, false
	}
	p, ok := o.Share.Parameter(s.Name)
	return p.Value, ok && !p.Value.Gradient.Present() && p.Value.Shape == s.Shape
}

// LoRA adds B A to projections W, A [r, in] and B [out, r] (Hu et al. 2021). The factor alpha / r of the paper is part of B here, so that its
// learning rate wants that factor; B starts at 0, A uniform within 1/sqrt(in).
type LoRA struct {
	Rank    int
	Seed    uint64
	Targets func(name string) bool // of matrices, by the weight's name
}

// The names of the two matrices end as PEFT's do.
const loraA, loraB = ".lora_A.weight", ".lora_B.weight"

func loraNames(weight string) (a, b string) {
	stem := strings.TrimSuffix(weight, ".weight")
	return stem + loraA, stem + loraB
}

func isLoRA(name string) bool {
	return strings.HasSuffix(name, loraA) || strings.HasSuffix(name, loraB)
}

// Projections are the weights that it updates in a model: of the targets, the matrices of layers, experts and their routers left out.
func (l *LoRA) Projections(c *Config) (list []weights.Spec) {
	if l == nil {
		return nil
	}
	for _, s := range c.Specs() {
		if s.Shape.Rank() == 2 && strings.HasPrefix(s.Name, "model.layers.") && l.Targets(s.Name) && !c.ofExperts(s.Name) {
			list = append(list, s)
		}
	}
	return list
}

// specs are the tensors that it adds, in the order of the projections.
func (l *LoRA) specs(c *Config) (list []weights.Spec) {
	for _, s := range l.Projections(c) {
		a, b := loraNames(s.Name)
		list = append(list, weights.Spec{Name: a, Shape: tensor.Of(l.Rank, s.Shape.Dim(1))}, weights.Spec{Name: b, Shape: tensor.Of(s.Shape.Dim(0), l.Rank)})
	}
	return list
}

// stored reports whether a source has such tensors: a checkpoint of a run that trains them.
func (l *LoRA) stored(s weights.Source) bool {
	if l != nil {
		for _, name := range s.Names() {
			if isLoRA(name) {
				return true
			}
		}
	}
	return false
}

// start is the first value of one of them.
func (l *LoRA) start(p Parameter) (tensor.Tensor, bool) {
	if l == nil || !isLoRA(p.Name) {
		return tensor.Tensor{}, false
	}
	x := make([]float32, p.Value.Len())
	if strings.HasSuffix(p.Name, loraA) {
		h := fnv.New64a()
		h.Write([]byte(p.Name))
		r := rand.New(rand.NewPCG(l.Seed, h.Sum64()))
		bound := 1 / math.Sqrt(float64(p.Value.Dim(1)))
		for i := range x {
			x[i] = float32(bound * (2*r.Float64() - 1))
		}
	}
	return tensor.FromF32(x, p.Value.Shape.Dims()...), true
}
