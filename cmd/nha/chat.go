package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"nha/chat"
	"nha/generate"
)

func newChat() *cobra.Command {
	var windows, system string
	var s generate.Sampling
	c := &cobra.Command{
		Use: "chat MODEL", Short: "Talk to a model",
		Long: "Chat talks to a model that was trained to, by its own template: a directory, a .gguf file, or org/name in the Hugging Face cache. What was said is\n" +
			"read once and kept in the model's state. Ctrl-C stops an answer, not the program.\n\n" + chatHelp,
		Example: "  nha chat model.gguf\n  nha chat org/name --windows 64 --temperature 0.7\n  echo 'Why is the sky blue?' | nha chat model.gguf",
		Args:    exactly("MODEL"),
		RunE:    func(c *cobra.Command, args []string) error { return runChat(c, args[0], windows, system, s) },
	}
	f := c.Flags()
	f.StringVar(&windows, "windows", "", "windows instead of the model's, such as '7*64 full'")
	f.StringVar(&system, "system", "", "what the model is told before the conversation")
	samplingFlags(f, &s, 1024)
	return c
}

const chatHelp = `  /reset        begin anew
  /save FILE    keep the conversation (and FILE.session, the model's memory of it)
  /load FILE    go on with a kept one
  /memory       how much the model remembers, in bytes
  /system TEXT  tell the model something before a new conversation
  /help, /exit
  """           begins and ends a message of several lines; so does \ at the end of a line`

func runChat(c *cobra.Command, name, windows, system string, s generate.Sampling) error {
	l, err := openSpeaker(name, windows)
	if err != nil {
		return err
	}
	defer l.close()
	template, err := chat.Open(l.path)
	if err != nil {
		return err
	}
	defaults, err := l.g.Defaults(l.path)
	if err != nil {
		return err
	}
	s = overridden(c, defaults, s)
	if !c.Flags().Changed("max-new-tokens") {
		s.MaxNewTokens = 1024
	}
	if err := s.Check(l.m.Config.VocabSize); err != nil {
		return usageError{err}
	}
	t := &talk{speaker: l, conversation: chat.NewConversation(l.g, l.tk, template), sampling: s, out: c.OutOrStdout(), terminal: term.IsTerminal(int(os.Stdin.Fd()))}
	if system != "" {
		t.conversation.Messages = []chat.Message{{Role: "system", Content: system}}
	}
	return t.run(os.Stdin)
}

// talk is a conversation in a terminal, or line by line from a pipe.
type talk struct {
	*speaker
	conversation *chat.Conversation
	sampling     generate.Sampling
	out          io.Writer
	terminal     bool
	warned       bool
}

// run reads messages until the end of the input or /exit. An interrupt ends the answer that is being written; twice at the prompt, the program.
func (t *talk) run(r io.Reader) error {
	interrupts := make(chan os.Signal, 1)
	signal.Notify(interrupts, os.Interrupt)
	defer signal.Stop(interrupts)
	lines := make(chan string)
	failed := make(chan error, 1)
	go func() {
		defer close(lines)
		in := bufio.NewReader(r)
		for {
			line, err := in.ReadString('\n')
			if line != "" {
				lines <- strings.TrimRight(line, "\r\n")
			}
			if err != nil {
				if err == io.EOF {
					err = nil
				}
				failed <- err
				return
			}
		}
	}()
	if t.terminal {
		fmt.Fprintf(t.out, "%s. /help says what can be said; Ctrl-C stops an answer.\n", t.path)
	}
	pressed := false
	for {
		message, ok := t.message(lines, interrupts, &pressed)
		if !ok {
			if t.terminal {
				fmt.Fprintln(t.out)
			}
			select {
			case err := <-failed:
				return err
			default: // interrupted, while the goroutine waits for a line
				return nil
			}
		}
		pressed = false
		text := strings.TrimSpace(message)
		switch {
		case text == "":
		case strings.HasPrefix(text, "/"):
			leave, err := t.command(text)
			if err != nil {
				fmt.Fprintln(t.out, "nha:", err)
			}
			if leave {
				return nil
			}
		default:
			if err := t.answer(message, interrupts); err != nil {
				return err
			}
		}
	}
}

// message is the next one, of one line or several; false at the end of the input.
func (t *talk) message(lines <-chan string, interrupts <-chan os.Signal, pressed *bool) (string, bool) {
	var b strings.Builder
	quoted := false
	t.prompt("> ")
	for {
		select {
		case <-interrupts:
			if *pressed {
				return "", false
			}
			*pressed, quoted = true, false
			b.Reset()
			fmt.Fprintln(t.out, "\n(/exit, Ctrl-D or Ctrl-C again to leave)")
			t.prompt("> ")
		case line, ok := <-lines:
			if !ok {
				return b.String(), b.Len() > 0
			}
			if strings.TrimSpace(line) == `"""` {
				if quoted {
					return b.String(), true
				}
				quoted = true
				t.prompt("... ")
				continue
			}
			more := strings.HasSuffix(line, `\`)
			b.WriteString(strings.TrimSuffix(line, `\`))
			if !quoted && !more {
				return b.String(), true
			}
			b.WriteByte('\n')
			t.prompt("... ")
		}
	}
}

func (t *talk) prompt(s string) {
	if t.terminal {
		fmt.Fprint(t.out, s)
	}
}

// answer streams the model's answer; an interrupt ends it.
func (t *talk) answer(message string, interrupts <-chan os.Signal) error {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		select {
		case <-interrupts:
			cancel()
		case <-done:
		}
	}()
	reason, err := t.conversation.Ask(ctx, message, t.sampling, func(k generate.Token) error {
		_, err := io.WriteString(t.out, k.Text)
		return err
	})
	close(done)
	cancel()
	fmt.Fprintln(t.out)
	if err != nil {
		return err
	}
	if reason == generate.Cancelled && t.terminal {
		fmt.Fprintln(t.out, "(stopped)")
	}
	if n, trained := t.conversation.Session().Position(), t.m.Config.TrainedContext(); trained > 0 && n > trained && !t.warned {
		t.warned = true
		fmt.Fprintf(os.Stderr, "nha: %d tokens, but the model's positions were trained for %d: it may write worse from here; /reset, or smaller --windows\n", n, trained)
	}
	return nil
}

// command does what begins with a slash.
func (t *talk) command(text string) (leave bool, err error) {
	name, argument, _ := strings.Cut(text, " ")
	argument = strings.TrimSpace(argument)
	wants := map[string]bool{"/save": true, "/load": true, "/system": true}
	if wants[name] && argument == "" {
		return false, fmt.Errorf("%s what? /help says", name)
	}
	switch name {
	case "/exit", "/quit":
		return true, nil
	case "/help":
		fmt.Fprintln(t.out, chatHelp)
	case "/reset":
		t.conversation.Reset()
	case "/system":
		t.conversation.Messages = []chat.Message{{Role: "system", Content: argument}}
		t.conversation.Reset()
	case "/save":
		return false, t.conversation.Save(argument)
	case "/load":
		err := t.conversation.Open(argument)
		if err == nil || errors.Is(err, chat.ErrReread) {
			for _, m := range t.conversation.Messages {
				fmt.Fprintf(t.out, "%s: %s\n", m.Role, m.Content)
			}
		}
		return false, err
	case "/memory":
		t.memory()
	default:
		return false, fmt.Errorf("no command %s; /help says which there are", name)
	}
	return false, nil
}

// memory says what the state costs, and what keys and values of as many tokens would.
func (t *talk) memory() {
	s := t.conversation.Session()
	n := s.Position()
	account := t.m.Config.Account(max(1, n))
	fmt.Fprintf(t.out, "%d tokens read; state %.2f MiB (windows %s); keys and values of all tokens in all layers would be %.2f MiB now, %.2f MiB at 131072 tokens, the state %.2f MiB\n", n,
		float64(s.StateBytes())/(1<<20), t.m.Config.LayerWindows, float64(account.KVBytes)/(1<<20), float64(t.m.Config.Account(1<<17).KVBytes)/(1<<20), float64(t.m.Config.Account(1<<17).StateBytes)/(1<<20))
}
