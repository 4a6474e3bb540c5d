package train

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"

	"nha/autograd"
	"nha/backend"
	"nha/data"
	"nha/model"
	"nha/tokenizer"
)

// Run trains a model from text files in a run directory: a new run, or with o.Resume one that was stopped. The backend must be
// registered. A cancelled context ends it with ErrInterrupted once the step at work is done and saved.
func Run(ctx context.Context, o Options, r Reporter) (Result, error) {
	l, end, err := o.begin(ctx, r)
	if err != nil {
		return Result{}, err
	}
	defer end()
	result, err := l.Run(ctx)
	if errors.Is(err, ErrInterrupted) {
		err = fmt.Errorf("%w; go on with: nha train --resume %s", err, o.Out)
	}
	return result, err
}

// begin does what comes before the first step. The function it returns closes what it has opened.
func (o *Options) begin(ctx context.Context, r Reporter) (_ *Loop, _ func(), err error) {
	if r == nil {
		r = silent{}
	}
	if err := o.Resolve(); err != nil {
		return nil, nil, err
	}
	var closers []func()
	end := func() {
		for _, c := range slices.Backward(closers) {
			c()
		}
	}
	out, err := o.openOut()
	if err != nil {
		return nil, nil, err
	}
	closers = append(closers, out.close)
	defer func() {
		if err != nil {
			end()
			out.discard()
		}
	}()
	text, err := o.openText(ctx, r)
	if err != nil && ctx.Err() != nil {
		return nil, nil, fmt.Errorf("%w while the text was read: nothing to go on from yet", ErrInterrupted)
	}
	if err != nil {
		return nil, nil, err
	}
	closers = append(closers, text.close)
	b, err := backend.OpenBest(o.Backend, o.Threads, r.Notice)
	if err != nil {
		return nil, nil, err
	}
	o.Backend = b.Name()
	closers = append(closers, func() { b.Close() })
	identity := o.identity()
	identity["tokenizer"], identity["data"] = text.tokenizer.Hash(), text.train.Fingerprint()
	m, err := o.startModel(text, b, identity)
	if err != nil {
		return nil, nil, err
	}
	closers = append(closers, func() { m.Close() })
	loader, err := data.NewLoader(text.train, data.LoaderOptions{Context: o.Context, Batch: o.Batch, Seed: o.Seed, Shuffle: true})
	if err != nil {
		return nil, nil, err
	}
	source := NewAhead(NewLoaderSource(loader))
	closers = append(closers, source.Close)
	t, err := NewTrainer(m, o.Settings, source)
	if err != nil {
		return nil, nil, err
	}
	t.Compiling = r.Compiling
	closers = append(closers, t.Close)
	l := &Loop{Trainer: t, Dir: o.Out, SaveTokenizer: text.tokenizer.Save, Identity: identity, Reporter: r}
	if text.held != nil {
		v := data.LoaderOptions{Context: o.Context, Batch: o.Batch}
		l.Validate = func(ctx context.Context) (Validation, error) {
			return Evaluate(ctx, m, t.Tape(), text.held, v, o.ValidateBatches)
		}
	}
	if o.Resume {
		if err := l.Restore(); err != nil {
			return nil, nil, err
		}
	}
	return l, end, o.write(filepath.Join(o.Out, runFile))
}

// corpus is the tokenised text of a run.
type corpus struct {
	tokenizer   tokenizer.Tokenizer
	train, held *data.View // held: nil when nothing is to be validated
	datasets    []*data.Dataset
}

func (c *corpus) close() {
	for _, d := range c.datasets {
		d.Close()
	}
}

func (o *Options) openTokenizer() (tokenizer.Tokenizer, error) {
	switch {
	case o.Tokenizer == "bytes" || o.Tokenizer == "" && o.Model == "":
		return tokenizer.Bytes{EndOfText: true}, nil
	case o.Tokenizer == "":
		return model.Tokenizer(o.Model)
	}
	return tokenizer.Load(o.Tokenizer)
}

func (o *Options) openText(ctx context.Context, r Reporter) (_ *corpus, err error) {
	c := &corpus{}
	if c.tokenizer, err = o.openTokenizer(); err != nil {
		return nil, err
	}
	cache, err := data.CacheDir(o.Cache)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	prepare := func(paths []string) (*data.Dataset, error) {
		spec := data.Spec{Paths: paths, Field: o.Field, Separator: o.Separator}
		d, err := data.Prepare(ctx, spec, c.tokenizer, data.Options{CacheDir: cache, Threads: o.Threads, Progress: r.Preparing, Notice: r.Notice})
		if err != nil {
			return nil, err
		}
		c.datasets = append(c.datasets, d)
		return d, nil
	}
	d, err := prepare(o.Data)
	if err != nil {
		return nil, err
	}
	c.train = d.All()
	switch {
	case len(o.Validation) > 0:
		held, err := prepare(o.Validation)
		if err != nil {
			return nil, err
		}
		c.held = held.All()
	case o.HeldOut > 0:
		if c.train, c.held, err = d.Split(o.HeldOut, o.Seed); err != nil {
			return nil, fmt.Errorf("held_out: %w", err)
		}
	}
	return c, nil
}

// startModel is the model as it begins, or as the last checkpoint of a resumed run holds it. It adds to identity what makes
// the model: its configuration, or the directory it comes from.
func (o *Options) startModel(text *corpus, b backend.Backend, identity map[string]string) (*model.Model, error) {
	vocabulary := text.tokenizer.VocabSize()
	if o.Model != "" {
		identity["model"], identity["windows"] = o.Model, o.Windows
	} else {
		c, err := o.config(vocabulary)
		if err != nil {
			return nil, err
		}
		if err := describe(c, identity); err != nil {
			return nil, err
		}
	}
	if o.Resume {
		list, err := Checkpoints(o.Out)
		if err != nil {
			return nil, err
		}
		if len(list) > 0 {
			return model.Load(list[len(list)-1], b, model.LoadOptions{Train: true})
		}
	}
	return o.newModel(vocabulary, special(text.tokenizer.BOS()), special(text.tokenizer.EOS()), b)
}

func special(id int32, ok bool) *int {
	if !ok {
		return nil
	}
	n := int(id)
	return &n
}

// describe adds a configuration to an identity, key by key.
func describe(c model.Config, identity map[string]string) error {
	text, err := json.Marshal(c)
	if err != nil {
		return err
	}
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(text, &keys); err != nil {
		return err
	}
	for k, v := range keys {
		identity[k] = strings.Trim(string(v), `"`)
	}
	return nil
}

// loaderSource is a data.Loader as a Source.
type loaderSource struct {
	loader *data.Loader
	batch  data.Batch
}

// NewLoaderSource makes a Source of a loader.
func NewLoaderSource(l *data.Loader) Source { return &loaderSource{loader: l} }

func (s *loaderSource) Next(b *model.Batch) error {
	s.batch = data.Batch{Tokens: b.Tokens, Targets: b.Targets, Lengths: b.Lengths}
	if !s.loader.Next(&s.batch) {
		return errors.New("the data is at its end")
	}
	b.Tokens, b.Targets, b.Lengths = s.batch.Tokens, s.batch.Targets, s.batch.Lengths
	return nil
}

func (s *loaderSource) State() (json.RawMessage, error) { return json.Marshal(s.loader.State()) }

func (s *loaderSource) Restore(state json.RawMessage) error {
	var at data.LoaderState
	if err := json.Unmarshal(state, &at); err != nil {
		return fmt.Errorf("position in the data: %w", err)
	}
	return s.loader.Restore(at)
}

// Evaluate is a model's loss on the first batches of a view, 0 for all of it. Bits per byte of a part of the text are reckoned
// with the whole text's bytes per token.
func Evaluate(ctx context.Context, m *model.Model, t *autograd.Tape, v *data.View, o data.LoaderOptions, batches int) (Validation, error) {
	o.Once, o.Shuffle = true, false
	loader, err := data.NewLoader(v, o)
	if err != nil {
		return Validation{}, err
	}
	recording := t.Recording()
	t.Record(false)
	defer func() { t.Reset(); t.Record(recording) }()
	var from data.Batch
	sum, predicted := 0.0, 0
	for i := 0; (batches == 0 || i < batches) && loader.Next(&from); i++ {
		if err := ctx.Err(); err != nil {
			return Validation{}, err
		}
		b := model.Batch{Tokens: from.Tokens, Targets: from.Targets, Lengths: from.Lengths}
		if err := m.Check(&b); err != nil {
			return Validation{}, err
		}
		t.Reset()
		part, n := m.Loss(t, &b, 0)
		sum, predicted = sum+part, predicted+n
	}
	if predicted == 0 {
		return Validation{}, errors.New("no token of the validation text is to be predicted")
	}
	loss := sum / float64(predicted)
	return Validation{Loss: Number(loss), BitsPerByte: Number(loss * float64(v.Predicted()) / math.Ln2 / float64(v.TextBytes()))}, nil
}
