package model

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"runtime"
	"strings"

	"nha/autograd"
	"nha/backend"
	"nha/nn"
	"nha/tensor"
	"nha/weights"
)

// Init is how a new model's parameters start (SPEC 2).
type Init struct {
	Seed         uint64
	Std          float64 // of every matrix but the embedding; o_proj and down_proj are scaled by 1/sqrt(2 layers). 0 means 0.02
	EmbeddingStd float64 // 0 means Std
	GateBiasLow  float64 // gate_bias: linear over the slots of a head, from low ...
	GateBiasHigh float64 // ... to high
}

// New is a model with fresh parameters that can be trained. The same seed gives the same parameters on every backend.
func New(c Config, b backend.Backend, init Init) (*Model, error) {
	if err := c.Resolve(); err != nil {
		return nil, err
	}
	if init.Std == 0 {
		init.Std = 0.02
	}
	if init.EmbeddingStd == 0 {
		init.EmbeddingStd = init.Std
	}
	m := allocate(c, b, LoadOptions{Train: true})
	specs := c.Specs()
	// Drawn side by side, a few ahead of the one that is written.
	drawn := make([]chan tensor.Tensor, len(specs))
	for i := range drawn {
		drawn[i] = make(chan tensor.Tensor, 1)
	}
	ahead := make(chan struct{}, 2*runtime.GOMAXPROCS(0))
	go func() {
		for i, s := range specs {
			ahead <- struct{}{}
			go func() { drawn[i] <- init.start(&c, s) }()
		}
	}()
	for i, p := range m.parameters {
		m.write(p, <-drawn[i])
		<-ahead
	}
	return m, nil
}

// write sets a parameter, with its master where there is one.
func (m *Model) write(p Parameter, x tensor.Tensor) {
	m.b.Write(p.Value.Tensor, x)
	if m.master.Present() && p.Value.Gradient.Present() {
		m.b.Write(m.master.At(p.Offset, p.Value.Shape), x)
	}
}

// exact is a parameter with all its digits: the master where there is one.
func (m *Model) exact(p Parameter) tensor.Tensor {
	if m.master.Present() && p.Value.Gradient.Present() {
		return m.master.At(p.Offset, p.Value.Shape)
	}
	return p.Value.Tensor
}

// start draws one parameter, from a generator of its own so that no other parameter's shape matters.
func (in Init) start(c *Config, s weights.Spec) tensor.Tensor {
	x := make([]float32, s.Shape.Len())
	std := in.Std
	switch {
	case strings.HasSuffix(s.Name, c.names().gate+".bias"):
		for i := range x {
			slot := float64(i % c.NumSlots)
			x[i] = float32(in.GateBiasLow + (in.GateBiasHigh-in.GateBiasLow)*slot/math.Max(1, float64(c.NumSlots-1)))
		}
		return tensor.FromF32(x, s.Shape.Dims()...)
	case strings.HasSuffix(s.Name, ".bias"):
		return tensor.FromF32(x, s.Shape.Dims()...)
	case s.Shape.Rank() == 1:
		for i := range x {
			x[i] = 1
		}
		return tensor.FromF32(x, s.Shape.Dims()...)
	case s.Name == c.names().embedding:
		std = in.EmbeddingStd
	case strings.HasSuffix(s.Name, "o_proj.weight") || strings.HasSuffix(s.Name, "down_proj.weight"):
		std /= math.Sqrt(2 * float64(c.NumHiddenLayers))
	}
	h := fnv.New64a()
	h.Write([]byte(s.Name))
	r := rand.New(rand.NewPCG(in.Seed, h.Sum64()))
	for i := range x {
		x[i] = float32(std * r.NormFloat64())
	}
	return tensor.FromF32(x, s.Shape.Dims()...)
}

// align keeps every parameter's start in the flat buffers on a cache line.
const align = 16

// allocate builds the model over one flat buffer of parameters, what trains first, and one of gradients for what trains. A backend that computes
// in 16 bits trains float32 masters, of which the parameters are rounded copies: an update of a thousandth is lost on 8 bits.
// Gradients of parameters are float32 there too, so that batches that are accumulated lose nothing.
func allocate(c Config, b backend.Backend, o LoadOptions) *Model {
	specs := append(c.Specs(), o.LoRA.specs(&c)...)
	offsets, total, trained := make([]int, len(specs)), 0, 0
	for _, now := range []bool{true, false} {
		for i, s := range specs {
			if _, shared := o.shared(s); !shared && o.trains(s.Name) == now {
				offsets[i] = total
				total += (s.Shape.Len() + align - 1) / align * align
			}
		}
		if now {
			trained = total
		}
	}
	m := &Model{Config: c, b: b, data: b.Alloc(b.DType(), tensor.Of(total)), flat: tensor.Of(trained)}
	switch {
	case trained > 0 && b.DType().Size() == 2:
		m.gradients, m.master = b.Alloc(tensor.F32, m.flat), b.Alloc(tensor.F32, m.flat)
	case trained > 0:
		m.gradients = b.Alloc(b.DType(), m.flat)
	}
	values := map[string]*autograd.Value{}
	for i, s := range specs {
		var g tensor.Tensor
		v, shared := o.shared(s)
		if !shared {
			if o.trains(s.Name) {
				g = m.gradients.At(offsets[i], s.Shape)
			}
			v = autograd.Parameter(m.data.At(offsets[i], s.Shape), g)
		}
		values[s.Name] = v
		p := Parameter{Name: s.Name, Value: v, Offset: offsets[i]}
		m.tensors = append(m.tensors, p)
		if g.Present() {
			m.parameters = append(m.parameters, p)
		}
	}
	m.assemble(values)
	return m
}

// assemble wires the blocks to the parameters.
func (m *Model) assemble(values map[string]*autograd.Value) {
	c := &m.Config
	m.rope = c.Rope()
	m.embedding, m.head = values[c.names().embedding], values[headName]
	if c.TieWordEmbeddings {
		m.head = m.embedding
	}
	norm := func(s weights.Spec) nn.RMSNorm { return nn.RMSNorm{Weight: values[s.Name], Epsilon: c.NormEps} }
	linear := func(s linearSpecs) nn.Linear {
		a, b := loraNames(s.weight.Name)
		return nn.Linear{Weight: values[s.weight.Name], Bias: values[s.bias.Name], A: values[a], B: values[b]}
	}
	swiglu := func(s mlpSpecs) nn.SwiGLU {
		return nn.SwiGLU{Gate: linear(s.gate), Up: linear(s.up), Down: linear(s.down)}
	}
	m.norm = norm(weights.Spec{Name: normName})
	m.blocks = make([]block, c.NumHiddenLayers)
	for i := range m.blocks {
		op, err := c.Attention(i, m.rope)
		if err != nil {
			panic("model: unresolved configuration: " + err.Error())
		}
		s := c.layerSpecs(i)
		l := block{attention: op, attnNorm: norm(s.attnNorm), q: linear(s.q), k: linear(s.k), v: linear(s.v), gate: linear(s.f), qNorm: norm(s.qNorm),
			kNorm: norm(s.kNorm), outputNorm: norm(s.gNorm), o: linear(s.o), mlpNorm: norm(s.mlpNorm), activateValues: c.ValueActivation == "silu"}
		if c.Experts.In(i) {
			var experts []nn.SwiGLU
			for _, e := range s.experts {
				experts = append(experts, swiglu(e))
			}
			l.experts = nn.NewExperts(nn.Linear{Weight: values[s.router.Name]}, experts, c.Experts.TopK, c.Experts.Normalize)
		} else {
			l.mlp = swiglu(s.mlp)
		}
		m.blocks[i] = l
	}
}

// SetWindows moves the dial: the windows of all layers, with the same weights. States made before no longer fit.
func (m *Model) SetWindows(w Windows) error {
	c := m.Config
	c.LayerWindows = w
	if err := c.Resolve(); err != nil {
		return err
	}
	m.Config = c
	for i := range m.blocks {
		m.blocks[i].attention.Window = w[i]
	}
	return nil
}

// Flat is the buffers that hold the parameters that train and their gradients, for the optimiser: one element of padding or parameter
// each, in the order and at the offsets of Parameters.
func (m *Model) Flat() (data, gradients tensor.Tensor) { return m.data.At(0, m.flat), m.gradients }

// Master is the float32 buffer, laid out as Flat's, of which the parameters are rounded copies; absent where the parameters
// themselves are what is trained.
func (m *Model) Master() tensor.Tensor { return m.master }

// Hash identifies the function that the model computes, for states and sessions: its configuration (the windows apart, which states record
// themselves) and the first and last 4 KiB of every tensor.
func (m *Model) Hash() string {
	if m.hash != "" && !m.gradients.Present() { // a model that trains changes
		return m.hash
	}
	h := sha256.New()
	if err := json.NewEncoder(h).Encode(m.Config.function()); err != nil {
		panic(fmt.Sprintf("model: configuration does not encode: %v", err))
	}
	const part = 1024 // elements
	for _, p := range m.tensors {
		n := p.Value.Len()
		for _, from := range []int{0, max(0, n-part)} {
			piece := tensor.New(tensor.F32, tensor.Of(min(part, n)))
			m.b.Read(piece, m.exact(p).At(from, piece.Shape))
			h.Write([]byte(p.Name))
			_ = binary.Write(h, binary.LittleEndian, piece.F32()) // a hash does not fail
		}
	}
	m.hash = hex.EncodeToString(h.Sum(nil))
	return m.hash
}

// Close gives back what the model holds: its memory, and the files it reads from.
func (m *Model) Close() error {
	var first error
	for _, c := range m.closers {
		if err := c(); err != nil && first == nil {
			first = err
		}
	}
	for _, t := range []tensor.Tensor{m.data, m.gradients, m.master} {
		if t.Present() {
			m.b.Free(t)
		}
	}
	return first
}
