package eval

import (
	"context"
	"fmt"
	"math/rand/v2"

	"nha/model"
	"nha/tokenizer"
)

// document is one thing that a task asks: requests, and what the answers are worth.
type document struct {
	place    string         // where it stands: file and line, or the number of a generated sample
	fields   map[string]any // for samples
	target   string
	length   int // of a task with lengths
	requests []request
	score    func(a []answer) []measure
}

// measure is a document's value of a metric; weight is what a ratio divides by.
type measure struct {
	metric        string
	value, weight float64
}

// setup is what a task builds its documents from, and where it puts them.
type setup struct {
	task    *Task
	name    string // of the model, for samples
	m       *model.Model
	tk      tokenizer.Tokenizer
	encoder *encoder
	o       *Options
	lengths []int

	documents []document
	skipped   int // rows that the protocol leaves out
	results   *TaskResult
}

// add takes in a document with its requests.
func (s *setup) add(d document, requests ...request) {
	for i := range requests {
		requests[i].place = fmt.Sprintf("%s, %s, request %d", s.task.Name, d.place, i+1)
	}
	d.requests = requests
	s.documents = append(s.documents, d)
}

// full says that --limit is reached, for documents of one length.
func (s *setup) full(n int) bool { return s.o.Limit > 0 && n >= s.o.Limit }

// random is the stream of random numbers of a task at a length.
func (s *setup) random(length int) *rand.Rand {
	h := uint64(14695981039346656037)
	for _, c := range []byte(s.task.Name) {
		h = (h ^ uint64(c)) * 1099511628211
	}
	return rand.New(rand.NewPCG(s.o.Seed, h^uint64(length)))
}

// rowsOf is the documents of a task that makes one of every row.
func rowsOf(build func(s *setup, r *row) error) func(context.Context, *setup) error {
	return func(ctx context.Context, s *setup) error {
		return s.eachRow(ctx, 0, func(r *row) error { return build(s, r) })
	}
}

// eachRow reads the task's rows until --limit.
func (s *setup) eachRow(ctx context.Context, length int, build func(*row) error) error {
	files, err := s.task.locate(s.o.Data, length)
	if err != nil {
		return err
	}
	start := len(s.documents)
	for _, file := range files {
		if s.full(len(s.documents) - start) {
			break
		}
		err := readRows(file, func(r *row) (bool, error) {
			if ctx.Err() != nil {
				return false, context.Cause(ctx)
			}
			err := build(r)
			return !s.full(len(s.documents) - start), err
		})
		if err != nil {
			return err
		}
	}
	if len(s.documents) == start && s.skipped == 0 {
		return fmt.Errorf("%s: no rows in %v", s.task.Name, files)
	}
	return nil
}

// of is a document of a row.
func (r *row) document(target string, score func([]answer) []measure) document {
	return document{place: r.file + ": " + r.place(), fields: r.fields, target: target, score: score}
}
