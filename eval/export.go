package eval

import (
	"context"
	"encoding/json"
	"io"

	"nha/model"
	"nha/tokenizer"
)

// Export writes the documents that the options ask for, without asking the model: one JSON object a line with task, doc and the
// requests' texts, so that other programs can be asked the same.
func Export(ctx context.Context, m *model.Model, tk tokenizer.Tokenizer, w io.Writer, o Options) error {
	tasks, err := Select(o.Tasks)
	if err != nil {
		return err
	}
	if err := o.check(tasks); err != nil {
		return err
	}
	out := json.NewEncoder(w)
	out.SetEscapeHTML(false)
	for _, t := range tasks {
		if t.documents == nil {
			continue
		}
		s := newSetup(t, m, tk, &o)
		if err := t.documents(ctx, s); err != nil {
			return err
		}
		for i := range s.documents {
			d := &s.documents[i]
			x := Sample{Task: t.Name, ID: i, Place: d.place, Document: d.fields, Target: d.target}
			for _, q := range d.requests {
				x.Arguments = append(x.Arguments, q.arguments)
			}
			if err := out.Encode(x); err != nil {
				return err
			}
		}
	}
	return nil
}
