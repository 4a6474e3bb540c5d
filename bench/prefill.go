package bench

import (
	"context"
	"math/rand/v2"

	"nha/autograd"
	"nha/backend"
	"nha/generate"
	"nha/model"
	"nha/tensor"
)

// Prefill measures how fast a prompt is read: its tokens go through the model in chunks, as generation reads them, from an
// empty state to the logits after the last.
type Prefill struct {
	Model  string // a preset or a model
	Size   ModelSize
	DTypes []string // as Decode's
	Tokens []int    // lengths of prompts
	Chunk  int      // tokens read at a time; 0: as generation does
	Timing
}

// PrefillResult is one length.
type PrefillResult struct {
	Backend         string  `json:"backend"`
	Model           string  `json:"model"`
	DType           string  `json:"dtype"`
	Tokens          int     `json:"tokens"`
	MS              float64 `json:"ms"` // time to the logits of the first new token
	TokensPerSecond float64 `json:"tokens_per_s"`
	StateBytes      int     `json:"state_bytes"`
	ResidentBytes   int     `json:"resident_bytes"`
}

func (o *Prefill) loader() *Decode {
	return &Decode{Model: o.Model, Size: o.Size, DTypes: o.DTypes, Batches: []int{1}, Depths: []int{0}, Timing: o.Timing}
}

// Check refuses models, types and lengths that are none.
func (o *Prefill) Check() error {
	for _, err := range []error{o.loader().Check(), positive("tokens", o.Tokens, 1), positive("chunk", []int{o.Chunk}, 0)} {
		if err != nil {
			return err
		}
	}
	return nil
}

// Run measures every combination.
func (o *Prefill) Run(ctx context.Context, b backend.Backend, emit Emit) error {
	if o.Chunk == 0 {
		o.Chunk = generate.DefaultChunk(b)
	}
	return o.loader().eachType(b, func(m *model.Model) error {
		for _, n := range o.Tokens {
			row, err := o.measure(ctx, b, m, n)
			if err != nil {
				return err
			}
			if err := emit(row); err != nil {
				return err
			}
		}
		return nil
	})
}

func (o *Prefill) measure(ctx context.Context, b backend.Backend, m *model.Model, tokens int) (PrefillResult, error) {
	p := newPrompt(m, tokens, o.Chunk)
	defer p.tape.Close()
	settle()
	seconds, err := o.median(ctx, p.read)
	if err != nil {
		return PrefillResult{}, err
	}
	row := PrefillResult{Backend: b.Name(), Model: o.Model, DType: dtypeName(m.Tensors()[0].Value.DType), Tokens: tokens, MS: seconds * 1e3,
		TokensPerSecond: float64(tokens) / seconds, StateBytes: p.state.Bytes()}
	row.ResidentBytes, _, _ = resident()
	return row, nil
}

// prompt is a text that is read again and again.
type prompt struct {
	m      *model.Model
	tape   *autograd.Tape
	ids    []int32
	chunk  int
	state  *model.State
	logits tensor.Tensor // on the host
}

// newPrompt is a text of random tokens, read chunk at a time. Its tape is to be closed.
func newPrompt(m *model.Model, tokens, chunk int) *prompt {
	b := m.Backend()
	p := &prompt{m: m, tape: autograd.New(b), chunk: chunk, logits: tensor.New(b.DType(), tensor.Of(1, m.Config.VocabSize))}
	p.tape.Record(false)
	r := rand.New(rand.NewPCG(1, 2))
	for range tokens {
		p.ids = append(p.ids, r.Int32N(int32(m.Config.VocabSize)))
	}
	return p
}

func (p *prompt) read() {
	p.state = p.m.NewState()
	for from := 0; from < len(p.ids); from += p.chunk {
		to := min(from+p.chunk, len(p.ids))
		p.tape.Reset()
		hidden := p.m.Hidden(p.tape, &model.Batch{Tokens: p.ids[from:to], Lengths: []int{to - from}, States: []*model.State{p.state}})
		if to == len(p.ids) {
			p.m.Backend().Read(p.logits, p.m.Logits(p.tape, hidden, to-from-1, to-from).Tensor)
		}
	}
}
