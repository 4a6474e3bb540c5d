package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"nha/data"
)

// dataFlags are the flags that name text: --data, --field and --separator, with the first under another name where a verb
// has several.
func dataFlags(f *pflag.FlagSet, s *data.Spec, name string) {
	f.StringSliceVar(&s.Paths, name, nil, "text: files, folders or globs of .txt, .jsonl (.gz, .zst) or .parquet")
	f.StringVar(&s.Field, "field", "text", "the JSONL field or parquet column that holds the text")
	f.StringVar(&s.Separator, "separator", "", "a line that stands between the documents of a text file")
}

// progress is standard error as the place of a line that is written over and over.
type progress struct {
	terminal bool
	open     bool // the last line has no end
}

func newProgress() *progress { return &progress{terminal: term.IsTerminal(int(os.Stderr.Fd()))} }

func (p *progress) Write(text []byte) (int, error) {
	if len(text) > 0 {
		p.open = text[len(text)-1] != '\n'
	}
	return os.Stderr.Write(text)
}

// end leaves the last line as it is, for others to write below it.
func (p *progress) end() {
	if p.open {
		fmt.Fprintln(p)
	}
}

// printJSON prints v as one line.
func printJSON(c *cobra.Command, v any) error { return json.NewEncoder(c.OutOrStdout()).Encode(v) }

// jsonLine is v as one line; v always encodes.
func jsonLine(v map[string]string) string {
	line, _ := json.Marshal(v)
	return string(line) + "\n"
}
