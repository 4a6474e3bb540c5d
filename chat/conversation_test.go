package chat

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"nha/backend/ref"
	"nha/generate"
	"nha/model"
	"nha/tokenizer"
)

const (
	plainTemplate = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
	// answers are shown without their first character: never as they were generated
	strippingTemplate = "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}{{ m.content[1:] }}{% else %}{{ m.content }}{% endif %}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)

// talker is a small model of bytes, with a window and slots, and how it samples.
func talker(t *testing.T) (*generate.Generator, tokenizer.Tokenizer, generate.Sampling) {
	t.Helper()
	c := model.NewConfig(257, 16, 2)
	c.NumHeads, c.NumKVHeads, c.HeadDim, c.IntermediateSize = 2, 1, 8, 24
	if err := c.ApplyPreset("nha", 5, 4); err != nil {
		t.Fatal(err)
	}
	m, err := model.New(c, ref.Backend{}, model.Init{Seed: 3, Std: 0.5})
	if err != nil {
		t.Fatal(err)
	}
	tk := tokenizer.Bytes{EndOfText: true}
	g := generate.New(m, tk)
	t.Cleanup(g.Close)
	s := generate.DefaultSampling()
	s.Temperature, s.MaxNewTokens, s.Seed = 1, 12, 5
	return g, tk, s
}

func template(t *testing.T, source string) *Template {
	t.Helper()
	p, err := Parse("test", source)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func ask(t *testing.T, c *Conversation, text string, s generate.Sampling) string {
	t.Helper()
	answer := ""
	if _, err := c.Ask(context.Background(), text, s, func(k generate.Token) error { answer += k.Text; return nil }); err != nil {
		t.Fatal(err)
	}
	return answer
}

// TestConversation: the session has read exactly the conversation as the template writes it, turn after turn, and nothing twice.
func TestConversation(t *testing.T) {
	g, tk, s := talker(t)
	c := NewConversation(g, tk, template(t, plainTemplate))
	c.Messages = []Message{{"system", "be brief"}}
	for i, question := range []string{"one", "two", "three"} {
		before := c.Session()
		ask(t, c, question, s)
		if c.rebuilt || i > 0 && c.Session() != before {
			t.Errorf("turn %d was read anew", i)
		}
		if c.Session().Position() != len(c.read) {
			t.Errorf("turn %d: %d tokens read, %d counted", i, c.Session().Position(), len(c.read))
		}
	}
	if len(c.Messages) != 7 || c.Messages[6].Role != "assistant" {
		t.Errorf("messages %+v", c.Messages)
	}
	// reading the same in one go gives the same logits
	again := g.NewSession()
	if err := again.Prefill(context.Background(), c.read); err != nil {
		t.Fatal(err)
	}
	for i, l := range again.Logits() {
		if math.Abs(l-c.Session().Logits()[i]) > 1e-9 {
			t.Fatalf("logit %d: %v turn by turn, %v at once", i, c.Session().Logits()[i], l)
		}
	}
	c.Reset()
	if len(c.Messages) != 1 || c.Session().Position() != 0 {
		t.Errorf("after a reset: %+v at %d", c.Messages, c.Session().Position())
	}
}

func TestConversationThatIsRewritten(t *testing.T) {
	g, tk, s := talker(t)
	c := NewConversation(g, tk, template(t, strippingTemplate))
	ask(t, c, "one", s)
	ask(t, c, "two", s)
	want, err := c.template.Encode(tk, c.Messages[:3], Options{AddGenerationPrompt: true})
	if err != nil || !c.rebuilt || !slices.Equal(c.read[:len(want)], want) {
		t.Errorf("rebuilt %v, %v", c.rebuilt, err)
	}
}

func TestConversationIsKept(t *testing.T) {
	g, tk, s := talker(t)
	c := NewConversation(g, tk, template(t, plainTemplate))
	ask(t, c, "one", s)
	path := filepath.Join(t.TempDir(), "talk.json")
	if err := c.Save(path); err != nil {
		t.Fatal(err)
	}
	want := ask(t, c, "two", s)
	d := NewConversation(g, tk, c.template)
	if err := d.Open(path); err != nil {
		t.Fatal(err)
	}
	if got := ask(t, d, "two", s); got != want || d.rebuilt {
		t.Errorf("after loading %q, without %q; rebuilt %v", got, want, d.rebuilt)
	}
	os.Remove(path + ".session")
	e := NewConversation(g, tk, c.template)
	if err := e.Open(path); !errors.Is(err, ErrReread) || len(e.Messages) != 2 {
		t.Errorf("without its session: %v, %+v", err, e.Messages)
	}
	// the bytes of an answer may be no text, so that its tokens are others now; but all of it is read
	if ask(t, e, "two", s); e.Session().Position() != len(e.read) || len(e.Messages) != 4 {
		t.Errorf("read anew: %d tokens, %d counted, %d messages", e.Session().Position(), len(e.read), len(e.Messages))
	}
	if err := os.WriteFile(path, []byte("[]"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := e.Open(path); err == nil || errors.Is(err, ErrReread) {
		t.Errorf("no conversation: %v", err)
	}
}

// TestConversationStopped: what was said before the user stopped it stays said.
func TestConversationStopped(t *testing.T) {
	g, tk, s := talker(t)
	c := NewConversation(g, tk, template(t, plainTemplate))
	ctx, cancel := context.WithCancel(context.Background())
	n := 0
	reason, err := c.Ask(ctx, "one", s, func(generate.Token) error {
		if n++; n == 3 {
			cancel()
		}
		return nil
	})
	if err != nil || reason != generate.Cancelled || len(c.Messages) != 2 {
		t.Fatalf("%v, %v, %+v", reason, err, c.Messages)
	}
	ask(t, c, "two", s)
	if c.Session().Position() != len(c.read) || len(c.Messages) != 4 {
		t.Errorf("%d tokens read, %d counted, %d messages", c.Session().Position(), len(c.read), len(c.Messages))
	}
	failed := errors.New("a broken pipe")
	if _, err := c.Ask(context.Background(), "three", s, func(generate.Token) error { return failed }); !errors.Is(err, failed) || len(c.Messages) != 4 {
		t.Errorf("%v, %d messages", err, len(c.Messages))
	}
	ask(t, c, "three", s)
}

// TestStopIsRefused: the conversation is as before.
func TestStopIsRefused(t *testing.T) {
	g, tk, s := talker(t)
	c := NewConversation(g, tk, template(t, plainTemplate))
	s.Stop = []string{"x"}
	if _, err := c.Ask(context.Background(), "one", s, func(generate.Token) error { return nil }); err == nil || len(c.Messages) > 0 {
		t.Errorf("%v, messages %+v", err, c.Messages)
	}
}
