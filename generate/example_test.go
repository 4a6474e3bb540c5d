package generate_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"nha/backend"
	_ "nha/backend/all"
	"nha/generate"
	"nha/model"
	"nha/tokenizer"
)

// A session is read once, saved, and continued later, by another program if need be. Generating in two parts is generating in
// one.
func Example() {
	b, err := backend.Open("ref", 0)
	if err != nil {
		panic(err)
	}
	defer b.Close()
	config := model.NewConfig(257, 32, 2) // model.Load reads a trained one
	config.NumHeads, config.NumSlots, config.LayerWindows = 2, 4, model.Windows{8, 0}
	m, err := model.New(config, b, model.Init{Seed: 1, Std: 0.3})
	if err != nil {
		panic(err)
	}
	g := generate.New(m, tokenizer.Bytes{EndOfText: true})
	defer g.Close()

	dir, err := os.MkdirTemp("", "session")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "book.session")
	ctx, sampling := context.Background(), generate.DefaultSampling()

	text := ""
	write := func(t generate.Token) error { text += t.Text; return nil }
	s := g.NewSession()
	sampling.Temperature, sampling.MaxNewTokens = 1, 10
	if _, err := g.Generate(ctx, s, g.Prompt("Once upon a time"), sampling, write); err != nil {
		panic(err)
	}
	if err := s.Save(file); err != nil {
		panic(err)
	}
	if s, err = g.LoadSession(file); err != nil {
		panic(err)
	}
	if _, err := g.Generate(ctx, s, nil, sampling, write); err != nil {
		panic(err)
	}
	inTwo := text

	text, sampling.MaxNewTokens = "", 20
	if _, err := g.Generate(ctx, g.NewSession(), g.Prompt("Once upon a time"), sampling, write); err != nil {
		panic(err)
	}
	fmt.Println("tokens read:", s.Position(), "the same text:", text == inTwo)
	// Output: tokens read: 36 the same text: true
}
