package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// code is what stands as code on a page: a fence, an indented line or what backticks hold.
var code = regexp.MustCompile("(?s)```.*?```|`[^`]+`|(?m)^    .*$")

// script is a script of the repository.
var script = regexp.MustCompile(`\bscripts/[\w-]+(/[\w.-]+)*`)

// TestPages: every command that the pages print is one of this program with flags that it has, and every script that they name is there.
func TestPages(t *testing.T) {
	root := filepath.Join("..", "..")
	pages, err := filepath.Glob(filepath.Join(root, "docs", "results", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	commands := 0
	for _, page := range append(pages, filepath.Join(root, "README.md")) {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range script.FindAllString(string(text), -1) {
			if _, err := os.Stat(filepath.Join(root, filepath.FromSlash(strings.TrimRight(name, ".")))); err != nil {
				t.Errorf("%s: %v", filepath.Base(page), err)
			}
		}
		for _, part := range code.FindAllString(string(text), -1) {
			for line := range strings.Lines(strings.ReplaceAll(part, "\\\n", " ")) {
				line, _, _ = strings.Cut(strings.TrimSpace(strings.ReplaceAll(line, "go run ./cmd/nha", "nha")), " #")
				words := splitWords(strings.Trim(line, "` $"))
				if len(words) < 2 || words[0] != "nha" {
					continue
				}
				commands++
				if err := parses(words[1:]); err != nil {
					t.Errorf("%s: %q: %v", filepath.Base(page), line, err)
				}
			}
		}
	}
	if commands < 20 {
		t.Errorf("%d commands on the pages: are they read?", commands)
	}
	for line, wrong := range map[string]bool{"eval M --tasks piqa": false, "eval M --task piqa": true, "evaluate M": true, "bench curve M": true, "bench curves M --depths 1K": false} {
		if err := parses(strings.Fields(line)); (err != nil) != wrong {
			t.Errorf("%q: error %v", line, err)
		}
	}
}

// parses says what is wrong with a command line before it is run.
func parses(words []string) error {
	c, rest, err := newRoot().Find(words)
	if err != nil {
		return err
	}
	if c.HasSubCommands() && len(rest) > 0 && !strings.HasPrefix(rest[0], "-") {
		return fmt.Errorf("%s has no %s", c.Name(), rest[0])
	}
	err = c.ParseFlags(rest)
	var mentioned *pflag.ValueRequiredError
	if errors.As(err, &mentioned) { // a flag that is named, not given
		return nil
	}
	return err
}

// splitWords splits a line as a shell does, as far as quotes go.
func splitWords(line string) (words []string) {
	quote, open, word := rune(0), false, ""
	for _, r := range line {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word += string(r)
		case r == '\'' || r == '"':
			quote, open = r, true
		case r == ' ' || r == '\t':
			if open || word != "" {
				words = append(words, word)
			}
			open, word = false, ""
		default:
			word += string(r)
		}
	}
	if open || word != "" {
		words = append(words, word)
	}
	return words
}
