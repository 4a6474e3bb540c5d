package eval

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"nha/backend"
	"nha/model"
	"nha/tokenizer"
)

// Options say what is measured and how.
type Options struct {
	Tasks       []string // names of tasks and groups
	Data        string   // a folder with the datasets' files, or a file with the rows of the one task that needs some
	Limit       int      // documents of a task (at each length); 0: all
	Context     int      // tokens that the model reads at most; 0: the model's max_position_embeddings (generated prompts: as long as they are)
	Stride      int      // of task text
	Lengths     []int    // in place of the tasks' own
	Seed        uint64   // of generated samples
	Haystack    string   // text for needles and pass keys; "": built in
	BatchTokens int      // read in one forward; 0: 2048 on a CPU, 16384 elsewhere
	Cache       string   // folder that keeps answers until the evaluation is complete; "": nothing is kept

	Progress func(Progress)     // called after every batch, may be nil
	Sample   func(Sample) error // called with every document once its task is done, may be nil
}

// Progress is how far a task has come.
type Progress struct {
	Task         string
	Index, Tasks int // the how-manieth of how many
	Done, Total  int // tokens to read and to generate
	Documents    int
	TokensPerS   float64 // of this start of the evaluation
	Left         time.Duration
}

// Sample is one document with the model's answers.
type Sample struct {
	Model     string             `json:"model"`
	Task      string             `json:"task"`
	ID        int                `json:"doc_id"`
	Place     string             `json:"place"`
	Document  map[string]any     `json:"doc"`
	Target    string             `json:"target"`
	Arguments [][2]string        `json:"arguments"` // context or prompt, continuation
	Responses []any              `json:"resps"`     // [log-likelihood, greedy] of each, or the text
	Metrics   map[string]float64 `json:"metrics"`
}

// Run evaluates a model. Its errors name the task and, where a row or request is at fault, that. When ctx ends, what was answered is
// in the cache, and the same call goes on from there to the same numbers.
func Run(ctx context.Context, m *model.Model, tk tokenizer.Tokenizer, name string, o Options) (*Report, error) {
	tasks, err := Select(o.Tasks)
	if err != nil {
		return nil, err
	}
	if err := o.check(tasks); err != nil {
		return nil, err
	}
	if o.BatchTokens == 0 {
		if o.BatchTokens = 16384; backend.OnHost(m.Backend()) {
			o.BatchTokens = 2048
		}
	}
	r := &Report{Model: name, Hash: m.Hash(), Windows: m.Config.LayerWindows.String(), Backend: m.Backend().Name(), Context: o.Context, Limit: o.Limit,
		Seed: o.Seed, Started: time.Now()}
	if r.Context == 0 {
		r.Context = m.Config.MaxPositionEmbeddings
	}
	kept, err := openCache(o.Cache, r)
	if err != nil {
		return nil, err
	}
	defer kept.close()
	e := newEngine(m, tk, o.BatchTokens)
	defer e.close()
	// All tasks are built before the first is asked: a missing file is said at once.
	setups := make([]*setup, len(tasks))
	for i, t := range tasks {
		s := newSetup(t, m, tk, &o)
		s.name = name
		setups[i] = s
		if t.documents != nil && t.Source.Repository != "" {
			if err := s.check(); err != nil {
				return nil, err
			}
		}
	}
	for i, s := range setups {
		p := Progress{Task: s.task.Name, Index: i + 1, Tasks: len(tasks)}
		if s.task.measure != nil {
			if err = s.task.measure(ctx, s); err == nil {
				r.Tasks = append(r.Tasks, s.results)
			}
		} else if err = s.task.documents(ctx, s); err == nil {
			err = s.run(ctx, e, kept, p)
			r.Tasks = append(r.Tasks, s.results)
		}
		if err != nil {
			return nil, err
		}
		setups[i] = nil // its documents may be large
	}
	r.Groups = groups(r.Tasks)
	r.Elapsed = time.Since(r.Started)
	return r, kept.remove()
}

func (o *Options) check(tasks []*Task) error {
	switch {
	case o.Limit < 0:
		return fmt.Errorf("a limit of %d documents: want 0 (all) or more", o.Limit)
	case o.Context < 0:
		return fmt.Errorf("a context of %d tokens: want 0 (the model's) or more", o.Context)
	case o.BatchTokens < 0:
		return fmt.Errorf("batches of %d tokens: want 0 (chosen) or more", o.BatchTokens)
	}
	for _, l := range o.Lengths {
		if l < 1 {
			return fmt.Errorf("a length of %d tokens: want at least 1", l)
		}
	}
	wanting := 0
	for _, t := range tasks {
		if t.Source.Repository != "" {
			wanting++
		}
	}
	if info, err := os.Stat(o.Data); err == nil && !info.IsDir() && wanting > 1 {
		return fmt.Errorf("%s is one file, and %d of the tasks need files: give a folder", o.Data, wanting)
	}
	return nil
}

func newSetup(t *Task, m *model.Model, tk tokenizer.Tokenizer, o *Options) *setup {
	s := &setup{task: t, m: m, tk: tk, o: o, lengths: t.Lengths, results: &TaskResult{Task: t.Name, task: t}}
	limit := o.Context
	if limit == 0 && t.Source.Fields != "" { // of generated prompts the lengths say how long they are
		limit = m.Config.MaxPositionEmbeddings
	}
	s.encoder = newEncoder(tk, limit)
	if len(o.Lengths) > 0 && len(t.Lengths) > 0 {
		s.lengths = o.Lengths
	}
	return s
}

// check looks for the files of a task.
func (s *setup) check() error {
	lengths := s.lengths
	if len(lengths) == 0 {
		lengths = []int{0}
	}
	for _, l := range lengths {
		if _, err := s.task.locate(s.o.Data, l); err != nil {
			return err
		}
	}
	return nil
}

// run asks the model and measures its answers.
func (s *setup) run(ctx context.Context, e *engine, kept *cache, p Progress) error {
	var list []request
	var ends []int
	for i := range s.documents {
		list = append(list, s.documents[i].requests...)
		ends = append(ends, len(list))
	}
	answers := make([]answer, len(list))
	batches := e.plan(list, ends)
	p.Documents = len(s.documents)
	for i := range batches {
		p.Total += batches[i].tokens()
	}
	start, fresh := time.Now(), 0
	for i := range batches {
		b := &batches[i]
		if !kept.take(b, list, answers) {
			if err := e.answer(ctx, b, list, answers); err != nil {
				return err
			}
			if err := kept.put(b, list, answers); err != nil {
				return err
			}
			fresh += b.tokens()
		}
		p.Done += b.tokens()
		if s.o.Progress != nil {
			if fresh > 0 {
				p.TokensPerS = float64(fresh) / time.Since(start).Seconds()
				p.Left = time.Duration(float64(p.Total-p.Done) / p.TokensPerS * float64(time.Second))
			}
			s.o.Progress(p)
		}
	}
	t := s.results
	t.Documents, t.Skipped, t.Elapsed, t.Tokens = len(s.documents), s.skipped, time.Since(start), p.Total
	measures := make([][]measure, len(s.documents))
	from := 0
	for i := range s.documents {
		d := &s.documents[i]
		measures[i] = d.score(answers[from:ends[i]])
		for _, q := range d.requests {
			if q.truncated > 0 {
				t.Truncated++
			}
		}
		if s.o.Sample != nil {
			x := d.sample(s.task.Name, i, answers[from:ends[i]], measures[i])
			x.Model = s.name
			if err := s.o.Sample(x); err != nil {
				return err
			}
		}
		from = ends[i]
	}
	t.Values = aggregate(s.task, s.documents, measures)
	return nil
}

// sample is a document for --samples.
func (d *document) sample(task string, id int, answers []answer, measures []measure) Sample {
	x := Sample{Task: task, ID: id, Place: d.place, Document: d.fields, Target: d.target, Metrics: map[string]float64{}}
	for i, a := range answers {
		x.Arguments = append(x.Arguments, d.requests[i].arguments)
		if d.requests[i].generates() {
			x.Responses = append(x.Responses, a.Text)
		} else {
			x.Responses = append(x.Responses, []any{a.LogProb, a.Greedy})
		}
	}
	for _, m := range measures {
		x.Metrics[metricName(m.metric, d.length)] = m.value
	}
	return x
}

// cache keeps the answers of batches in a file, a line each, until the evaluation is complete.
type cache struct {
	path    string
	f       *os.File
	answers map[string]answer
}

type cacheLine struct {
	Key string `json:"key"`
	answer
}

// openCache reads what an earlier start of the same evaluation kept: of the same model, windows and backend.
func openCache(folder string, r *Report) (*cache, error) {
	c := &cache{answers: map[string]answer{}}
	if folder == "" {
		return c, nil
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%s|%s|%s", r.Hash, r.Windows, r.Backend))
	c.path = filepath.Join(folder, hex.EncodeToString(sum[:12])+".jsonl")
	f, err := os.Open(c.path)
	if err == nil {
		lines := bufio.NewScanner(f)
		lines.Buffer(nil, maxLine)
		for lines.Scan() {
			var l cacheLine
			if json.Unmarshal(lines.Bytes(), &l) == nil { // else the line that an abrupt end cut
				c.answers[l.Key] = l.answer
			}
		}
		if err := errors.Join(lines.Err(), f.Close()); err != nil {
			return nil, fmt.Errorf("%s: %w", c.path, err)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	c.f, err = os.OpenFile(c.path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	return c, err
}

// take sets the answers of a batch if all are there.
func (c *cache) take(b *batch, list []request, answers []answer) bool {
	for _, u := range b.units {
		for _, i := range u.requests {
			a, ok := c.answers[list[i].key()]
			if !ok {
				return false
			}
			answers[i] = a
		}
	}
	return true
}

// put appends a batch's answers in one write.
func (c *cache) put(b *batch, list []request, answers []answer) error {
	if c.f == nil {
		return nil
	}
	text := []byte{'\n'} // ends a line that an abrupt end may have cut
	for _, u := range b.units {
		for _, i := range u.requests {
			line, err := json.Marshal(cacheLine{list[i].key(), answers[i]})
			if err != nil {
				return err
			}
			text = append(append(text, line...), '\n')
		}
	}
	_, err := c.f.Write(text)
	return err
}

func (c *cache) close() {
	if c.f != nil {
		c.f.Close()
		c.f = nil
	}
}

// remove ends the cache of a complete evaluation.
func (c *cache) remove() error {
	if c.f == nil {
		return nil
	}
	c.close()
	return os.Remove(c.path)
}
