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
)

// maxLine is the longest line of a JSONL file that is read.
const maxLine = 64 << 20

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
func (g *Generator) JSONL(ctx context.Context, name string, r io.Reader, w io.Writer, o Sampling, n int) error {
	return eachLine(name, r, w, func(fields map[string]json.RawMessage) (results []any, err error) {
		o, n := o, n
		var prompt string
		if err := take(fields, "prompt", &prompt); err != nil {
			return nil, err
		}
		for _, key := range slices.Sorted(maps.Keys(fields)) {
			raw := fields[key]
			if string(raw) == "null" {
				continue
			}
			known := true
			switch key {
			case "seed":
				err = unmarshal(key, raw, &o.Seed)
			case "n":
				err = unmarshal(key, raw, &n)
			case "stop":
				_, err = o.set("stop_strings", raw)
			case "stop_strings", "eos_token_id":
				known = false
			default:
				known, err = o.set(key, raw)
			}
			if err != nil {
				return nil, err
			}
			if !known {
				return nil, fmt.Errorf("unknown key %q", key)
			}
		}
		lines := make([]Result, max(n, 0))
		for i := range lines {
			lines[i] = Result{Prompt: prompt, Tokens: []int32{}, LogProbs: []float64{}}
		}
		_, reasons, err := g.Samples(ctx, g.NewSession(), g.Prompt(prompt), o, n, func(i int, t Token) error {
			l := &lines[i]
			l.Text, l.Tokens, l.LogProbs = l.Text+t.Text, append(l.Tokens, t.ID), append(l.LogProbs, t.LogProb)
			return nil
		})
		for i := range reasons {
			lines[i].FinishReason = reasons[i]
			results = append(results, lines[i])
		}
		return results, err
	})
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
		for key := range fields {
			return nil, fmt.Errorf("unknown key %q", key)
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
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	out := json.NewEncoder(w)
	out.SetEscapeHTML(false)
	number := 0
	for lines.Scan() {
		number++
		line := bytes.TrimSpace(lines.Bytes())
		if number == 1 {
			line = bytes.TrimPrefix(line, []byte("\uFEFF"))
		}
		if len(line) == 0 {
			continue
		}
		fail := func(err error) error { return fmt.Errorf("%s: line %d: %w", name, number, err) }
		if !utf8.Valid(line) {
			return fail(errors.New("not valid UTF-8"))
		}
		var fields map[string]json.RawMessage
		if err := json.Unmarshal(line, &fields); err != nil {
			return fail(fmt.Errorf("not a JSON object: %w", err))
		}
		results, err := do(fields)
		if err != nil {
			return fail(err)
		}
		for _, x := range results {
			if err := out.Encode(x); err != nil {
				return fail(err)
			}
		}
	}
	switch err := lines.Err(); {
	case errors.Is(err, bufio.ErrTooLong):
		return fmt.Errorf("%s: line %d is longer than %d bytes: not a JSONL file?", name, number+1, maxLine)
	case err != nil:
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}
