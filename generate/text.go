package generate

import (
	"strings"

	"nha/tokenizer"
)

// textStream turns the tokens of a continuation into text: whole characters only, no special tokens, and nothing of a stop
// string. What may be the beginning of a stop string is held until the next token decides.
type textStream struct {
	tk      tokenizer.Tokenizer
	decoder *tokenizer.StreamDecoder
	stops   []string
	held    string
}

// newTextStream continues a text whose last tokens, tail, end in the middle of a character.
func newTextStream(tk tokenizer.Tokenizer, stops []string, tail []int32) textStream {
	t := textStream{tk: tk, decoder: tokenizer.NewStreamContinuation(tk), stops: stops}
	for _, id := range tail {
		t.decoder.Push(id) // what it completes was text before
	}
	return t
}

// push returns the text that is certain after one more token, and whether a stop string ended the text.
func (t *textStream) push(id int32) (text string, stopped bool) {
	if t.tk.Special(id) {
		return t.hold(t.decoder.Flush())
	}
	return t.hold(t.decoder.Push(id))
}

func (t *textStream) hold(piece string) (text string, stopped bool) {
	text, t.held = t.held+piece, ""
	end, keep := -1, 0
	for _, stop := range t.stops {
		if i := strings.Index(text, stop); i >= 0 && (end < 0 || i < end) {
			end = i
		}
		for n := min(len(stop)-1, len(text)); n > keep; n-- {
			if strings.HasSuffix(text, stop[:n]) {
				keep = n
			}
		}
	}
	if end >= 0 {
		return text[:end], true
	}
	t.held = text[len(text)-keep:]
	return text[:len(text)-keep], false
}

// release gives up waiting for a stop string. A character that is not complete stays with the session, which may go on.
func (t *textStream) release() string {
	text := t.held
	t.held = ""
	return text
}

// end is the rest of a text that is over.
func (t *textStream) end() string {
	text, stopped := t.hold(t.decoder.Flush())
	if stopped {
		return text
	}
	return text + t.release()
}
