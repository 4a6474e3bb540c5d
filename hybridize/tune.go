package hybridize

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"nha/atomicfile"
	"nha/attention"
	"nha/autograd"
	"nha/backend"
	"nha/data"
	"nha/model"
	"nha/plot"
	"nha/tensor"
	"nha/tokenizer"
	"nha/weights"
)

// TuneOptions are a search for the windows of a model.
type TuneOptions struct {
	Model  string
	Base   string // gives layers its own attention where their window is not the model's; empty: the model's is kept
	Budget Budget
	Data   []string // text whose loss is measured
	Out    string   // windows file; beside it OUT.jsonl, the journal, OUT.costs.json, and with Pareto OUT.svg and OUT.png
	Apply  bool     // write the windows into the model's configuration

	Choices      []int // windows a layer may have, ascending
	Context      int   // tokens of a row of text
	Rows         int   // of it
	RecallLength int   // tokens of passkey samples; 0: recall is not measured
	RecallCount  int   // samples
	RecallWeight float64
	Haystack     string
	Exchanges    int
	Pareto       []int // numbers of full layers for the picture; none: no picture
	Randoms      int   // random placements for each of them
	Seed         uint64

	Backend  string
	Threads  int
	Cache    string
	Notice   func(string)                     // may be nil
	Progress func(stage string, done, of int) // may be nil
}

// DefaultTuneOptions are those of the verb.
func DefaultTuneOptions() TuneOptions {
	return TuneOptions{Choices: []int{64, attention.Full}, Context: 2048, Rows: 8, RecallLength: 1000, RecallCount: 50, RecallWeight: 1, Exchanges: 40, Randoms: 3, Seed: 42}
}

// Tuned is what a search found.
type Tuned struct {
	*Choice
	Points []Point // of the picture
}

// Point is one placement of full layers.
type Point struct {
	Placement string // search (what was found), harm (the worst layers alone), even or random
	Full      int    // layers at the largest window
	Bytes     int    // of state at 32768 tokens
	Windows   model.Windows
	Quality   Quality
}

// paretoLength is where the picture's bytes are counted.
const paretoLength = 32 << 10

// tuner is a search at work.
type tuner struct {
	*TuneOptions
	m       *model.Model
	tk      tokenizer.Tokenizer
	batches []model.Batch
	keys    []model.Batch // of recall
	data    string        // fingerprint
	tape    *autograd.Tape
	// By layer, where there is a base: the attention's tensors, the model's own and the base's, and which it has now.
	own, base []map[string]tensor.Tensor
	fromBase  []bool
	fitted    model.Windows // the model's own: what its attention was trained at
}

// Tune searches, writes the windows file and, where asked to, the picture and the model.
func Tune(ctx context.Context, o TuneOptions) (_ *Tuned, err error) {
	if o.Notice == nil {
		o.Notice = func(string) {}
	}
	if err := o.check(); err != nil {
		return nil, err
	}
	path, err := model.Find(o.Model)
	if err != nil {
		return nil, err
	}
	if o.Apply && weights.IsGGUF(path) {
		return nil, fmt.Errorf("apply: %s is a GGUF file and stays as it is: convert it to a directory to apply windows", path)
	}
	b, err := backend.OpenBest(o.Backend, o.Threads, o.Notice)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	t := &tuner{TuneOptions: &o}
	if t.tk, err = model.Tokenizer(path); err != nil {
		return nil, err
	}
	if t.m, err = model.Load(path, b, model.LoadOptions{Own: o.Base != ""}); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, t.m.Close()) }()
	for _, n := range o.Pareto {
		if layers := t.m.Config.NumHiddenLayers; n < 0 || n > layers {
			return nil, fmt.Errorf("pareto: %d full layers: %s has %d layers", n, o.Model, layers)
		}
	}
	t.fitted = slices.Clone(t.m.Config.LayerWindows)
	hash := t.m.Hash()
	if t.batches, err = t.read(ctx); err != nil {
		return nil, err
	}
	if t.keys, err = t.passkeys(ctx); err != nil {
		return nil, err
	}
	if err := t.readBase(); err != nil {
		return nil, err
	}
	t.tape = autograd.New(b)
	t.tape.Record(false)
	defer t.tape.Close()
	var times CostTable
	if o.Budget.Kind == StepTime {
		if times, err = MeasureCosts(ctx, o.Out+".costs.json", path, hash, b, o.Budget.At, o.Choices); err != nil {
			return nil, err
		}
	}
	cost := o.Budget.Cost(&t.m.Config, times)
	j, err := OpenJournal(o.Out+".jsonl", map[string]string{"model": hash, "base": o.Base, "data": t.data, "context": strconv.Itoa(o.Context), "rows": strconv.Itoa(o.Rows),
		"recall": fmt.Sprintf("%d x %d, seed %d, %s", o.RecallCount, o.RecallLength, o.Seed, o.Haystack), "backend": b.Name()})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, j.Close()) }()
	measure := j.Remember(func(w model.Windows) (Quality, error) { return t.measure(ctx, w) })
	s := &Search{Layers: t.m.Config.NumHiddenLayers, Choices: o.Choices, Cost: cost, Budget: o.Budget.Limit, RecallWeight: o.RecallWeight, Exchanges: o.Exchanges, Measure: measure, Progress: o.Progress}
	c, err := s.Run(ctx)
	if err != nil {
		return nil, err
	}
	r := &Tuned{Choice: c}
	if err := t.pareto(ctx, s, r, measure); err != nil {
		return nil, err
	}
	if err := r.write(&o, s); err != nil {
		return nil, err
	}
	if o.Apply {
		err = t.apply(path, c.Windows)
	}
	return r, err
}

func (o *TuneOptions) check() error {
	slices.Sort(o.Choices)
	o.Choices = slices.Compact(o.Choices)
	switch {
	case len(o.Choices) < 2:
		return errors.New("choices: name at least two windows, such as 64,full")
	case o.Apply && o.Base != "":
		return fmt.Errorf("apply: layers of another window take the base's attention: nha hybridize %s --from %s --windows @%s --out DIR makes that model", o.Base, o.Model, o.Out)
	case o.Out == "":
		return errors.New("out: name a file for the windows")
	case len(o.Data) == 0:
		return errors.New("data: name a text whose loss is to be measured")
	case o.Context < 2 || o.Rows < 1:
		return fmt.Errorf("context %d, rows %d: must be at least 2 and 1", o.Context, o.Rows)
	case o.RecallLength < 0 || o.RecallLength > 0 && o.RecallCount < 1:
		return fmt.Errorf("recall: %d samples of %d tokens", o.RecallCount, o.RecallLength)
	case o.Exchanges < 0 || o.Randoms < 0:
		return fmt.Errorf("exchanges %d, randoms %d: must be 0 or more", o.Exchanges, o.Randoms)
	}
	return nil
}

// read is the text's first rows.
func (t *tuner) read(ctx context.Context) ([]model.Batch, error) {
	cache, err := data.CacheDir(t.Cache)
	if err != nil {
		return nil, err
	}
	d, err := data.Prepare(ctx, data.Spec{Paths: t.Data}, t.tk, data.Options{CacheDir: cache, Threads: t.Threads, Notice: t.Notice})
	if err != nil {
		return nil, err
	}
	defer d.Close()
	t.data = d.All().Fingerprint()
	if n := d.All().Tokens(); n < int64(t.Context) {
		return nil, fmt.Errorf("%s: %d tokens, less than a context of %d: give more text, or lower context", strings.Join(t.Data, ", "), n, t.Context)
	}
	l, err := data.NewLoader(d.All(), data.LoaderOptions{Context: t.Context, Batch: 1, Seed: t.Seed, Shuffle: true})
	if err != nil {
		return nil, err
	}
	var list []model.Batch
	for range t.Rows {
		var from data.Batch
		l.Next(&from)
		list = append(list, model.Batch{Tokens: from.Tokens, Targets: from.Targets, Lengths: from.Lengths})
	}
	return list, nil
}

// attentionNames are the base's tensors of a layer's attention.
func attentionNames(c *model.Config, layer int) (names []string) {
	for _, name := range specNames(c) {
		if layerOf(name) == layer && strings.Contains(name, "self_attn") {
			names = append(names, name)
		}
	}
	return names
}

// readBase keeps both attentions of every layer at hand.
func (t *tuner) readBase() error {
	if t.Base == "" {
		return nil
	}
	path, err := model.Find(t.Base)
	if err != nil {
		return err
	}
	c, err := model.ReadConfig(path)
	if err != nil {
		return err
	}
	source, err := openWeights(path)
	if err != nil {
		return err
	}
	defer source.Close()
	for layer := range c.NumHiddenLayers {
		own, base := map[string]tensor.Tensor{}, map[string]tensor.Tensor{}
		for _, name := range attentionNames(&c, layer) {
			p, ok := t.m.Parameter(name)
			x, there := source.Tensor(name)
			if !ok || !there || p.Value.Shape != x.Shape {
				return fmt.Errorf("%s is no base of %s: tensor %s differs in shape or is missing", t.Base, t.Model, name)
			}
			own[name], base[name] = t.m.Host(p, tensor.F32), tensor.New(tensor.F32, x.Shape)
			tensor.Convert(base[name], x)
		}
		t.own, t.base, t.fromBase = append(t.own, own), append(t.base, base), append(t.fromBase, false)
	}
	return nil
}

func openWeights(path string) (weights.Source, error) {
	if weights.IsGGUF(path) {
		return weights.OpenGGUF(path)
	}
	return weights.OpenDir(path)
}

// place gives the model windows, and layers the base's attention where their window is not the one that the model's own was trained at.
func (t *tuner) place(w model.Windows) error {
	for layer := range t.fromBase {
		want := w[layer] != t.fitted[layer]
		if want == t.fromBase[layer] {
			continue
		}
		from := t.own[layer]
		if want {
			from = t.base[layer]
		}
		for name, x := range from {
			p, _ := t.m.Parameter(name)
			t.m.Set(p, x)
		}
		t.fromBase[layer] = want
	}
	return t.m.SetWindows(w)
}

func (t *tuner) measure(ctx context.Context, w model.Windows) (q Quality, err error) {
	if err := t.place(w); err != nil {
		return q, err
	}
	if q.Loss, err = meanLoss(ctx, t.m, t.tape, t.batches); err != nil {
		return q, err
	}
	if t.RecallLength == 0 {
		q.Recall = 1
		return q, nil
	}
	lost, err := meanLoss(ctx, t.m, t.tape, t.keys)
	q.Recall = math.Exp(-lost)
	return q, err
}

// point is windows in the picture.
func (t *tuner) point(placement string, w model.Windows, q Quality) Point {
	c := t.m.Config
	c.LayerWindows = w
	p := Point{Placement: placement, Bytes: c.Account(paretoLength).StateBytes, Windows: w, Quality: q}
	for _, window := range w {
		if window == t.Choices[len(t.Choices)-1] {
			p.Full++
		}
	}
	return p
}

// pareto measures the picture's points beside what was found: so many full layers by the harm they do alone, evenly spaced, and at random.
func (t *tuner) pareto(ctx context.Context, s *Search, r *Tuned, measure func(model.Windows) (Quality, error)) error {
	small, large := t.Choices[0], t.Choices[len(t.Choices)-1]
	order := s.Order(r.Choice)
	add := func(placement string, chosen []int) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		w := Place(s.Layers, chosen, small, large)
		q, err := measure(w)
		if err != nil {
			return err
		}
		r.Points = append(r.Points, t.point(placement, w, q))
		return nil
	}
	if len(t.Pareto) > 0 {
		r.Points = append(r.Points, t.point("search", r.Windows, r.Quality))
	}
	for i, n := range t.Pareto {
		if err := add("harm", order[:n]); err != nil {
			return err
		}
		if n > 0 && n < s.Layers {
			if err := add("even", Even(s.Layers, n)); err != nil {
				return err
			}
			for k := range t.Randoms {
				if err := add("random", Random(s.Layers, n, t.Seed+uint64(k))); err != nil {
					return err
				}
			}
		}
		s.report("pareto", i+1, len(t.Pareto))
	}
	return nil
}

// write writes the windows file and the picture.
func (r *Tuned) write(o *TuneOptions, s *Search) error {
	var order []string
	for _, l := range s.Order(r.Choice) {
		order = append(order, strconv.Itoa(l))
	}
	comment := fmt.Sprintf("%s: loss %.4f, recall %.3f; every layer at %s: loss %.4f, recall %.3f\ncost %.6g of %.6g (%s)\nlayers by the harm they do alone: %s", o.Model, r.Quality.Loss,
		r.Quality.Recall, windowName(o.Choices[len(o.Choices)-1]), r.Full.Loss, r.Full.Recall, r.Cost, o.Budget.Limit, o.Budget.Kind, strings.Join(order, " "))
	err := atomicfile.WriteFile(o.Out, 0o644, func(w io.Writer) error {
		_, err := io.WriteString(w, windowsFile(r.Windows, comment))
		return err
	})
	if err != nil || len(r.Points) == 0 {
		return err
	}
	chart := &plot.Chart{Title: "Where full layers stand", X: plot.Axis{Label: fmt.Sprintf("MiB of state at %d tokens", paretoLength)}, Y: plot.Axis{Label: "loss + weight x (1 - recall)"}}
	for _, of := range []struct{ placement, name string }{{"search", "search"}, {"harm", "the worst alone"}, {"even", "even"}, {"random", "the best random"}} {
		best := map[int]float64{} // by bytes
		for _, p := range r.Points {
			if score, seen := best[p.Bytes]; p.Placement == of.placement && (!seen || s.Score(p.Quality) < score) {
				best[p.Bytes] = s.Score(p.Quality)
			}
		}
		line := plot.Series{Name: of.name, Points: true, Dashed: of.placement != "harm"}
		for _, bytes := range slices.Sorted(maps.Keys(best)) {
			line.X, line.Y = append(line.X, float64(bytes)/(1<<20)), append(line.Y, best[bytes])
		}
		chart.Series = append(chart.Series, line)
	}
	return chart.Write(o.Out)
}

// apply writes the windows into the model's config.json.
func (t *tuner) apply(path string, w model.Windows) error {
	c, err := model.ReadConfig(path)
	if err != nil {
		return err
	}
	if err := c.ApplyWindows(w.String()); err != nil {
		return err
	}
	return model.WriteConfig(path, &c)
}
