package eval

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"

	"nha/tokenizer"
)

// The recall tasks of prefix-linear-attention ("Just read twice", Arora et al. 2024): a document is cut to L tokens around its
// answer, a question follows, and the greedy continuation (48 tokens, up to a line end) must hold a label, whatever the case.
//
//	desired = L - 50;  a = tokens before the answer;  start = max(0, a - desired/2);  end = min(n, a + desired - (a - start))
//
// The prompt is built from the document after it was cut.

// recallTask is what the six tasks differ in.
type recallTask struct {
	context string   // the field that is cut
	answers []string // the fields whose first place in the context counts; none: the beginning is kept
	length  int      // L for every length of the task; 0: the length
	labels  string   // the field of the labels: a string or a list
	prompt  func(r *row, context string) (string, error)
}

var (
	fda      = recallTask{context: "text", answers: []string{"key", "value"}, labels: "value", prompt: fdaPrompt}
	swde     = recallTask{context: "text", answers: []string{"key", "value"}, labels: "value", prompt: swdePrompt}
	squad    = recallTask{context: "text", answers: []string{"value"}, labels: "value", prompt: func(_ *row, text string) (string, error) { return strip(text), nil }}
	nq       = recallTask{context: "context", answers: []string{"answers"}, length: 2000, labels: "answers", prompt: nqPrompt}
	triviaqa = recallTask{context: "context", labels: "answers", prompt: triviaPrompt}
	drop     = recallTask{context: "context", labels: "answers", prompt: dropPrompt}
)

const (
	answerRoom   = 50 // tokens of L that are kept for the answer
	recallTokens = 48 // of a continuation
)

// recall is the documents of a recall task, the rows once for every length.
func recall(t recallTask) func(context.Context, *setup) error {
	return func(ctx context.Context, s *setup) error {
		for _, length := range s.lengths {
			cut := length
			if t.length > 0 {
				cut = t.length
			}
			if cut <= answerRoom {
				return fmt.Errorf("%s: a length of %d leaves nothing beside the %d tokens kept for the answer", s.task.Name, cut, answerRoom)
			}
			err := s.eachRow(ctx, length, func(r *row) error { return t.document(s, r, length, cut) })
			if err != nil {
				return err
			}
		}
		return nil
	}
}

func (t *recallTask) document(s *setup, r *row, length, cut int) error {
	labels, err := r.strings(t.labels)
	if err != nil {
		return err
	}
	if len(labels) == 0 {
		return r.errorf("there are no answers in %q", t.labels)
	}
	text, err := r.text(t.context)
	if err != nil {
		return err
	}
	text, ok, err := t.truncate(s.encoder, r, strip(text), cut-answerRoom)
	if err != nil {
		return err
	}
	if !ok {
		s.skipped++
		return nil
	}
	prompt, err := t.prompt(r, text)
	if err != nil {
		return err
	}
	q, err := s.encoder.generate(prompt, recallTokens, "\n")
	if err != nil {
		return r.errorf("%w", err)
	}
	d := r.document(strings.Join(labels, " | "), func(a []answer) []measure {
		found := 0.0
		for _, l := range labels {
			if contains(a[0].Text, l) {
				found = 1
			}
		}
		return []measure{{metric: "contains", value: found}}
	})
	d.length = length
	s.add(d, q)
	return nil
}

// truncate keeps desired tokens of a context, around the first answer. A row whose answer is a character or less is not ok.
func (t *recallTask) truncate(e *encoder, r *row, text string, desired int) (cut string, ok bool, err error) {
	at := -1
	for _, key := range t.answers {
		values, err := r.strings(key)
		if err != nil {
			return "", false, err
		}
		if len(values) == 0 || utf8.RuneCountInString(values[0]) <= 1 {
			return "", false, nil
		}
		if i := indexFold(text, values[0]); i >= 0 && (at < 0 || i < at) {
			at = i
		}
	}
	if _, has := r.fields["alt_answers"]; at < 0 && has {
		alternatives, err := r.strings("alt_answers")
		if err != nil {
			return "", false, err
		}
		for _, a := range alternatives {
			if at = indexFold(text, a); at >= 0 {
				break
			}
		}
	}
	before := text[:max(at, 0)]
	if at < 0 && len(t.answers) > 0 { // as Python's text[:-1]: the answer is taken to stand at the end
		_, size := utf8.DecodeLastRuneInString(text)
		before = text[:len(text)-size]
	}
	ids, from := e.encode(text), len(e.encode(before))
	start := max(0, from-desired/2)
	end := min(len(ids), from+desired-(from-start))
	return decode(e.tk, ids[min(start, end):end]), true, nil
}

// decode is the text of ids without special tokens.
func decode(tk tokenizer.Tokenizer, ids []int32) string {
	var b strings.Builder
	for _, id := range ids {
		if !tk.Special(id) {
			b.Write(tk.Token(id))
		}
	}
	return tokenizer.Lossy(b.String())
}

// strings is a field that holds a string or a list of them.
func (r *row) strings(key string) ([]string, error) {
	if _, ok := r.fields[key].(string); ok {
		s, err := r.text(key)
		return []string{s}, err
	}
	return r.list(key)
}

// keyQuestion is the question of FDA and SWDE: the key with a colon, and the same with a capital.
func keyQuestion(r *row) (plain, upper string, err error) {
	key, err := r.text("key")
	first, n := utf8.DecodeRuneInString(key)
	return key + ":", strings.ToUpper(string(first)) + key[n:] + ":", err
}

// cutQuestion takes repetitions of the question off the end.
func cutQuestion(text, question string) string {
	for more := true; more; {
		text, more = cutSuffixFold(text, question)
	}
	return text
}

func fdaPrompt(r *row, text string) (string, error) {
	question, upper, err := keyQuestion(r)
	if err != nil {
		return "", err
	}
	text = strings.Trim(strings.Trim(cutQuestion(text, question), "\n"), ".")
	if !strings.HasSuffix(text, ".") {
		text += "."
	}
	return text + " " + upper, nil
}

func swdePrompt(r *row, text string) (string, error) {
	question, upper, err := keyQuestion(r)
	if err != nil {
		return "", err
	}
	text, _, _ = strings.Cut(text, "Summary of information above...")
	text = strings.Trim(strip(cutQuestion(text, question)), ".")
	return text + ". " + upper, nil
}

// sentence is a context as one sentence, then the question.
func sentence(context, question string) string {
	return strings.Trim(strip(context), ".") + ". " + question
}

func nqPrompt(r *row, context string) (string, error) {
	question, err := r.text("question")
	question = strip(question)
	return sentence(strings.TrimSuffix(strip(context), question), question), err
}

func dropPrompt(r *row, context string) (string, error) {
	question, err := r.text("question")
	question = strip(question)
	return sentence(cutQuestion(strip(context), question), question), err
}

var markers = regexp.MustCompile(`\[PAR\]|\[DOC\]|\[TLE\]`)

func triviaPrompt(r *row, context string) (string, error) {
	return dropPrompt(r, markers.ReplaceAllString(strip(context), ""))
}
