package model_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strings"

	"nha/backend"
	_ "nha/backend/all"
	"nha/generate"
	"nha/model"
	"nha/tokenizer"
	"nha/train"
)

// A small model is trained on a text file, read from its directory, and writes; what it has read is a session file, with which
// another program goes on.
func Example() {
	dir, err := os.MkdirTemp("", "nha")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	text := filepath.Join(dir, "text.txt")
	if err := os.WriteFile(text, []byte(strings.Repeat("The quick brown fox jumps over the lazy dog.\n", 60)), 0o644); err != nil {
		log.Fatal(err)
	}
	ctx := context.Background()

	run := train.DefaultOptions() // NHA over bytes
	run.Data, run.Out, run.Cache = []string{text}, filepath.Join(dir, "run"), filepath.Join(dir, "cache")
	run.HiddenSize, run.Heads, run.Layers, run.Slots, run.Windows = 32, 2, 2, 4, "8"
	run.HeldOut = 0 // nothing to validate on: the text repeats itself
	run.Context, run.Batch, run.Steps, run.LearningRate = 64, 4, 120, 1e-2
	if _, err := train.Run(ctx, run, nil); err != nil {
		log.Fatal(err)
	}

	b, err := backend.Open("cpu", 0)
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()
	m, err := model.Load(run.Out, b, model.LoadOptions{})
	if err != nil {
		log.Fatal(err)
	}
	defer m.Close()
	tk, err := tokenizer.Load(run.Out)
	if err != nil {
		log.Fatal(err)
	}
	g := generate.New(m, tk)
	defer g.Close()

	sampling := generate.DefaultSampling()
	sampling.MaxNewTokens = 10
	write := func(t generate.Token) error { fmt.Print(t.Text); return nil }
	fmt.Print("The quick")
	s := g.NewSession()
	if _, err := g.Generate(ctx, s, g.Prompt("The quick"), sampling, write); err != nil {
		log.Fatal(err)
	}
	file := filepath.Join(dir, "fox.session")
	if err := s.Save(file); err != nil {
		log.Fatal(err)
	}
	if s, err = g.LoadSession(file); err != nil {
		log.Fatal(err)
	}
	fmt.Print("|")
	if _, err := g.Generate(ctx, s, nil, sampling, write); err != nil {
		log.Fatal(err)
	}
	// Output: The quick brown fox| jumps ove
}
