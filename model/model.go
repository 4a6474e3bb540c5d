// Package model is the language models: their configuration with a window for every layer, their blocks on the one operator,
// and their directories in Hugging Face's layout. One model serves training, prefill and decoding, which therefore compute
// the same function.
package model

import (
	"fmt"

	"nha/attention"
	"nha/autograd"
	"nha/backend"
	"nha/nn"
	"nha/tensor"
)

// Model is a language model on a backend. It serves one goroutine at a time.
type Model struct {
	Config Config

	b          backend.Backend
	tensors    []Parameter // all, in checkpoint order
	parameters []Parameter // those that train
	embedding  *autograd.Value
	blocks     []block
	norm       nn.RMSNorm
	head       *autograd.Value
	rope       *attention.Rope

	data, gradients tensor.Tensor // the flat buffers behind all tensors and behind the gradients; absent when they lie elsewhere
	flat            tensor.Shape  // of the part of data that trains
	master          tensor.Tensor // float32, where data is a rounded copy of it
	closers         []func() error
	hash            string
	generation      []byte       // the model's own generation_config.json; nil: none
	cache           tensor.DType // of the keys and values in states; none: the backend's
}

// Parameter is one tensor by its checkpoint name. Offset is where it starts in the flat buffers, in elements.
type Parameter struct {
	Name   string
	Value  *autograd.Value
	Offset int
}

// block is one layer of any family: x += mixer(norm(x)); x += mlp(norm(x)).
type block struct {
	attention     *attention.Config
	attnNorm      nn.RMSNorm
	q, k, v, gate nn.Linear  // gate: z, absent where M = 0
	qNorm, kNorm  nn.RMSNorm // per head; absent but in Qwen3
	outputNorm    nn.RMSNorm
	o             nn.Linear
	mlpNorm       nn.RMSNorm
	mlp           nn.SwiGLU
	experts       *nn.Experts // instead of mlp; nil: none

	activateValues bool
	flow           autograd.StateFlow
	inPlace        []*attention.State // scratch of states
}

// Batch is a packed batch: the tokens of all sequences, one after the other.
type Batch struct {
	Tokens  []int32
	Lengths []int                                  // tokens of every sequence
	Targets []int32                                // the token to predict after each token; negative: none. Needed for a loss only
	States  []*State                               // per sequence; advanced in place by a forward that does not record. nil: from empty, not kept
	Shares  func(layer int, share *autograd.Value) // when set, called with every layer's slot shares [N, Hq]
}

// Backend is where the model computes.
func (m *Model) Backend() backend.Backend { return m.b }

// Tensors lists all tensors in checkpoint order, the embedding first.
func (m *Model) Tensors() []Parameter { return m.tensors }

// Parameters lists the tensors that train, in checkpoint order; none of a model that was not loaded to train.
func (m *Model) Parameters() []Parameter { return m.parameters }

// Parameter finds a tensor by its checkpoint name.
func (m *Model) Parameter(name string) (Parameter, bool) {
	for _, p := range m.tensors {
		if p.Name == name {
			return p, true
		}
	}
	return Parameter{}, false
}

// Check refuses a batch that does not fit the model: a token outside the vocabulary, lengths that do not add up.
func (m *Model) Check(b *Batch) error {
	n := 0
	for _, l := range b.Lengths {
		if l < 1 {
			return fmt.Errorf("a sequence of %d tokens: every sequence needs at least one", l)
		}
		n += l
	}
	if n != len(b.Tokens) || n == 0 {
		return fmt.Errorf("%d tokens in sequences of %d in all", len(b.Tokens), n)
	}
	if b.Targets != nil && len(b.Targets) != n {
		return fmt.Errorf("%d targets for %d tokens", len(b.Targets), n)
	}
	if b.States != nil && len(b.States) != len(b.Lengths) {
		return fmt.Errorf("%d states for %d sequences", len(b.States), len(b.Lengths))
	}
	for _, list := range [][]int32{b.Tokens, b.Targets} {
		for _, id := range list {
			if int(id) >= m.Config.VocabSize {
				return fmt.Errorf("token %d is outside the model's vocabulary of %d: is this its tokenizer?", id, m.Config.VocabSize)
			}
		}
	}
	for _, id := range b.Tokens {
		if id < 0 {
			return fmt.Errorf("token %d is negative", id)
		}
	}
	return nil
}

// Hidden is the normed hidden states before the head, [N, hidden]. The batch must have passed Check. With States and a tape that does not
// record, the states are advanced in place.
func (m *Model) Hidden(t *autograd.Tape, b *Batch) *autograd.Value {
	x := m.Embed(t, b)
	for i := range m.blocks {
		mark := t.Mark()
		before := x
		x = m.blocks[i].forward(t, i, b, x)
		t.Keep(mark, x)
		t.Drop(before)
	}
	for i, s := range b.States {
		s.Position += b.Lengths[i]
	}
	return m.Norm(t, x)
}

// Norm is the last norm, from the residual stream to the hidden states before the head.
func (m *Model) Norm(t *autograd.Tape, x *autograd.Value) *autograd.Value {
	return m.norm.Forward(t, x)
}

// Embed is the residual stream [N, hidden] that enters the first layer.
func (m *Model) Embed(t *autograd.Tape, b *Batch) *autograd.Value {
	return t.Embed(m.embedding, t.Input(tensor.FromI32(b.Tokens, len(b.Tokens))))
}

// Attention is what the attention of one layer adds to the residual stream x [N, hidden], after o_proj; its normed input goes to input, unless
// that is nil.
func (m *Model) Attention(t *autograd.Tape, layer int, b *Batch, x *autograd.Value, input func(h *autograd.Value)) *autograd.Value {
	l := &m.blocks[layer]
	h := l.attnNorm.Forward(t, x)
	if input != nil {
		input(h)
	}
	return l.o.Forward(t, l.mix(t, layer, b, h))
}

// AfterAttention is the rest of a layer: the residual stream x + attention, [N, hidden], and what the MLP adds to it.
func (m *Model) AfterAttention(t *autograd.Tape, layer int, x, attention *autograd.Value) *autograd.Value {
	return m.blocks[layer].feed(t, t.Add(x, attention))
}

// forward maps the residual stream [N, hidden] to the next one.
func (l *block) forward(t *autograd.Tape, layer int, b *Batch, x *autograd.Value) *autograd.Value {
	return l.feed(t, l.o.AddTo(t, x, l.mix(t, layer, b, l.attnNorm.Forward(t, x))))
}

// feed adds the MLP to the residual stream.
func (l *block) feed(t *autograd.Tape, x *autograd.Value) *autograd.Value {
	h := l.mlpNorm.Forward(t, x)
	if l.experts != nil {
		return l.experts.AddTo(t, x, h)
	}
	return l.mlp.AddTo(t, x, h)
}

// mix is the operator with what belongs to it, [N, Hq*V], from the normed input h; o_proj comes after.
func (l *block) mix(t *autograd.Tape, layer int, b *Batch, h *autograd.Value) *autograd.Value {
	q, k, v := l.q.Forward(t, h), l.k.Forward(t, h), l.v.Forward(t, h)
	var z *autograd.Value
	if l.gate.Weight != nil {
		z = l.gate.Forward(t, h)
	}
	if l.qNorm.Weight != nil {
		q, k = l.qNorm.Forward(t, q), l.kNorm.Forward(t, k)
	}
	if l.activateValues {
		v = t.SiLU(v)
	}
	o, share := t.NHA(l.attention, b.Lengths, q, k, v, z, b.Shares != nil, l.states(layer, b))
	if b.Shares != nil {
		b.Shares(layer, share)
	}
	if l.outputNorm.Weight != nil {
		o = l.outputNorm.Forward(t, t.SiLU(o))
	}
	return o
}

// states is the batch's states of one layer, in place; nil where there are none.
func (l *block) states(layer int, b *Batch) *autograd.StateFlow {
	if b.States == nil {
		return nil
	}
	l.inPlace = l.inPlace[:0]
	for _, s := range b.States {
		l.inPlace = append(l.inPlace, s.Layers[layer])
	}
	l.flow = autograd.StateFlow{Initial: l.inPlace, Final: l.inPlace}
	return &l.flow
}

// Logits is the head's output for the given rows of hidden [N, hidden]: [to - from, vocabulary].
func (m *Model) Logits(t *autograd.Tape, hidden *autograd.Value, from, to int) *autograd.Value {
	return t.Linear(t.Rows(hidden, from, to), m.head, nil, nil)
}

// Loss is the summed negative log-likelihood, in nats, of the batch's targets and how many there are. When the tape records, the gradient of
// scale times that sum is ready for Backward. The batch must have passed Check.
func (m *Model) Loss(t *autograd.Tape, b *Batch, scale float64) (sum float64, count int) {
	losses, count := m.Losses(t, b, scale)
	return t.Sum(losses), count
}

// Losses is Loss token by token [N], 0 where there is no target, without waiting for a device: Tape.Sum does.
func (m *Model) Losses(t *autograd.Tape, b *Batch, scale float64) (losses *autograd.Value, count int) {
	hidden := m.Hidden(t, b)
	targets := t.Input(tensor.FromI32(b.Targets, len(b.Targets)))
	for _, id := range b.Targets {
		if id >= 0 {
			count++
		}
	}
	return t.CrossEntropy(hidden, m.head, targets, scale), count
}
