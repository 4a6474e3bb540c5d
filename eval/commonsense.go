package eval

import (
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// The tasks of commonsense, zero-shot, as lm-evaluation-harness words them. The score of a choice is log p(" " + choice | context);
// acc takes the likeliest choice, acc_norm the likeliest per character, the first where two are equal.

// chosen is acc and, with lengths, acc_norm of a multiple choice.
func chosen(gold int, lengths []int) func([]answer) []measure {
	return func(a []answer) []measure {
		plain, normed := 0, 0
		for i := range a {
			if a[i].LogProb > a[plain].LogProb {
				plain = i
			}
			if lengths != nil && a[i].LogProb/float64(lengths[i]) > a[normed].LogProb/float64(lengths[normed]) {
				normed = i
			}
		}
		m := []measure{{metric: "acc", value: truth(plain == gold)}}
		if lengths != nil {
			m = append(m, measure{metric: "acc_norm", value: truth(normed == gold)})
		}
		return m
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// choose adds a multiple choice with one context.
func (s *setup) choose(r *row, context string, choices []string, gold int) error {
	if len(choices) == 0 {
		return r.errorf("there are no choices")
	}
	if gold < 0 || gold >= len(choices) {
		return r.errorf("the label %d is not among the %d choices", gold, len(choices))
	}
	var requests []request
	var lengths []int
	for i, choice := range choices {
		if choice == "" {
			return r.errorf("choice %d is empty", i+1)
		}
		q, err := s.encoder.score(context, " "+choice)
		if err != nil {
			return r.errorf("choice %d: %w", i+1, err)
		}
		requests, lengths = append(requests, q), append(lengths, utf8.RuneCountInString(choice))
	}
	s.add(r.document(choices[gold], chosen(gold, lengths)), requests...)
	return nil
}

func arc(s *setup, r *row) error {
	t, err := r.textsOf("question", "answerKey")
	if err != nil {
		return err
	}
	choices, err := r.list("choices.text")
	if err != nil {
		return err
	}
	labels, err := r.list("choices.label")
	if err != nil {
		return err
	}
	gold := slices.Index(labels, t[1])
	if len(labels) != len(choices) {
		return r.errorf("%d labels for %d choices", len(labels), len(choices))
	}
	if gold < 0 && len(labels) > 0 {
		return r.errorf("the label %q is not among the choices' %q", t[1], labels)
	}
	return s.choose(r, "Question: "+t[0]+"\nAnswer:", choices, gold)
}

var brackets = regexp.MustCompile(`\[.*?\]`)

// plain takes the marks of WikiHow out of a text.
func plain(text string) string {
	text = strings.ReplaceAll(strip(text), " [title]", ". ")
	return strings.ReplaceAll(brackets.ReplaceAllString(text, ""), "  ", " ")
}

func hellaswag(s *setup, r *row) error {
	t, err := r.textsOf("activity_label", "ctx_a", "ctx_b")
	if err != nil {
		return err
	}
	endings, err := r.list("endings")
	if err != nil {
		return err
	}
	gold, err := r.integer("label")
	if err != nil {
		return err
	}
	choices := make([]string, len(endings))
	for i, e := range endings {
		choices[i] = plain(e)
	}
	return s.choose(r, plain(t[0]+": "+t[1]+" "+capitalize(t[2])), choices, gold)
}

func piqa(s *setup, r *row) error {
	t, err := r.textsOf("goal", "sol1", "sol2")
	if err != nil {
		return err
	}
	gold, err := r.integer("label")
	if err != nil {
		return err
	}
	return s.choose(r, "Question: "+t[0]+"\nAnswer:", t[1:], gold)
}

// winogrande puts each option into the sentence and scores what follows, which is the same for both.
func winogrande(s *setup, r *row) error {
	t, err := r.textsOf("sentence", "option1", "option2")
	if err != nil {
		return err
	}
	gold, err := r.integer("answer")
	if err != nil {
		return err
	}
	if gold != 1 && gold != 2 {
		return r.errorf("the label %d is not among the choices 1 and 2", gold)
	}
	before, after, found := strings.Cut(t[0], "_")
	if !found {
		return r.errorf("no _ in the sentence %q", t[0])
	}
	var requests []request
	for i, option := range t[1:] {
		if option == "" {
			return r.errorf("choice %d is empty", i+1)
		}
		q, err := s.encoder.score(before+option, " "+strip(after))
		if err != nil {
			return r.errorf("choice %d: %w", i+1, err)
		}
		requests = append(requests, q)
	}
	s.add(r.document(strip(after), chosen(gold-1, nil)), requests...)
	return nil
}

// lastWord is LAMBADA: everything before the last space is the context.
func lastWord(s *setup, r *row) error {
	text, err := r.text("text")
	if err != nil {
		return err
	}
	at := strings.LastIndexByte(text, ' ')
	context, word := "", text
	if at >= 0 {
		context, word = text[:at], text[at+1:]
	}
	q, err := s.encoder.score(context, " "+word)
	if err != nil {
		return r.errorf("%w", err)
	}
	s.add(r.document(" "+word, func(a []answer) []measure {
		return []measure{{metric: "perplexity", value: a[0].LogProb}, {metric: "acc", value: truth(a[0].Greedy)}}
	}), q)
	return nil
}

// wikitext scores a page, its word-level text turned back into prose, per word and byte of the page as it is in the file.
func wikitext(s *setup, r *row) error {
	page, err := r.text("page")
	if err != nil {
		return err
	}
	length := s.encoder.maxLength
	requests, err := s.encoder.rolling(s.encoder.encode(detokenize(page)), length, length)
	if err != nil {
		return r.errorf("%w", err)
	}
	words, bytes := float64(countWords(page)), float64(len(page))
	s.add(r.document("", func(a []answer) []measure {
		sum := 0.0
		for i := range a {
			sum += a[i].LogProb
		}
		return []measure{{"word_perplexity", sum, words}, {"byte_perplexity", sum, bytes}, {"bits_per_byte", sum, bytes}}
	}), requests...)
	return nil
}

// detokenize undoes WikiText's spacing, in this order.
func detokenize(s string) string {
	for _, e := range detokenizer {
		if e.pattern != nil {
			s = e.pattern.ReplaceAllString(s, e.new)
		} else {
			s = strings.ReplaceAll(s, e.old, e.new)
		}
	}
	return s
}

type edit struct {
	pattern  *regexp.Regexp
	old, new string
}

var detokenizer = func() []edit {
	var list []edit
	texts := func(pairs ...string) {
		for i := 0; i < len(pairs); i += 2 {
			list = append(list, edit{old: pairs[i], new: pairs[i+1]})
		}
	}
	patterns := func(pairs ...string) {
		for i := 0; i < len(pairs); i += 2 {
			list = append(list, edit{pattern: regexp.MustCompile(strings.ReplaceAll(pairs[i], `\s`, space)), new: pairs[i+1]})
		}
	}
	texts("s '", "s'")
	patterns(`/' [0-9]/`, `/'[0-9]/`)
	texts(" @-@ ", "-", " @,@ ", ",", " @.@ ", ".", " : ", ": ", " ; ", "; ", " . ", ". ", " ! ", "! ", " ? ", "? ", " , ", ", ")
	patterns(`\(\s*([^\)]*?)\s*\)`, `(${1})`, `\[\s*([^\]]*?)\s*\]`, `[${1}]`, `\{\s*([^}]*?)\s*\}`, `{${1}}`, `"\s*([^"]*?)\s*"`, `"${1}"`, `'\s*([^']*?)\s*'`, `'${1}'`)
	texts("= = = =", "====", "= = =", "===", "= =", "==", " ° ", "°", " \n", "\n", "\n ", "\n", " N ", " 1 ", " 's", "'s")
	return list
}()
