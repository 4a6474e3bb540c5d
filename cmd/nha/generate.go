package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"nha/chat"
	"nha/generate"
	"nha/tokenizer"
)

// generateOptions are the flags of generate that are no sampling.
type generateOptions struct {
	prompt, windows, session, fork, input, score, memoryHTML string
	samples                                                  int
	memory, chat                                             bool
	system                                                   string
}

func newGenerate() *cobra.Command {
	var o generateOptions
	var s generate.Sampling
	c := &cobra.Command{
		Use: "generate MODEL", Short: "Continue a prompt",
		Long: "Generate continues --prompt, or standard input, with a model: a directory, a .gguf file, or org/name in the Hugging Face\n" +
			"cache. What --temperature and the other sampling flags do not set comes from the model's generation_config.json. A --session\n" +
			"file is continued where it is and made where it is not: what was read once is never read again, and its size does not grow\n" +
			"with the conversation.",
		Example: "  nha generate runs/small --prompt 'Once upon a time' --temperature 0.8\n" +
			"  nha generate runs/small --session talk.session --prompt 'More.'\n" +
			"  nha generate runs/small --session talk.session --fork other.session --prompt 'Or else.'\n" +
			"  nha generate runs/small --memory --prompt 'Once'\n" +
			"  nha generate runs/small --input prompts.jsonl > continuations.jsonl",
		Args: exactly("MODEL"),
		RunE: func(c *cobra.Command, args []string) error { return runGenerate(c, args[0], o, s) },
	}
	f := c.Flags()
	f.StringVar(&o.prompt, "prompt", "", "text to continue; without it standard input is read")
	f.StringVar(&o.windows, "windows", "", "windows instead of the model's, such as '7*64 full'")
	samplingFlags(f, &s, 256)
	f.StringArrayVar(&s.Stop, "stop", nil, "end before this text; may be given several times")
	f.IntVar(&o.samples, "samples", 1, "continuations of the prompt, which is read once")
	f.StringVar(&o.session, "session", "", "continue this session file, or make it")
	f.StringVar(&o.fork, "fork", "", "write the session here and leave --session as it is")
	f.StringVar(&o.input, "input", "", "JSONL file (- for standard input) of {\"prompt\": ...}; JSONL with log-probabilities is written")
	f.StringVar(&o.score, "score", "", "JSONL file (- for standard input) of {\"prompt\": ..., \"continuation\": ...}; JSONL with log-probabilities is written")
	f.BoolVar(&o.chat, "chat", false, "the prompt is a message, and the answer is written by the model's chat template")
	f.StringVar(&o.system, "system", "", "with --chat: what the model is told before the message")
	f.BoolVar(&o.memory, "memory", false, "colour every token by how much of its attention read long-term memory")
	f.StringVar(&o.memoryHTML, "memory-html", "", "the same as a page, into this file")
	return jsonFlag(c)
}

// check refuses flags that exclude each other.
func (o *generateOptions) check() error {
	batch := o.input != "" || o.score != "" || flags.json
	switch {
	case o.input != "" && o.score != "":
		return errors.New("--input and --score: give one of them")
	case (o.input != "" || o.score != "") && o.prompt != "":
		return errors.New("--prompt: the prompts are in the JSONL file; leave one of the two out")
	case batch && (o.session != "" || o.memory || o.memoryHTML != ""):
		return errors.New("--session and --memory need one prompt and plain text: leave --input, --score and --json out")
	case o.fork != "" && o.session == "":
		return errors.New("--fork needs the --session to fork from")
	case o.system != "" && !o.chat:
		return errors.New("--system is for --chat")
	case o.chat && (batch || o.session != "" || o.memory || o.memoryHTML != "" || o.samples > 1):
		return errors.New("--chat answers one message in plain text: leave --input, --score, --json, --session, --memory and --samples out, or use nha chat")
	case o.samples < 1:
		return fmt.Errorf("--samples %d: must be at least 1", o.samples)
	case o.samples > 1 && (o.session != "" || o.memory || o.memoryHTML != ""):
		return errors.New("--samples: a session and --memory hold one continuation")
	}
	return nil
}

func runGenerate(c *cobra.Command, name string, o generateOptions, s generate.Sampling) error {
	if err := o.check(); err != nil {
		return usageError{err}
	}
	l, err := openSpeaker(name, o.windows)
	if err != nil {
		return err
	}
	defer l.close()
	g, m, tk := l.g, l.m, l.tk
	defaults, err := g.Defaults(l.path)
	if err != nil {
		return err
	}
	s = overridden(c, defaults, s)
	if err := s.Check(m.Config.VocabSize); err != nil {
		return usageError{err}
	}
	switch {
	case o.score != "":
		return withInput(o.score, func(name string, r io.Reader) error { return g.ScoreJSONL(c.Context(), name, r, c.OutOrStdout()) })
	case o.input != "":
		return withInput(o.input, func(name string, r io.Reader) error {
			return g.JSONL(c.Context(), name, r, c.OutOrStdout(), s, o.samples)
		})
	}
	prompt, err := promptText(c, o)
	if err != nil {
		return err
	}
	if o.chat {
		return writeAnswer(c, l, prompt, s, o)
	}
	if flags.json {
		line := strings.NewReader(jsonLine(map[string]string{"prompt": prompt}))
		return g.JSONL(c.Context(), "--prompt", line, c.OutOrStdout(), s, o.samples)
	}
	if o.samples > 1 {
		return writeSamples(c, g, prompt, s, o.samples)
	}
	return writeOne(c, g, tk, m.Config.TrainedContext(), prompt, s, o)
}

// overridden is the defaults with what the command line sets.
func overridden(c *cobra.Command, o, flags generate.Sampling) generate.Sampling {
	for name, set := range map[string]func(){
		"temperature": func() { o.Temperature = flags.Temperature }, "top-k": func() { o.TopK = flags.TopK }, "top-p": func() { o.TopP = flags.TopP },
		"min-p": func() { o.MinP = flags.MinP }, "repetition-penalty": func() { o.RepetitionPenalty = flags.RepetitionPenalty },
		"max-new-tokens": func() { o.MaxNewTokens = flags.MaxNewTokens }, "stop": func() { o.Stop = flags.Stop },
	} {
		if c.Flags().Changed(name) {
			set()
		}
	}
	o.Seed = flags.Seed
	return o
}

// promptText is --prompt, or standard input where that is no terminal.
func promptText(c *cobra.Command, o generateOptions) (string, error) {
	if c.Flags().Changed("prompt") || term.IsTerminal(int(os.Stdin.Fd())) {
		return o.prompt, nil
	}
	text, err := io.ReadAll(os.Stdin)
	if err != nil {
		return "", fmt.Errorf("standard input: %w", err)
	}
	return string(text), nil
}

func withInput(name string, f func(name string, r io.Reader) error) error {
	if name == "-" {
		return f("standard input", os.Stdin)
	}
	r, err := os.Open(name)
	if err != nil {
		return err
	}
	defer r.Close()
	return f(name, r)
}

func writeSamples(c *cobra.Command, g *generate.Generator, prompt string, s generate.Sampling, n int) error {
	texts := make([]strings.Builder, n)
	_, _, err := g.Samples(c.Context(), g.NewSession(), g.Prompt(prompt), s, n, func(i int, t generate.Token) error {
		texts[i].WriteString(t.Text)
		return nil
	})
	for i := range texts {
		fmt.Fprintf(c.OutOrStdout(), "--- sample %d\n%s%s\n", i+1, prompt, texts[i].String())
	}
	return err
}

// writeAnswer streams the answer to a message, by the model's chat template.
func writeAnswer(c *cobra.Command, l *speaker, message string, s generate.Sampling, o generateOptions) error {
	template, err := chat.Open(l.path)
	if err != nil {
		return err
	}
	conversation := chat.NewConversation(l.g, l.tk, template)
	if o.system != "" {
		conversation.Messages = []chat.Message{{Role: "system", Content: o.system}}
	}
	_, err = conversation.Ask(c.Context(), message, s, func(t generate.Token) error {
		_, err := io.WriteString(c.OutOrStdout(), t.Text)
		return err
	})
	fmt.Fprintln(c.OutOrStdout())
	return err
}

// writeOne streams one continuation. The prompt is shown before it, unless a session already holds what came before. trained is the context from
// which on the model's positions are new to it; 0: none.
func writeOne(c *cobra.Command, g *generate.Generator, tk tokenizer.Tokenizer, trained int, prompt string, s generate.Sampling, o generateOptions) error {
	session, err := openSession(g, o.session)
	if err != nil {
		return err
	}
	fresh := session.Position() == 0
	ids := g.Prompt(prompt)
	if !fresh {
		ids = tk.Encode(prompt) // no beginning of text in the middle
	}
	out := c.OutOrStdout()
	emit := func(t generate.Token) error {
		_, err := io.WriteString(out, t.Text)
		return err
	}
	var trace *generate.Trace
	if o.memory || o.memoryHTML != "" {
		g.Shares = true
		trace = g.NewTrace()
		if err := session.PrefillShares(c.Context(), ids, trace.Prompt); err != nil {
			return err
		}
		ids = nil
		plain := emit
		emit = func(t generate.Token) error {
			if o.memory {
				return trace.Token(t)
			}
			return errors.Join(plain(t), trace.Token(t))
		}
	}
	if fresh && !o.memory {
		fmt.Fprint(out, prompt)
	}
	reason, err := g.Generate(c.Context(), session, ids, s, emit)
	if err == nil && o.memory {
		err = trace.WriteTerminal(out)
	}
	if !o.memory {
		fmt.Fprintln(out)
	}
	if errors.Is(err, context.Canceled) || reason == generate.Cancelled {
		err = nil // what was written stays written, and the session is saved
	}
	if err != nil {
		return err
	}
	if n := session.Position(); trained > 0 && n > trained {
		fmt.Fprintf(c.ErrOrStderr(), "nha: %d tokens, but the model's positions were trained for %d: it may write worse past them; smaller --windows never reach that far\n", n, trained)
	}
	if o.memoryHTML != "" {
		if err := trace.WriteHTML(o.memoryHTML, prompt); err != nil {
			return err
		}
	}
	if o.fork != "" {
		return session.Save(o.fork)
	}
	if o.session != "" {
		return session.Save(o.session)
	}
	return nil
}

// openSession loads the session file, or starts one where there is none.
func openSession(g *generate.Generator, path string) (*generate.Session, error) {
	if path == "" {
		return g.NewSession(), nil
	}
	s, err := g.LoadSession(path)
	if errors.Is(err, fs.ErrNotExist) {
		return g.NewSession(), nil
	}
	return s, err
}
