package eval

import (
	_ "embed"
	"fmt"
	"strings"

	"nha/data"
)

// passkey hides a number of seven digits in a stretch of a book, at a random sentence, and asks for it at the end. The length
// is the tokens of the whole prompt, at most. The stretch begins at a random word of the haystack. Found is a key that a greedy
// continuation begins with; that is read off one forward over prompt and key, where each of the key's tokens must be the
// likeliest, so that no token is written.

const (
	passkeyTokens   = 16
	passkeyQuestion = "\n\nQuestion: What is the pass key mentioned in the text above?"
	passkeyPrefix   = "Answer: The pass key is"
)

func passkey(g *generator) (func() (sample, error), error) {
	build := func(n int) sample {
		start := g.r.IntN(len(g.words))
		list := make([]string, n)
		for i := range list {
			list[i] = g.words[(start+i)%len(g.words)]
		}
		text, key := sentences(strings.Join(list, " ")), g.random(numbers)
		at := g.r.IntN(len(text) + 1)
		whole := strings.Join(text[:at], " ") + fmt.Sprintf(" The pass key is %s. Remember it. %s is the pass key. ", key, key) + strings.Join(text[at:], " ")
		return sample{input: strings.TrimSpace(whole) + passkeyQuestion, prefix: passkeyPrefix, outputs: []string{key}}
	}
	const step = 10
	size, err := g.grow(step, passkeyTokens, 0, func(n int) string { return build(n).prompt() })
	return func() (sample, error) { return g.draw(size, step, passkeyTokens, build) }, err
}

// builtIn is an essay of our own, in the public domain: the haystack of those who have no book at hand.
//
//go:embed essay.txt
var builtIn string

// haystackText is the file's text, or the built-in essay.
func haystackText(path string) (string, error) {
	if path == "" {
		return builtIn, nil
	}
	texts, err := readTexts(path)
	if err != nil {
		return "", fmt.Errorf("--haystack: %w", err)
	}
	var b strings.Builder
	for _, t := range texts {
		b.WriteString(t.text)
		b.WriteByte(' ')
	}
	if strip(b.String()) == "" {
		return "", fmt.Errorf("--haystack %s: holds no words", path)
	}
	return b.String(), nil
}

// plainText is one document.
type plainText struct{ place, text string }

// readTexts is the documents of a file or folder: text files whole, of JSONL and parquet files the field "text" of every row.
func readTexts(path string) ([]plainText, error) {
	var list []plainText
	continues := false
	for d, err := range data.Documents(data.Spec{Paths: []string{path}}) {
		if err != nil {
			return nil, err
		}
		if continues {
			list[len(list)-1].text += d.Text
		} else {
			list = append(list, plainText{fmt.Sprintf("%s: line %d", d.Source, d.Line), d.Text})
		}
		continues = d.Continues
	}
	return list, nil
}
