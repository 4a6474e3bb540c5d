package eval

import (
	"fmt"
	"os"
	"strings"

	_ "embed"
)

// passkey hides a number of seven digits in a stretch of a book, at a random sentence, and asks for it at the end. The length
// is the tokens of the whole prompt, at most. The stretch begins at a random word of the haystack.

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

// plainText is one text of a file.
type plainText struct{ place, text string }

// readTexts is the texts of a file: the field "text" of JSONL and parquet rows, else the whole file.
func readTexts(path string) ([]plainText, error) {
	lower := strings.ToLower(path)
	for _, ext := range extensions {
		if !strings.HasSuffix(lower, ext) {
			continue
		}
		var list []plainText
		err := readRows(path, func(r *row) (bool, error) {
			text, err := r.text("text")
			if err == nil && text != "" {
				list = append(list, plainText{r.file + ": " + r.place(), text})
			}
			return true, err
		})
		return list, err
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if len(b) == 0 {
		return nil, fmt.Errorf("%s: empty file", path)
	}
	return []plainText{{path, strings.ToValidUTF8(string(b), "\uFFFD")}}, nil
}
