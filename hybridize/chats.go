package hybridize

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

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

// dayOfTraining is what templates write that ask for the date, so that a text is the same on every day.
var dayOfTraining = time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)

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
		list, err := encodeChat(template, tk, line.Messages, context)
		if err != nil {
			return err
		}
		for _, one := range list {
			for _, part := range [][]int32{{int32(len(one.tokens))}, one.tokens, one.targets} {
				_ = binary.Write(h, binary.LittleEndian, part) // a hash does not fail
			}
		}
		c.list = append(c.list, list...)
		return nil
	})
	if err != nil {
		return nil, err
	}
	if len(c.list) == 0 {
		return nil, fmt.Errorf("%s: no conversations", files[0])
	}
	c.hash = hex.EncodeToString(h.Sum(nil))
	return c, nil
}

// encodeChat is a conversation with the assistant's tokens as targets: those by which each of its turns extends the text that asks for it. Where the
// template writes earlier turns otherwise once there are later ones (some leave thoughts out), it becomes several, each as the model saw it when
// it was to answer.
func encodeChat(t *chat.Template, tk tokenizer.Tokenizer, messages []chat.Message, context int) ([]conversation, error) {
	var list []conversation
	answers := 0
	for i, m := range messages {
		if m.Role != "assistant" {
			continue
		}
		before, err := t.Encode(tk, messages[:i], chat.Options{AddGenerationPrompt: true, Now: dayOfTraining})
		if err != nil {
			return nil, err
		}
		after, err := t.Encode(tk, messages[:i+1], chat.Options{Now: dayOfTraining})
		if err != nil {
			return nil, err
		}
		from := common(before, after)
		if from < len(before)-1 || from == len(after) {
			return nil, fmt.Errorf("message %d: the template writes an answer otherwise than it asks for one: train on this model's chats as text", i+1)
		}
		answers++
		if last := len(list) - 1; last < 0 || common(list[last].tokens, after) < len(list[last].tokens) {
			list = append(list, conversation{})
		}
		c := &list[len(list)-1]
		for j := len(c.tokens); j < len(after); j++ {
			c.tokens, c.targets = append(c.tokens, after[j]), append(c.targets, -1)
			if j >= from && j > 0 {
				c.targets[j-1] = after[j]
			}
		}
	}
	if answers == 0 {
		return nil, errors.New(`no message with role "assistant": nothing to learn`)
	}
	list = slices.DeleteFunc(list, func(c conversation) bool {
		return !slices.ContainsFunc(c.targets[:min(context, len(c.targets))], func(id int32) bool { return id >= 0 })
	})
	if len(list) == 0 {
		return nil, fmt.Errorf("the first answer begins after a context of %d tokens: raise context or shorten the conversation", context)
	}
	for i := range list {
		list[i].cut(context)
	}
	return list, nil
}

// common is the number of tokens with which both begin. What asks for an answer may join its last token with the answer's first.
func common(a, b []int32) (n int) {
	for n < min(len(a), len(b)) && a[n] == b[n] {
		n++
	}
	return n
}

// cut leaves out what does not fit into a context; the last token left still has a target.
func (c *conversation) cut(context int) {
	n := min(context, len(c.tokens))
	c.tokens, c.targets = c.tokens[:n], c.targets[:n]
}

// batch is the conversation alone.
func (c *conversation) batch() model.Batch {
	return model.Batch{Tokens: c.tokens, Targets: c.targets, Lengths: []int{len(c.tokens)}}
}

// holdOut takes conversations away to validate on, one of a hundred, at most validationRows; one that is alone stays.
func (c *chats) holdOut(seed uint64) (list []model.Batch) {
	count := min(validationRows, (len(c.list)+99)/100, len(c.list)-1)
	r := rand.New(rand.NewPCG(seed, 0))
	for range count {
		i := r.IntN(len(c.list))
		list = append(list, c.list[i].batch())
		c.list = slices.Delete(c.list, i, i+1)
	}
	return list
}

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
	if s.at.Next < 0 || s.at.Next > len(s.chats.list) {
		return fmt.Errorf("position in the chats: %d of %d", s.at.Next, len(s.chats.list))
	}
	return nil
}
