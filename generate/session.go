package generate

import (
	"context"
	"fmt"
	"math/bits"
	"slices"
	"unicode/utf8"

	"nha/autograd"
	"nha/model"
	"nha/tensor"
)

// Session is a sequence as far as it was read. Clone forks it; a clone kept from earlier rewinds it.
type Session struct {
	g      *Generator
	state  *model.State
	logits []float64 // for the next token, [vocabulary]; meaningless at position 0
	seen   bitset    // the tokens that occur in the sequence: all that a repetition penalty needs
	tail   []int32   // the last tokens, where they end in the middle of a character: all that the next piece of text needs
	torn   []byte    // that part of a character
}

// NewSession is a session that has read nothing.
func (g *Generator) NewSession() *Session {
	return &Session{g: g, state: g.m.NewState(), logits: make([]float64, g.m.Config.VocabSize), seen: newBitset(g.m.Config.VocabSize)}
}

// Position is the number of tokens read.
func (s *Session) Position() int { return s.state.Position }

// StateBytes is the memory of the decode state in all layers.
func (s *Session) StateBytes() int { return s.state.Bytes() }

// Logits is the model's logits for the next token, [vocabulary]; valid until the session reads on, and only to be read.
func (s *Session) Logits() []float64 { return s.logits }

// Clone is a session that goes on from here and shares nothing with s but the generator.
func (s *Session) Clone() *Session {
	return &Session{g: s.g, state: s.state.Clone(), logits: append([]float64(nil), s.logits...), seen: append(bitset(nil), s.seen...),
		tail: append([]int32(nil), s.tail...), torn: append([]byte(nil), s.torn...)}
}

// Step reads one token.
func (s *Session) Step(token int32) error { return s.g.Step([]*Session{s}, []int32{token}) }

// Prefill reads tokens, Generator.Chunk at a time. The end of ctx stops it between chunks; the session has then read a part.
func (s *Session) Prefill(ctx context.Context, tokens []int32) error {
	return s.read(ctx, tokens, nil, nil)
}

// PrefillShares is Prefill that calls visit with the slot share of every token.
func (s *Session) PrefillShares(ctx context.Context, tokens []int32, visit func(token int32, share Share)) error {
	return s.read(ctx, tokens, nil, visit)
}

// Score reads tokens and returns the model's log-probability of each, given all that came before it. The session must have
// read something. The logits of a whole chunk never exist.
func (s *Session) Score(ctx context.Context, tokens []int32) ([]float64, error) {
	if s.Position() == 0 {
		return nil, fmt.Errorf("the first token of a sequence has no probability: read a prompt first")
	}
	scores := make([]float64, 0, len(tokens))
	err := s.read(ctx, tokens, &scores, nil)
	return scores, err
}

// read is the one way in for more than a token.
func (s *Session) read(ctx context.Context, tokens []int32, scores *[]float64, visit func(int32, Share)) error {
	if len(tokens) == 0 {
		return nil
	}
	g := s.g
	if err := g.m.Check(&model.Batch{Tokens: tokens, Lengths: []int{len(tokens)}}); err != nil {
		return err
	}
	if g.Chunk < 1 {
		return fmt.Errorf("chunk %d: read at least 1 token at a time", g.Chunk)
	}
	for len(tokens) > 0 {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		part := tokens[:min(len(tokens), g.Chunk)]
		tokens = tokens[len(part):]
		if scores != nil {
			if err := s.score(scores, s.logits, part[0], s.Position()); err != nil {
				return err
			}
		}
		hidden := g.hidden([]*Session{s}, part, visit != nil)
		for i, id := range part {
			s.remember(id)
			if visit != nil {
				visit(id, g.share(i))
			}
		}
		last := len(part) - 1
		if scores != nil {
			for from := 0; from < last; from += scoreRows {
				to := min(last, from+scoreRows)
				g.logits(hidden, from, to)
				for r := from; r < to; r++ {
					g.widen(g.row, r-from)
					if err := s.score(scores, g.row, part[r+1], s.Position()-last+r); err != nil {
						return err
					}
				}
			}
		}
		g.logits(hidden, last, last+1)
		g.widen(s.logits, 0)
	}
	return nil
}

// scoreRows is how many rows of logits exist at a time when a continuation is scored.
const scoreRows = 32

// score appends the log-probability of the token at a position, given the logits before it.
func (s *Session) score(scores *[]float64, logits []float64, id int32, position int) error {
	lse, err := logSumExp(logits)
	if err != nil {
		return fmt.Errorf("logits for token %d of the sequence: %w", position, err)
	}
	*scores = append(*scores, logits[id]-lse)
	return nil
}

// hidden runs the model over equally many tokens of every session and advances their states.
func (g *Generator) hidden(sessions []*Session, tokens []int32, shares bool) *autograd.Value {
	g.tape.Reset()
	b := &g.batch
	b.Tokens, b.Lengths, b.States, b.Shares = tokens, b.Lengths[:0], b.States[:0], nil
	for _, s := range sessions {
		b.Lengths, b.States = append(b.Lengths, len(tokens)/len(sessions)), append(b.States, s.state)
	}
	if g.shares = g.shares[:0]; shares {
		b.Shares = g.note
		g.shares = slices.Grow(g.shares, len(tokens)*g.m.Config.NumHiddenLayers)[:len(tokens)*g.m.Config.NumHiddenLayers]
	}
	hidden := g.m.Hidden(g.tape, b)
	b.Tokens = nil
	return hidden
}

// noteShare takes in one layer's slot shares [N, Hq] as the mean over heads.
func (g *Generator) noteShare(layer int, share *autograd.Value) {
	heads, layers := share.Columns(), g.m.Config.NumHiddenLayers
	g.read(share.Tensor)
	for r := range share.Rows() {
		sum := 0.0
		for h := range heads {
			sum += g.host.Value(r*heads + h)
		}
		g.shares[r*layers+layer] = sum / float64(heads)
	}
}

// share is the slot share of a row of the last forward, zero if that did not ask.
func (g *Generator) share(row int) Share {
	if len(g.shares) == 0 {
		return Share{}
	}
	layers := g.m.Config.NumHiddenLayers
	s := Share{Layers: slices.Clone(g.shares[row*layers : (row+1)*layers])}
	for _, x := range s.Layers {
		s.Mean += x / float64(layers)
	}
	return s
}

// logits computes rows [from, to) of the logits and brings them to the host, where widen takes them one by one.
func (g *Generator) logits(hidden *autograd.Value, from, to int) {
	mark := g.tape.Mark()
	g.read(g.m.Logits(g.tape, hidden, from, to).Tensor)
	g.tape.Keep(mark, nil)
}

// read copies a tensor to host memory that is kept for the next.
func (g *Generator) read(t tensor.Tensor) {
	b := g.m.Backend()
	if g.buffer.Len() < t.Len() {
		g.buffer = tensor.New(b.DType(), tensor.Of(t.Len()))
	}
	g.host = g.buffer.At(0, t.Shape)
	b.Read(g.host, t)
}

// widen is a row of what read brought, as float64.
func (g *Generator) widen(dst []float64, row int) {
	host := g.host.Narrow(row, row+1)
	if host.DType != tensor.F32 {
		tensor.Convert(tensor.FromF64(dst, len(dst)), host)
		return
	}
	for i, x := range host.F32() {
		dst[i] = float64(x)
	}
}

// remember notes a token that was read.
func (s *Session) remember(id int32) {
	s.seen.set(id)
	if s.g.tk.Special(id) {
		s.tail, s.torn = s.tail[:0], s.torn[:0]
		return
	}
	held := len(s.torn)
	s.torn = append(s.torn, s.g.tk.Token(id)...)
	switch from := tornFrom(s.torn); {
	case from == len(s.torn):
		s.tail, s.torn = s.tail[:0], s.torn[:0]
	case from >= held:
		s.tail, s.torn = append(s.tail[:0], id), append(s.torn[:0], s.torn[from:]...)
	case len(s.torn) > held:
		s.tail = append(s.tail, id)
	}
}

// tornFrom is where a character begins that the end of b cuts, len(b) if there is none.
func tornFrom(b []byte) int {
	for i := len(b) - 1; i >= max(0, len(b)-utf8.UTFMax+1); i-- {
		if utf8.RuneStart(b[i]) {
			if !utf8.FullRune(b[i:]) {
				return i
			}
			break
		}
	}
	return len(b)
}

// bitset is a set of token ids.
type bitset []uint64

func newBitset(n int) bitset { return make(bitset, (n+63)/64) }

func (b bitset) set(id int32) { b[id>>6] |= 1 << (id & 63) }

// all calls f with every member, in order.
func (b bitset) all(f func(id int)) {
	for w, word := range b {
		for ; word != 0; word &= word - 1 {
			f(w<<6 + bits.TrailingZeros64(word))
		}
	}
}
