package chat

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"nha/atomicfile"
	"nha/generate"
	"nha/tokenizer"
	"nha/weights"
)

// Open reads the template of a model, a directory or a GGUF file.
func Open(path string) (*Template, error) {
	if !weights.IsGGUF(path) {
		return Load(path)
	}
	g, err := weights.OpenGGUF(path)
	if err != nil {
		return nil, err
	}
	t, err := FromGGUF(g.Value)
	if err != nil {
		err = fmt.Errorf("%s: %w", path, err)
	}
	return t, errors.Join(err, g.Close())
}

// Conversation is messages and the session that has read them: every answer reads what is new and nothing twice. Where a template writes an earlier
// turn otherwise than it was generated (some leave thoughts out), the whole is read anew.
type Conversation struct {
	Messages []Message
	Options  Options

	g        *generate.Generator
	tk       tokenizer.Tokenizer
	template *Template
	session  *generate.Session
	read     []int32 // what the session holds
	text     string  // the same as text, as far as the template wrote it or the model answered
	rebuilt  bool    // the last answer had to read the whole conversation anew
}

// NewConversation is an empty conversation. A system message, where the template knows one, comes first in Messages.
func NewConversation(g *generate.Generator, tk tokenizer.Tokenizer, t *Template) *Conversation {
	return &Conversation{g: g, tk: tk, template: t, session: g.NewSession()}
}

// Reset forgets all but a system message.
func (c *Conversation) Reset() {
	if len(c.Messages) > 0 && c.Messages[0].Role == "system" {
		c.Messages = c.Messages[:1]
	} else {
		c.Messages = nil
	}
	c.forget()
}

func (c *Conversation) forget() { c.session, c.read, c.text = c.g.NewSession(), nil, "" }

// Session is what has been read.
func (c *Conversation) Session() *generate.Session { return c.session }

// Ask adds what the user says and generates the answer, which emit sees token by token. A cancelled context ends the answer where it is; what was written
// stays part of the conversation. After any other error the conversation is as before.
func (c *Conversation) Ask(ctx context.Context, user string, s generate.Sampling, emit func(generate.Token) error) (generate.FinishReason, error) {
	if len(s.Stop) > 0 {
		return generate.Unfinished, errors.New("chat: stop strings are not for conversations: the template's own token ends an answer")
	}
	before := c.Messages
	c.Messages = append(slices.Clone(before), Message{Role: "user", Content: user})
	prompt, text, err := c.prompt()
	if err != nil {
		c.Messages = before
		return generate.Unfinished, err
	}
	var answer strings.Builder
	c.read = append(c.read, prompt...)
	reason, err := c.g.Generate(ctx, c.session, prompt, s, func(t generate.Token) error {
		c.read = append(c.read, t.ID)
		answer.WriteString(t.Text)
		return emit(t)
	})
	if err != nil && !errors.Is(err, context.Canceled) {
		c.Messages = before
		c.forget()
		return reason, err
	}
	if errors.Is(err, context.Canceled) { // perhaps in the middle of the prompt
		reason = generate.Cancelled
	}
	c.text = text + answer.String()
	c.Messages = append(c.Messages, Message{Role: "assistant", Content: answer.String()})
	if c.session.Position() != len(c.read) {
		c.forget() // the prompt was not read to its end
	}
	return reason, nil
}

// prompt is the ids that the session has still to read, and the text of the conversation with them.
func (c *Conversation) prompt() (ids []int32, text string, err error) {
	o := c.Options
	o.AddGenerationPrompt = true
	if text, err = c.template.Render(c.Messages, o.withTokens(c.tk)); err != nil {
		return nil, "", err
	}
	all := c.tk.Encode(text)
	c.rebuilt = false
	if len(all) > len(c.read) && slices.Equal(all[:len(c.read)], c.read) {
		return all[len(c.read):], text, nil
	}
	// An answer may be other tokens than its text gives: then the text behind it is what is new, less the token that ended it.
	if rest, ok := strings.CutPrefix(text, c.text); ok && c.text != "" {
		ids = c.tk.Encode(rest)
		if len(ids) > 1 && ids[0] == c.read[len(c.read)-1] {
			ids = ids[1:]
		}
		return ids, text, nil
	}
	c.rebuilt = len(c.read) > 0
	c.forget()
	return all, text, nil
}

// saved is a conversation's file; the session lies beside it.
type saved struct {
	Messages []Message `json:"messages"`
	Read     []int32   `json:"read"`
	Text     string    `json:"text"`
}

const sessionSuffix = ".session"

// Save writes the conversation to the JSON file at path, and what the model remembers of it to path.session.
func (c *Conversation) Save(path string) error {
	if err := c.session.Save(path + sessionSuffix); err != nil {
		return err
	}
	return atomicfile.WriteFile(path, 0o644, func(w io.Writer) error {
		e := json.NewEncoder(w)
		e.SetIndent("", " ")
		return e.Encode(saved{c.Messages, c.read, c.text})
	})
}

// Open replaces the conversation by the one in the file at path. Where the model's memory of it is missing or is another model's, the messages are kept
// and will be read anew: the error says why, and that is errors.Is ErrReread.
func (c *Conversation) Open(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var s saved
	if err := json.Unmarshal(text, &s); err != nil {
		return fmt.Errorf("%s: no conversation: %w", path, err)
	}
	for i, m := range s.Messages {
		if m.Role == "" {
			return fmt.Errorf("%s: message %d has no role", path, i+1)
		}
	}
	session, err := c.g.LoadSession(path + sessionSuffix)
	if err == nil && session.Position() != len(s.Read) {
		err = fmt.Errorf("it has read %d tokens, the conversation has %d", session.Position(), len(s.Read))
	}
	c.Messages = s.Messages
	c.forget()
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = errors.New("there is no " + path + sessionSuffix)
		}
		return fmt.Errorf("%w: %w", ErrReread, err)
	}
	c.session, c.read, c.text = session, s.Read, s.Text
	return nil
}

// ErrReread says that a conversation was loaded without the model's memory of it.
var ErrReread = errors.New("the conversation will be read anew")
