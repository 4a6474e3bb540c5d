package generate

import (
	"context"
	"errors"
	"fmt"

	"nha/backend"
	"nha/tensor"
)

// Decoding by a program of whole steps, where the backend has one for the model (backend.Decoder): states live on the device while sequences are
// continued, tokens are drawn there, and a step is queued before the tokens of the one before have been seen here. A sequence comes with the
// state of its session and leaves with the state after its last token, so what a session is does not change.
//
//	step n     reads token n of every sequence, draws token n+1
//	meanwhile  token n is emitted; where it is the last, the sequence leaves after step n, which has read it

// decoder is the program, nil where there is none: plain calls then.
func (g *Generator) decoder() backend.Decoder {
	if g.Shares || g.plain {
		return nil
	}
	if g.steps == nil {
		d, err := g.m.Decoder()
		if err != nil {
			g.plain = true
			return nil
		}
		g.steps = d
	}
	return g.steps
}

// flight is the sequences that a decoder is continuing, in the order of its rows.
type flight struct {
	g       *Generator
	d       backend.Decoder
	streams []*stream
	seats   []int
	behind  []*stream // the rows of the last step, whose draws have not been asked for
	drawn   []backend.Drawn
}

// free is how many more sequences may come.
func (f *flight) free() int { return f.d.Rows() - len(f.streams) }

// join takes in a stream whose session has read its prompt. The first token is drawn here, from the session's logits.
func (f *flight) join(q *stream) error {
	s := q.session
	if err := q.draw(&f.g.sampler); err != nil {
		return q.at(err)
	}
	o := &q.o
	f.seats = append(f.seats, f.d.Join(s.state.Layers, s.seen, q.id, backend.Draw{Temperature: o.Temperature, TopP: o.TopP, MinP: o.MinP,
		RepetitionPenalty: o.RepetitionPenalty, TopK: o.TopK, Seed: o.Seed, Sample: q.sample}))
	f.streams = append(f.streams, q)
	return nil
}

// step lets every sequence read its token, emits it, and lets those that are over leave. An error ends the flight: all sessions are then as
// far as their sequences were read.
func (f *flight) step(ctx context.Context) error {
	f.d.Step(f.seats)
	err := f.receive()
	for i, q := range f.streams { // all of them have read it, whatever comes
		q.session.remember(q.id)
		q.row, q.read = i, true
	}
	cancelled := ctx.Err() != nil
	for _, q := range f.streams {
		if err != nil {
			break
		}
		t := Token{ID: q.id, LogProb: q.logProb}
		t.Text, q.reason = q.push(t.ID, cancelled)
		err = q.emit(t)
	}
	f.behind = append(f.behind[:0], f.streams...)
	return f.leave(err)
}

// receive takes in what the step before the last drew.
func (f *flight) receive() error {
	if len(f.behind) == 0 {
		return nil
	}
	var broken error
	f.drawn = f.d.Drawn(f.drawn)
	for i, q := range f.behind {
		if q.session == nil { // has left
			continue
		}
		q.id, q.logProb = f.drawn[i].Token, float64(f.drawn[i].LogProb)
		if q.id < 0 {
			q.id = 0 // what the step read
			broken = q.at(fmt.Errorf("after token %d of the sequence: %w", q.session.state.Position+q.count-1, errNotNumbers))
		}
	}
	f.behind = f.behind[:0]
	return broken
}

var errNotNumbers = errors.New("a logit is no finite number: the weights are damaged or training has diverged")

// leave brings back the sequences that are over, all of them where an error came. The last step has read their last token.
func (f *flight) leave(err error) error {
	left := 0
	for i, q := range f.streams {
		if err == nil && q.reason == Unfinished {
			f.streams[left], f.seats[left] = q, f.seats[i]
			left++
			continue
		}
		f.land(q, f.seats[i])
	}
	f.streams, f.seats = f.streams[:left], f.seats[:left]
	if left == 0 && len(f.behind) > 0 {
		f.drawn, f.behind = f.d.Drawn(f.drawn), f.behind[:0] // nobody reads them
	}
	return err
}

// land gives a session its state and logits back, where it has read anything.
func (f *flight) land(q *stream, seat int) {
	s := q.session
	q.session = nil
	if !q.read {
		f.d.Drop(seat)
		return
	}
	if f.g.landed.Len() == 0 {
		f.g.landed = tensor.New(tensor.F32, tensor.Of(len(s.logits)))
	}
	f.d.Leave(seat, q.row, s.state.Layers, f.g.landed)
	s.state.Position = s.state.Layers[0].Position
	for i, x := range f.g.landed.F32() {
		s.logits[i] = float64(x)
	}
	if q.done != nil && q.reason != Unfinished {
		q.done()
	}
}

// fly continues streams until all are over. More than fit wait, and next, where given, is asked for another whenever there is room: nil when there
// is none.
func (g *Generator) fly(ctx context.Context, d backend.Decoder, waiting []*stream, next func() (*stream, error)) error {
	f := &flight{g: g, d: d}
	for {
		for f.free() > 0 && (len(waiting) > 0 || next != nil) {
			var q *stream
			if len(waiting) > 0 {
				q, waiting = waiting[0], waiting[1:]
			} else {
				var err error
				if q, err = next(); err != nil {
					return f.leave(err)
				}
				if q == nil {
					next = nil
					break
				}
			}
			if err := f.join(q); err != nil {
				return f.leave(err)
			}
		}
		if len(f.streams) == 0 {
			return nil
		}
		if err := f.step(ctx); err != nil {
			return err
		}
	}
}
