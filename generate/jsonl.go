package generate

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"nha/backend"
)

const (
	maxLine    = 64 << 20 // the longest line of a JSONL file that is read
	maxSamples = 1 << 16  // continuations of one prompt
)

// Result is a line that JSONL writes.
type Result struct {
	Prompt       string       `json:"prompt"`
	Text         string       `json:"text"`
	Tokens       []int32      `json:"tokens"` // new ones, the end token among them
	LogProbs     []float64    `json:"logprobs"`
	FinishReason FinishReason `json:"finish_reason"`
}

// JSONL continues the prompt of every line of r, {"prompt": TEXT, ...}, and writes Results to w, n for a prompt, as they come.
// Beside the prompt a line may set temperature, top_k, top_p, min_p, repetition_penalty, seed, max_new_tokens, stop (a string
// or a list) and n; o holds for what it does not set. Blank lines are left out; a line that is not understood is an error with
// name and the line's number, and ends the work.
//
// Where the backend has a program of decoding steps, lines are continued side by side; results come in the lines' order all the same.
func (g *Generator) JSONL(ctx context.Context, name string, r io.Reader, w io.Writer, o Sampling, n int) error {
	if d := g.decoder(); d != nil {
		return g.flyJSONL(ctx, d, newLineReader(name, r), w, o, n)
	}
	return eachLine(name, r, w, func(fields map[string]json.RawMessage) (results []any, err error) {
		q, err := readRequest(fields, o, n)
		if err != nil {
			return nil, err
		}
		lines := q.results()
		_, reasons, err := g.Samples(ctx, g.NewSession(), g.Prompt(q.prompt), q.o, q.n, func(i int, t Token) error {
			lines[i].add(t)
			return nil
		})
		for i := range reasons {
			lines[i].FinishReason = reasons[i]
			results = append(results, lines[i])
		}
		return results, err
	})
}

// request is a line that JSONL reads.
type request struct {
	prompt string
	o      Sampling
	n      int
}

// readRequest takes in a line; o and n hold for what it does not set.
func readRequest(fields map[string]json.RawMessage, o Sampling, n int) (q request, err error) {
	q = request{o: o, n: n}
	if err := take(fields, "prompt", &q.prompt); err != nil {
		return q, err
	}
	for _, key := range slices.Sorted(maps.Keys(fields)) {
		raw := fields[key]
		if string(raw) == "null" {
			continue
		}
		known := true
		switch key {
		case "seed":
			err = unmarshal(key, raw, &q.o.Seed)
		case "n":
			err = unmarshal(key, raw, &q.n)
		case "stop":
			_, err = q.o.set("stop_strings", raw)
		case "stop_strings", "eos_token_id":
			known = false
		default:
			known, err = q.o.set(key, raw)
		}
		if err != nil {
			return q, err
		}
		if !known {
			return q, fmt.Errorf("unknown key %q", key)
		}
	}
	if q.n < 1 || q.n > maxSamples {
		return q, fmt.Errorf("n: %d samples: ask for 1 to %d", q.n, maxSamples)
	}
	return q, nil
}

// results are the lines to write, still empty.
func (q *request) results() []*Result {
	lines := make([]*Result, q.n)
	for i := range lines {
		lines[i] = &Result{Prompt: q.prompt, Tokens: []int32{}, LogProbs: []float64{}}
	}
	return lines
}

func (l *Result) add(t Token) {
	l.Text, l.Tokens, l.LogProbs = l.Text+t.Text, append(l.Tokens, t.ID), append(l.LogProbs, t.LogProb)
}

// flyJSONL is JSONL with sequences of several lines under way at a time.
func (g *Generator) flyJSONL(ctx context.Context, d backend.Decoder, lines *lineReader, w io.Writer, o Sampling, n int) error {
	type job struct {
		results []*Result
		left    int // that are not over
	}
	out := newLineWriter(w)
	var jobs []*job // those not written, in the order of their lines
	var ready []*stream
	var failed error // the first of a line or of writing; what came before is still finished
	write := func() {
		for len(jobs) > 0 && jobs[0].left == 0 {
			for _, x := range jobs[0].results {
				if err := out.Encode(x); err != nil && failed == nil {
					failed = err
				}
			}
			jobs = jobs[1:]
		}
	}
	prepare := func(fields map[string]json.RawMessage) error {
		q, err := readRequest(fields, o, n)
		if err != nil {
			return err
		}
		if err := q.o.Check(g.m.Config.VocabSize); err != nil {
			return err
		}
		s := g.NewSession()
		if err := g.begin(ctx, s, g.Prompt(q.prompt)); err != nil {
			return err
		}
		j := &job{results: q.results()}
		jobs = append(jobs, j)
		for i, l := range j.results {
			if q.o.MaxNewTokens == 0 {
				l.FinishReason = Length
				continue
			}
			j.left++
			stream := g.newStream(s, q.o, q.o.Sample+i, func(t Token) error { l.add(t); return nil })
			if i+1 < q.n {
				stream.session = s.Clone()
			}
			stream.where = lines.fail()
			stream.done = func() {
				l.FinishReason = stream.reason
				if j.left--; ctx.Err() == nil {
					write()
				}
			}
			ready = append(ready, stream)
		}
		write()
		return nil
	}
	err := g.fly(ctx, d, nil, func() (*stream, error) {
		for len(ready) == 0 && failed == nil && ctx.Err() == nil {
			fields, err := lines.next()
			if err != nil {
				failed = err
				break
			}
			if fields == nil {
				return nil, nil
			}
			if err := prepare(fields); err != nil {
				failed = lines.fail()(err)
			}
		}
		if len(ready) == 0 {
			return nil, nil
		}
		q := ready[0]
		ready = ready[1:]
		return q, nil
	})
	if err == nil {
		err = failed
	}
	if ctx.Err() != nil {
		return lines.fail()(context.Cause(ctx))
	}
	return err
}

// Score is a line that ScoreJSONL writes.
type Score struct {
	Prompt       string    `json:"prompt"`
	Continuation string    `json:"continuation"`
	Sum          float64   `json:"sum"` // of LogProbs
	Tokens       []int32   `json:"tokens"`
	LogProbs     []float64 `json:"logprobs"`
}

// ScoreJSONL writes the log-probability of a given continuation for every line of r, {"prompt": TEXT, "continuation": TEXT}.
func (g *Generator) ScoreJSONL(ctx context.Context, name string, r io.Reader, w io.Writer) error {
	return eachLine(name, r, w, func(fields map[string]json.RawMessage) ([]any, error) {
		var prompt, continuation string
		if err := errors.Join(take(fields, "prompt", &prompt), take(fields, "continuation", &continuation)); err != nil {
			return nil, err
		}
		if len(fields) > 0 {
			return nil, fmt.Errorf("unknown key %q", slices.Min(slices.Collect(maps.Keys(fields))))
		}
		s, err := g.Score(ctx, prompt, continuation)
		return []any{s}, err
	})
}

// Score is the log-probability of a continuation after a prompt. An empty prompt is BOS, or EOS where there is no BOS.
func (g *Generator) Score(ctx context.Context, prompt, continuation string) (Score, error) {
	ids, tokens := g.encodePair(prompt, continuation)
	if len(tokens) == 0 {
		return Score{}, errors.New("the continuation is empty: there is nothing to score")
	}
	s := g.NewSession()
	if err := g.begin(ctx, s, ids); err != nil {
		return Score{}, err
	}
	logProbs, err := s.Score(ctx, tokens)
	if err != nil {
		return Score{}, err
	}
	score := Score{Prompt: prompt, Continuation: continuation, Tokens: tokens, LogProbs: logProbs}
	for _, p := range logProbs {
		score.Sum += p
	}
	return score, nil
}

// encodePair cuts the tokens of prompt + continuation as lm-evaluation-harness does, so that scores compare: spaces at the
// prompt's end belong to the continuation, and the continuation's tokens are what the whole has more than the prompt.
func (g *Generator) encodePair(prompt, continuation string) (before, after []int32) {
	trimmed := strings.TrimRightFunc(prompt, unicode.IsSpace)
	continuation = prompt[len(trimmed):] + continuation
	before = g.Prompt(trimmed)
	if trimmed == "" {
		return nil, g.tk.Encode(continuation)
	}
	whole := g.Prompt(trimmed + continuation)
	return before, whole[min(len(before), len(whole)):]
}

// take moves a required text out of a line.
func take(fields map[string]json.RawMessage, key string, into *string) error {
	raw, ok := fields[key]
	if !ok || string(raw) == "null" {
		return fmt.Errorf("no %q", key)
	}
	delete(fields, key)
	return unmarshal(key, raw, into)
}

// eachLine calls do with every line of r that is not blank and writes its results, each on a line, before it reads on.
func eachLine(name string, r io.Reader, w io.Writer, do func(fields map[string]json.RawMessage) ([]any, error)) error {
	lines, out := newLineReader(name, r), newLineWriter(w)
	for {
		fields, err := lines.next()
		if err != nil || fields == nil {
			return err
		}
		results, err := do(fields)
		if err != nil {
			return lines.fail()(err)
		}
		for _, x := range results {
			if err := out.Encode(x); err != nil {
				return err
			}
		}
	}
}

func newLineWriter(w io.Writer) *json.Encoder {
	out := json.NewEncoder(w)
	out.SetEscapeHTML(false)
	return out
}

// lineReader reads JSON objects, one a line.
type lineReader struct {
	name   string
	lines  *bufio.Scanner
	number int // of the last line
}

func newLineReader(name string, r io.Reader) *lineReader {
	l := &lineReader{name: name, lines: bufio.NewScanner(r)}
	l.lines.Buffer(nil, maxLine)
	return l
}

// fail says in an error that it is the last line's.
func (l *lineReader) fail() func(error) error {
	name, number := l.name, l.number
	return func(err error) error { return fmt.Errorf("%s: line %d: %w", name, number, err) }
}

// next is the next line that is not blank, nil at the end.
func (l *lineReader) next() (map[string]json.RawMessage, error) {
	for l.lines.Scan() {
		l.number++
		line := bytes.TrimSpace(l.lines.Bytes())
		if l.number == 1 {
			line = bytes.TrimPrefix(line, []byte("\uFEFF"))
		}
		if len(line) == 0 {
			continue
		}
		if !utf8.Valid(line) {
			return nil, l.fail()(errors.New("not valid UTF-8"))
		}
		fields := map[string]json.RawMessage{}
		if err := json.Unmarshal(line, &fields); err != nil {
			return nil, l.fail()(fmt.Errorf("not a JSON object: %w", err))
		}
		if fields == nil { // null
			fields = map[string]json.RawMessage{}
		}
		return fields, nil
	}
	switch err := l.lines.Err(); {
	case errors.Is(err, bufio.ErrTooLong):
		return nil, fmt.Errorf("%s: line %d is longer than %d bytes: not a JSONL file?", l.name, l.number+1, maxLine)
	case err != nil:
		return nil, fmt.Errorf("%s: %w", l.name, err)
	}
	return nil, nil
}
