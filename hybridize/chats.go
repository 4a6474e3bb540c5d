package hybridize

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"

	"nha/chat"
	"nha/data"
	"nha/model"
	"nha/tokenizer"
	"nha/train"
)

const (
	textKind = "text"
	chatKind = "chat"
)

// chats are conversations under the model's template. Only what the assistant says is predicted; the rest is read. A conversation longer than the
// context loses its end.
type chats struct {
	list []conversation
	hash string
}

type conversation struct{ tokens, targets []int32 }

// readChats reads lines {"messages": [{"role", "content"}, ...]}.
func readChats(files []string, path string, tk tokenizer.Tokenizer, context int) (*chats, error) {
	template, err := chat.Open(path)
	if err != nil {
		return nil, err
	}
	c, h := &chats{}, sha256.New()
	err = data.Objects(files, func(_ string, _ int, raw []byte) error {
		var line struct {
			Messages []chat.Message `json:"messages"`
		}
		if err := json.Unmarshal(raw, &line); err != nil {
			return err
		}
		one, err := encodeChat(template, tk, line.Messages, context)
		if err != nil {
			return err
		}
		h.Write(raw)
		c.list = append(c.list, one)
		return nil
	})
	if err == nil && len(c.list) == 0 {
		err = fmt.Errorf("%s: no conversations", files[0])
	}
	c.hash = hex.EncodeToString(h.Sum(nil))
	return c, err
}

// encodeChat is a conversation with the assistant's tokens as targets: those by which each of its turns extends the text before it.
func encodeChat(t *chat.Template, tk tokenizer.Tokenizer, messages []chat.Message, context int) (conversation, error) {
	var c conversation
	answers := false
	for i, m := range messages {
		if m.Role != "assistant" {
			continue
		}
		before, err := t.Encode(tk, messages[:i], chat.Options{AddGenerationPrompt: true})
		if err != nil {
			return c, err
		}
		after, err := t.Encode(tk, messages[:i+1], chat.Options{})
		if err != nil {
			return c, err
		}
		if len(before) >= len(after) || !slices.Equal(before, after[:len(before)]) || !slices.Equal(c.tokens, after[:len(c.tokens)]) {
			return c, fmt.Errorf("message %d: the template writes an answer otherwise than it asks for one: train on this model's chats as text", i+1)
		}
		for j := len(c.tokens); j < len(after); j++ {
			c.tokens, c.targets = append(c.tokens, after[j]), append(c.targets, -1)
			if j >= len(before) && j > 0 {
				c.targets[j-1] = after[j]
			}
		}
		answers = true
	}
	if !answers {
		return c, errors.New(`no message with role "assistant": nothing to learn`)
	}
	n := min(context, len(c.tokens))
	c.tokens, c.targets = c.tokens[:n], c.targets[:n]
	if !slices.ContainsFunc(c.targets, func(id int32) bool { return id >= 0 }) {
		return c, fmt.Errorf("the first answer begins after a context of %d tokens: raise context or shorten the conversation", context)
	}
	return c, nil
}

func (c *chats) fingerprint() string { return c.hash }

// source deals out whole conversations, as many as fit into so many tokens, in another order every epoch.
func (c *chats) source(seed uint64, tokens int) train.Source {
	return &chatSource{chats: c, seed: seed, tokens: tokens}
}

type chatSource struct {
	chats  *chats
	seed   uint64
	tokens int
	at     chatState
	order  []int
}

type chatState struct {
	Epoch int `json:"epoch"`
	Next  int `json:"next"` // of the epoch's order
}

// Next implements train.Source.
func (s *chatSource) Next(b *model.Batch) error {
	b.Tokens, b.Targets, b.Lengths = b.Tokens[:0], b.Targets[:0], b.Lengths[:0]
	for {
		if s.order == nil {
			s.order = rand.New(rand.NewPCG(s.seed, uint64(s.at.Epoch))).Perm(len(s.chats.list))
		}
		if s.at.Next == len(s.order) {
			s.at, s.order = chatState{Epoch: s.at.Epoch + 1}, nil
			continue
		}
		c := &s.chats.list[s.order[s.at.Next]]
		if len(b.Tokens) > 0 && len(b.Tokens)+len(c.tokens) > s.tokens {
			return nil
		}
		b.Tokens, b.Targets, b.Lengths = append(b.Tokens, c.tokens...), append(b.Targets, c.targets...), append(b.Lengths, len(c.tokens))
		s.at.Next++
	}
}

// State implements train.Source.
func (s *chatSource) State() (json.RawMessage, error) { return json.Marshal(s.at) }

// Restore implements train.Source.
func (s *chatSource) Restore(state json.RawMessage) error {
	s.order = nil
	if err := json.Unmarshal(state, &s.at); err != nil {
		return fmt.Errorf("position in the chats: %w", err)
	}
	if s.at.Next > len(s.chats.list) {
		return fmt.Errorf("position in the chats: %d of %d", s.at.Next, len(s.chats.list))
	}
	return nil
}
