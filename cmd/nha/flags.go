package main

import (
	"encoding/json"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"nha/data"
)

// dataFlags are the flags that name text: --data, --field and --separator, with the first under another name where a verb
// has several.
func dataFlags(f *pflag.FlagSet, s *data.Spec, name string) {
	f.StringSliceVar(&s.Paths, name, nil, "text: files, folders or globs of .txt, .jsonl (.gz, .zst) or .parquet")
	f.StringVar(&s.Field, "field", "text", "the JSONL field or parquet column that holds the text")
	f.StringVar(&s.Separator, "separator", "", "a line that stands between the documents of a text file")
}

// printJSON prints v as one line.
func printJSON(c *cobra.Command, v any) error { return json.NewEncoder(c.OutOrStdout()).Encode(v) }

// jsonLine is v as one line; v always encodes.
func jsonLine(v map[string]string) string {
	line, _ := json.Marshal(v)
	return string(line) + "\n"
}
