package eval

import (
	"context"
	"encoding/json"
	"io"
	"slices"

	"nha/model"
	"nha/tokenizer"
)

// Export writes the documents that the options ask for, without asking the model: one JSON object a line with task, doc and the
// requests' texts, so that other programs can be asked the same.
func Export(ctx context.Context, m *model.Model, tk tokenizer.Tokenizer, w io.Writer, o Options) error {
	out := json.NewEncoder(w)
	out.SetEscapeHTML(false)
	return eachDocument(ctx, m, tk, &o, func(task string, i int, d *document) error {
		x := Sample{Task: task, ID: i, Place: d.place, Document: d.fields, Target: d.target}
		for _, q := range d.requests {
			x.Arguments = append(x.Arguments, q.arguments)
		}
		return out.Encode(x)
	})
}

// Scored is a request that asks for log p(Tokens[From:] | Tokens[:From]).
type Scored struct {
	Tokens []int32
	From   int
}

// Requests is the scored requests of the documents that the options ask for, for those who read many of them in their own way.
func Requests(ctx context.Context, m *model.Model, tk tokenizer.Tokenizer, o Options) ([]Scored, error) {
	var list []Scored
	err := eachDocument(ctx, m, tk, &o, func(_ string, _ int, d *document) error {
		for _, q := range d.requests {
			if !q.generates() {
				list = append(list, Scored{Tokens: slices.Concat(q.context, q.continuation), From: len(q.context)})
			}
		}
		return nil
	})
	return list, err
}

// eachDocument makes the documents of every task.
func eachDocument(ctx context.Context, m *model.Model, tk tokenizer.Tokenizer, o *Options, f func(task string, i int, d *document) error) error {
	tasks, err := Select(o.Tasks)
	if err != nil {
		return err
	}
	if err := o.check(tasks); err != nil {
		return err
	}
	for _, t := range tasks {
		if t.documents == nil {
			continue
		}
		s := newSetup(t, m, tk, o)
		if err := t.documents(ctx, s); err != nil {
			return err
		}
		for i := range s.documents {
			if err := f(t.Name, i, &s.documents[i]); err != nil {
				return err
			}
		}
	}
	return nil
}
