// Package generate lets a model speak: it reads prompts, samples tokens one after the other, and keeps what was read as
// sessions that can be continued, forked, saved and loaded.
//
// A Session is a value: the decode state of every layer (SPEC 1.1), the logits after its last token, and which tokens it has
// seen. Its size does not grow with the sequence unless a window is full. Every token that Generate emits has been read into
// the session, so generating in two calls is generating in one: the random number behind a token depends on the seed and the
// token's position alone.
//
// A Generator serves one goroutine at a time, as the model under it does.
package generate

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"nha/autograd"
	"nha/backend"
	"nha/model"
	"nha/tensor"
	"nha/tokenizer"
)

// DefaultChunk is how many tokens of a prompt are read at a time on a backend: activations for more never exist. On a card it is many, as
// sessions are values on the host: their states, a full window's keys and values among them, travel there and back with every chunk.
func DefaultChunk(b backend.Backend) int {
	if backend.OnHost(b) {
		return 512
	}
	return 16384
}

// Generator is a model with its tokenizer and the scratch memory that all sessions share.
type Generator struct {
	Chunk  int  // tokens of a prompt read at a time; New sets DefaultChunk of the backend
	Shares bool // give every Token its slot share (SPEC 1)

	m       *model.Model
	tk      tokenizer.Tokenizer
	tape    *autograd.Tape
	batch   model.Batch
	buffer  tensor.Tensor // host memory for what comes from the backend
	host    tensor.Tensor // the part of it that holds the last
	row     []float64     // one row of logits
	shares  []float64     // of the last forward, [N, layers], mean over heads
	note    func(layer int, share *autograd.Value)
	sampler sampler
	steps   backend.Decoder // nil until it is asked for
	plain   bool            // there is none
	landed  tensor.Tensor   // logits of a sequence that leaves it
}

// New is a generator over a model and its tokenizer, both of which stay the caller's.
func New(m *model.Model, tk tokenizer.Tokenizer) *Generator {
	g := &Generator{Chunk: DefaultChunk(m.Backend()), m: m, tk: tk, tape: autograd.New(m.Backend()), row: make([]float64, m.Config.VocabSize)}
	g.tape.Record(false)
	g.note = g.noteShare
	return g
}

// Close gives the scratch memory back to the backend; the model stays open.
func (g *Generator) Close() {
	if g.steps != nil {
		g.steps.Close()
	}
	g.tape.Close()
}

// Token is one token of a continuation. The texts of all tokens, one after the other, are the continuation's text: valid
// UTF-8 at every moment, without special tokens and without the stop string.
type Token struct {
	ID      int32
	Text    string  // what is complete with this token; empty while a character or a possible stop string is
	LogProb float64 // natural logarithm of the model's own probability, before penalty, temperature and filters
	Share   Share   // how much of its attention read long-term memory; zero unless Generator.Shares
}

// Share is the slot share of one token (SPEC 1): how much of its attention went to long-term memory, from 0 to 1.
type Share struct {
	Mean   float64   // over layers and heads
	Layers []float64 // per layer, mean over heads
}

// FinishReason says why a continuation ended.
type FinishReason string

const (
	Unfinished FinishReason = ""          // an error came first
	Stop       FinishReason = "stop"      // an end token or a stop string
	Length     FinishReason = "length"    // Sampling.MaxNewTokens
	Cancelled  FinishReason = "cancelled" // the context
)

// Prompt is the ids of a text that a new session starts with: what the tokenizer's template puts in front, and the text's. A
// text that continues a session is the tokenizer's Encode alone.
func (g *Generator) Prompt(text string) []int32 {
	if text == "" {
		return nil // Generate knows what to start from
	}
	before, _ := g.tk.Template()
	return g.tk.EncodeAppend(append([]int32(nil), before...), text)
}

// start is the prompt that stands for an empty one.
func (g *Generator) start() ([]int32, error) {
	if id, ok := g.tk.BOS(); ok {
		return []int32{id}, nil
	}
	if id, ok := g.tk.EOS(); ok {
		return []int32{id}, nil
	}
	return nil, errors.New("empty prompt, and the tokenizer has no token that begins or ends a text: give a prompt")
}

// begin reads a prompt into s. A session that has read nothing starts from BOS, or EOS, when the prompt is empty.
func (g *Generator) begin(ctx context.Context, s *Session, prompt []int32) error {
	if len(prompt) == 0 && s.Position() == 0 {
		var err error
		if prompt, err = g.start(); err != nil {
			return err
		}
	}
	return s.Prefill(ctx, prompt)
}

// Generate reads prompt into s and continues it, calling emit with every new token once the session has read it. An empty
// prompt continues s as it is; one for a session that has read nothing starts from BOS, or EOS where there is no BOS. An error
// of emit, and the end of ctx, stop it after a token: s then holds all that was emitted.
func (g *Generator) Generate(ctx context.Context, s *Session, prompt []int32, o Sampling, emit func(Token) error) (FinishReason, error) {
	if err := o.Check(g.m.Config.VocabSize); err != nil {
		return Unfinished, err
	}
	if err := g.begin(ctx, s, prompt); err != nil {
		return Unfinished, err
	}
	reasons, err := g.Continue(ctx, []*Session{s}, o, func(_ int, t Token) error { return emit(t) })
	return reasons[0], err
}

// Samples reads prompt into s once and continues n forks of it side by side, which it returns; s stays after the prompt. Sample
// i is what Generate gives with Sampling.Sample + i.
func (g *Generator) Samples(ctx context.Context, s *Session, prompt []int32, o Sampling, n int, emit func(sample int, t Token) error) ([]*Session, []FinishReason, error) {
	if n < 1 {
		return nil, nil, fmt.Errorf("%d samples: ask for at least 1", n)
	}
	if err := o.Check(g.m.Config.VocabSize); err != nil {
		return nil, nil, err
	}
	if err := g.begin(ctx, s, prompt); err != nil {
		return nil, nil, err
	}
	forks := make([]*Session, n)
	for i := range forks {
		forks[i] = s.Clone()
	}
	reasons, err := g.Continue(ctx, forks, o, emit)
	return forks, reasons, err
}

// stream is one of the sequences that are extended side by side.
type stream struct {
	session *Session // nil once it is over
	o       Sampling
	sample  int
	emit    func(t Token) error
	done    func()                // called when it is over; nil: nobody wants to know
	where   func(err error) error // says in an error whose sequence it is; nil: there is no need
	row     int                   // in the last step of a decoder
	read    bool                  // it has had one

	text    textStream
	count   int
	id      int32 // the token that is read next, or was last
	logProb float64
	reason  FinishReason
}

func (g *Generator) newStream(s *Session, o Sampling, sample int, emit func(t Token) error) *stream {
	return &stream{session: s, o: o, sample: sample, emit: emit, text: newTextStream(g.tk, o.Stop, s.tail)}
}

// at is an error of this stream.
func (q *stream) at(err error) error {
	if q.where == nil {
		return err
	}
	return q.where(err)
}

// draw chooses the next token from the session's logits.
func (q *stream) draw(p *sampler) (err error) {
	s := q.session
	u := uniform(q.o.Seed, q.sample, s.Position())
	if q.id, q.logProb, err = p.next(&q.o, s.logits, s.seen, u); err != nil {
		return fmt.Errorf("after token %d of the sequence: %w", s.Position()-1, err)
	}
	return nil
}

// Continue extends several sessions, each with its own length and history, by one packed step a token; the i-th draws as
// sample o.Sample + i. The reasons are in the order of the sessions, empty for those that an error left unfinished; after one
// of emit, sessions later in the list have read a token that was not emitted.
func (g *Generator) Continue(ctx context.Context, sessions []*Session, o Sampling, emit func(i int, t Token) error) ([]FinishReason, error) {
	reasons := make([]FinishReason, len(sessions))
	if err := o.Check(g.m.Config.VocabSize); err != nil {
		return reasons, err
	}
	streams := make([]*stream, len(sessions))
	var active []*stream
	for i, s := range sessions {
		if s.Position() == 0 {
			return reasons, errors.New("a session that has read nothing cannot be continued: give a prompt")
		}
		streams[i] = g.newStream(s, o, o.Sample+i, func(t Token) error { return emit(i, t) })
		if o.MaxNewTokens == 0 {
			streams[i].reason = Length
			continue
		}
		active = append(active, streams[i])
	}
	err := g.extend(ctx, active)
	for i, q := range streams {
		reasons[i] = q.reason
	}
	if err == nil && slices.Contains(reasons, Cancelled) {
		err = context.Cause(ctx)
	}
	return reasons, err
}

// extend continues streams until all are over.
func (g *Generator) extend(ctx context.Context, streams []*stream) error {
	if d := g.decoder(); d != nil {
		return g.fly(ctx, d, streams, nil)
	}
	active := slices.Clone(streams)
	var sessions []*Session
	var ids []int32
	for len(active) > 0 {
		sessions, ids = sessions[:0], ids[:0]
		for _, q := range active {
			if err := q.draw(&g.sampler); err != nil {
				return err
			}
			sessions, ids = append(sessions, q.session), append(ids, q.id)
		}
		if err := g.Step(sessions, ids); err != nil {
			return err
		}
		cancelled := ctx.Err() != nil
		left := 0
		for i, q := range active {
			t := Token{ID: q.id, LogProb: q.logProb, Share: g.share(i)}
			t.Text, q.reason = q.push(t.ID, cancelled)
			if err := q.emit(t); err != nil {
				return err
			}
			if q.reason == Unfinished {
				active[left] = q
				left++
			}
		}
		active = active[:left]
	}
	return nil
}

// push takes in a token: what text it completes, and whether it is the last.
func (q *stream) push(id int32, cancelled bool) (string, FinishReason) {
	q.count++
	if q.o.ends(id) {
		return q.text.end(), Stop
	}
	text, stopped := q.text.push(id)
	switch {
	case stopped:
		return text, Stop
	case q.count == q.o.MaxNewTokens:
		return text + q.text.release(), Length
	case cancelled:
		return text + q.text.release(), Cancelled
	}
	return text, Unfinished
}

// Step reads one token into each session, in one packed forward: the logits of all are then those of the next token. A token
// outside the vocabulary is an error, and nothing is read.
func (g *Generator) Step(sessions []*Session, tokens []int32) error {
	if len(tokens) != len(sessions) || len(tokens) == 0 {
		return fmt.Errorf("%d tokens for %d sessions: give each session one", len(tokens), len(sessions))
	}
	for _, id := range tokens {
		if id < 0 || int(id) >= g.m.Config.VocabSize {
			return fmt.Errorf("token %d is outside the model's vocabulary of %d", id, g.m.Config.VocabSize)
		}
	}
	g.logits(g.hidden(sessions, tokens, g.Shares), 0, len(tokens))
	for i, s := range sessions {
		g.widen(s.logits, i)
		s.remember(tokens[i])
	}
	return nil
}
