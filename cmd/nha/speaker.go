package main

import (
	"errors"
	"fmt"

	"github.com/spf13/pflag"

	"nha/generate"
	"nha/model"
	"nha/tokenizer"
)

// speaker is a model that writes, with everything it needs.
type speaker struct {
	path  string
	m     *model.Model
	tk    tokenizer.Tokenizer
	g     *generate.Generator
	close func()
}

// openSpeaker finds and loads a model; windows replace its own unless they are empty.
func openSpeaker(name, windows string) (_ *speaker, err error) {
	path, err := model.Find(name)
	if err != nil {
		return nil, err
	}
	if windows != "" {
		c, err := model.ReadConfig(path)
		if err != nil {
			return nil, err
		}
		if err := c.ApplyWindows(windows); err != nil {
			return nil, usageError{fmt.Errorf("--windows: %w", err)}
		}
	}
	b, err := openBackend()
	if err != nil {
		return nil, err
	}
	m, err := model.Load(path, b, model.LoadOptions{Windows: windows})
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	s := &speaker{path: path, m: m, close: func() { m.Close(); b.Close() }}
	if s.tk, err = model.Tokenizer(path); err == nil {
		if err = m.Config.CheckTokenizer(s.tk.VocabSize()); err != nil {
			err = fmt.Errorf("%s: %w", name, err)
		}
	}
	if err != nil {
		s.close()
		return nil, err
	}
	s.g = generate.New(m, s.tk)
	closeModel := s.close
	s.close = func() { s.g.Close(); closeModel() }
	return s, nil
}

// samplingFlags are how tokens are drawn; what they do not set is the model's.
func samplingFlags(f *pflag.FlagSet, s *generate.Sampling, tokens int) {
	f.IntVar(&s.MaxNewTokens, "max-new-tokens", tokens, "write at most so many tokens")
	f.Float64Var(&s.Temperature, "temperature", 0, "0: always the likeliest token")
	f.IntVar(&s.TopK, "top-k", 50, "draw from so many likeliest tokens; 0: off")
	f.Float64Var(&s.TopP, "top-p", 1, "draw from the likeliest tokens that together have this probability; 1: off")
	f.Float64Var(&s.MinP, "min-p", 0, "draw from tokens with at least this part of the likeliest one's probability; 0: off")
	f.Float64Var(&s.RepetitionPenalty, "repetition-penalty", 1, "divide the logits of tokens seen before; 1: off")
	f.Uint64Var(&s.Seed, "seed", 1, "of the random draws")
}
