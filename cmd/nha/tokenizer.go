package main

import (
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"nha/data"
	"nha/model"
	"nha/tokenizer"
)

func newTokenizer() *cobra.Command {
	c := &cobra.Command{Use: "tokenizer", Short: "Train a tokenizer, or show what one does", Args: noVerb,
		Example: "  nha tokenizer train --data books/ --vocab 4096 --out tok\n  nha tokenizer encode tok 'Some text.'",
		RunE:    func(c *cobra.Command, _ []string) error { return c.Help() }}
	c.AddCommand(newTokenizerTrain(), newTokenizerEncode())
	return c
}

func newTokenizerTrain() *cobra.Command {
	var spec data.Spec
	var o tokenizer.TrainOptions
	var out string
	c := &cobra.Command{
		Use: "train", Short: "Train a byte-level BPE tokenizer from text",
		Long:    "Train reads text files, folders, JSONL (plain, .gz, .zst) or parquet, and writes tokenizer.json and tokenizer_config.json,\nwhich Hugging Face's tokenizers reads too.",
		Example: "  nha tokenizer train --data books.jsonl.zst --vocab 4096 --out tok",
		Args:    exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			if out == "" || len(spec.Paths) == 0 {
				return usageError{fmt.Errorf("tokenizer train needs --data and --out")}
			}
			made, err := newFolder(out)
			if err != nil {
				return err
			}
			if made {
				defer os.Remove(out) // if it is still empty
			}
			started := time.Now()
			o.Threads = flags.threads
			progress := newProgress()
			if progress.terminal {
				o.Progress = func(p tokenizer.TrainProgress) {
					fmt.Fprintf(progress, "\r%d MB read, %d of %d merges\x1b[K", p.Bytes/1e6, p.Merges, p.Want)
				}
			}
			t, err := tokenizer.Train(c.Context(), texts(spec), o)
			progress.end()
			if err != nil {
				return err
			}
			if err := t.Save(out); err != nil {
				return err
			}
			took := time.Since(started)
			if flags.json {
				return printJSON(c, map[string]any{"tokenizer": out, "tokens": t.VocabSize(), "seconds": took.Seconds()})
			}
			fmt.Fprintf(c.OutOrStdout(), "%s: %d tokens, in %v\n", out, t.VocabSize(), took.Round(100*time.Millisecond))
			return nil
		},
	}
	f := c.Flags()
	dataFlags(f, &spec, "data")
	f.StringVar(&out, "out", "", "folder to write tokenizer.json into")
	f.IntVar(&o.VocabSize, "vocab", 4096, "tokens in all")
	f.Int64Var(&o.MinFrequency, "min-frequency", 2, "do not merge pairs seen less often")
	f.StringSliceVar(&o.Special, "special", []string{tokenizer.EndOfText}, "special tokens; the first ends a document")
	return jsonFlag(c)
}

// newFolder makes the folder of a new tokenizer, before the text is read; one that holds a tokenizer is refused, since the models
// trained with it would no longer be read.
func newFolder(dir string) (made bool, err error) {
	if _, err := os.Lstat(filepath.Join(dir, "tokenizer.json")); err == nil {
		return false, fmt.Errorf("--out %s: it already holds a tokenizer.json: name another folder, or remove it", dir)
	}
	_, err = os.Lstat(dir)
	made = errors.Is(err, fs.ErrNotExist)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return false, fmt.Errorf("--out: %w", err)
	}
	return made, nil
}

// texts is the documents of spec as the tokenizer's trainer wants them.
func texts(spec data.Spec) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for d, err := range data.Documents(spec) {
			if !yield(d.Text, err) {
				return
			}
		}
	}
}

func newTokenizerEncode() *cobra.Command {
	return jsonFlag(&cobra.Command{
		Use: "encode TOKENIZER TEXT", Short: "Show the tokens of a text",
		Long:    "Encode shows the tokens of a text, an id and its bytes a line. TOKENIZER is a tokenizer.json, a folder with one (a model, a run)\nor the word bytes.",
		Example: "  nha tokenizer encode tok 'Some text.'\n  nha tokenizer encode bytes héllo --json",
		Args:    exactly("TOKENIZER", "TEXT"),
		RunE: func(c *cobra.Command, args []string) error {
			t, err := loadTokenizer(args[0])
			if err != nil {
				return err
			}
			ids := t.Encode(args[1])
			if flags.json {
				return printJSON(c, map[string]any{"text": args[1], "ids": ids})
			}
			for _, id := range ids {
				fmt.Fprintf(c.OutOrStdout(), "%d\t%q\n", id, t.Token(id))
			}
			return nil
		},
	})
}

// loadTokenizer reads a tokenizer from a folder or file, a GGUF too; "bytes" is the byte tokenizer.
func loadTokenizer(name string) (tokenizer.Tokenizer, error) {
	if name == "bytes" {
		return tokenizer.Bytes{EndOfText: true}, nil
	}
	return model.Tokenizer(name)
}
