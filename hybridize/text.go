package hybridize

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"

	"nha/autograd"
	"nha/data"
	"nha/model"
	"nha/tensor"
	"nha/train"
)

// text is what a conversion trains on, holds out and looks at first.
type text struct {
	parts       []textPart
	datasets    []*data.Dataset
	held        *data.View    // running text held out; nil: there is none
	heldChats   []model.Batch // held out where all the text is chats
	calibration []model.Batch // a little of it, in rows of the context
}

// textPart is one source of the recipe, of one kind or the other.
type textPart struct {
	Data
	view  *data.View
	chats *chats
}

const (
	heldOut           = 0.01 // of the first running text, where the recipe names nothing to validate on
	validationRows    = 8    // rows of held-out text in a validation, and in the measurements of a report
	calibrationTokens = 8192
	writtenTokens     = 512 // of the base's own, where a conversion has no text
)

func (t *text) close() {
	for _, d := range t.datasets {
		d.Close()
	}
}

func (c *conversion) openText(ctx context.Context) (_ *text, err error) {
	t := &text{}
	defer func() {
		if err != nil {
			t.close()
		}
	}()
	cache, err := data.CacheDir(c.Cache)
	if err != nil {
		return nil, err
	}
	prepare := func(files []string, field string) (*data.Dataset, error) {
		d, err := data.Prepare(ctx, data.Spec{Paths: files, Field: field}, c.tk, data.Options{CacheDir: cache, Threads: c.Threads, Progress: c.Reporter.Preparing, Notice: c.Reporter.Notice})
		if err == nil {
			t.datasets = append(t.datasets, d)
		}
		return d, err
	}
	if len(c.Validation) > 0 {
		d, err := prepare(c.Validation, "")
		if err != nil {
			return nil, err
		}
		t.held = d.All()
	}
	for _, source := range c.Data {
		p := textPart{Data: source}
		if source.Kind == chatKind {
			if p.chats, err = readChats(source.Files, c.path, c.tk, c.Context); err != nil {
				return nil, err
			}
			t.parts = append(t.parts, p)
			continue
		}
		d, err := prepare(source.Files, source.Field)
		if err != nil {
			return nil, err
		}
		if p.view = d.All(); t.held == nil {
			if p.view, t.held, err = d.Split(heldOut, c.Seed); err != nil {
				return nil, err
			}
		}
		if n := p.view.Tokens(); n < int64(c.Context) {
			return nil, fmt.Errorf("%s: %d tokens of training text, less than a context of %d: give more text, or lower context", strings.Join(source.Files, ", "), n, c.Context)
		}
		t.parts = append(t.parts, p)
	}
	for i := range t.parts {
		if p := &t.parts[i]; t.held == nil && p.chats != nil {
			t.heldChats = append(t.heldChats, p.chats.holdOut(c.Seed)...)
		}
	}
	return t, t.calibrate(c)
}

// calibrate takes the first rows of the text.
func (t *text) calibrate(c *conversion) error {
	if len(t.parts) == 0 {
		return nil // the base writes some itself
	}
	source, err := t.source(c.Seed, c.Context, 1)
	if err != nil {
		return err
	}
	for tokens := 0; tokens < calibrationTokens; {
		var b model.Batch
		if err := source.Next(&b); err != nil {
			return err
		}
		tokens += len(b.Tokens)
		t.calibration = append(t.calibration, b)
	}
	return nil
}

// source deals out the text in batches of rows, in an order that seed decides.
func (t *text) source(seed uint64, context, rows int) (train.Source, error) {
	m := &mixture{}
	for _, p := range t.parts {
		s, err := p.open(seed, context, rows)
		if err != nil {
			return nil, err
		}
		m.parts = append(m.parts, mixturePart{source: s, weight: p.Weight})
	}
	return m, nil
}

func (p *textPart) open(seed uint64, context, rows int) (train.Source, error) {
	if p.chats != nil {
		return p.chats.source(seed, context*rows), nil
	}
	l, err := data.NewLoader(p.view, data.LoaderOptions{Context: context, Batch: rows, Seed: seed, Shuffle: true})
	if err != nil {
		return nil, err
	}
	return train.NewLoaderSource(l), nil
}

// fingerprint tells texts apart.
func (t *text) fingerprint() string {
	var list []string
	for _, p := range t.parts {
		f := ""
		if p.chats != nil {
			f = p.chats.hash
		} else {
			f = p.view.Fingerprint()
		}
		list = append(list, fmt.Sprintf("%s*%v", f, p.Weight))
	}
	return strings.Join(list, " ")
}

// heldName is what heldBatches are of, for people.
func (t *text) heldName() string {
	switch {
	case t.held != nil:
		return "held-out text"
	case len(t.heldChats) > 0:
		return "held-out chats"
	case len(t.parts) > 0:
		return "the training text"
	}
	return "text that the base wrote"
}

// heldBatches are rows to measure on, always the same.
func (t *text) heldBatches(context int) ([]model.Batch, error) {
	switch {
	case len(t.heldChats) > 0:
		return t.heldChats, nil
	case t.held == nil:
		return t.calibration, nil
	}
	l, err := data.NewLoader(t.held, data.LoaderOptions{Context: context, Batch: 1, Once: true})
	if err != nil {
		return nil, err
	}
	var list []model.Batch
	for range validationRows {
		var from data.Batch
		if !l.Next(&from) {
			break
		}
		list = append(list, model.Batch{Tokens: from.Tokens, Targets: from.Targets, Lengths: from.Lengths})
	}
	if len(list) == 0 {
		return nil, errors.New("validation: the held-out text is empty: name a longer one")
	}
	return list, nil
}

// meanLoss is the next-token loss of a model over some rows, nats a token.
func meanLoss(ctx context.Context, m *model.Model, t *autograd.Tape, batches []model.Batch) (float64, error) {
	recording := t.Recording()
	t.Record(false)
	defer func() { t.Reset(); t.Record(recording) }()
	loss, predicted := 0.0, 0
	for i := range batches {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		t.Reset()
		sum, n := m.Loss(t, &batches[i], 0)
		loss, predicted = loss+sum, predicted+n
	}
	return loss / float64(predicted), nil
}

// write is a text that the base writes itself, sampled as it predicts: what its layers see of the world, where nothing else is at hand.
func write(ctx context.Context, base *model.Model, first int32, seed uint64) (model.Batch, error) {
	t := autograd.New(base.Backend())
	t.Record(false)
	defer t.Close()
	r, state := rand.New(rand.NewPCG(seed, 0)), base.NewState()
	b := model.Batch{Tokens: []int32{first}}
	host := tensor.New(tensor.F32, tensor.Of(1, base.Config.VocabSize))
	for len(b.Tokens) < writtenTokens {
		if err := ctx.Err(); err != nil {
			return b, err
		}
		t.Reset()
		h := base.Hidden(t, &model.Batch{Tokens: b.Tokens[len(b.Tokens)-1:], Lengths: []int{1}, States: []*model.State{state}})
		base.Backend().Read(host, base.Logits(t, h, 0, 1).Tensor)
		b.Tokens = append(b.Tokens, draw(host.F32(), r))
	}
	b.Targets = append(append(b.Targets, b.Tokens[1:]...), -1)
	b.Lengths = []int{len(b.Tokens)}
	return b, nil
}

// draw is a word of a row of logits by its probability: the largest of logit + Gumbel noise.
func draw(logits []float32, r *rand.Rand) int32 {
	best, at := 0.0, int32(-1)
	for i, l := range logits {
		if v := float64(l) - math.Log(r.ExpFloat64()); at < 0 || v > best {
			best, at = v, int32(i)
		}
	}
	return at
}
