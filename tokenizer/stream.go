package tokenizer

import "unicode/utf8"

// StreamDecoder turns ids that arrive one by one into text that is valid UTF-8 at every moment: bytes of a character
// wait until it is complete. The strings together are Lossy of what Decode gives for all ids.
type StreamDecoder struct {
	t       Tokenizer
	inside  bool // a text has begun
	pending []byte
}

// NewStreamDecoder returns a decoder at the start of a text.
func NewStreamDecoder(t Tokenizer) *StreamDecoder { return &StreamDecoder{t: t} }

// NewStreamContinuation returns a decoder for ids that go on with a text: the space that SentencePiece writes in front of a
// text is kept where it belongs to the first word of the continuation.
func NewStreamContinuation(t Tokenizer) *StreamDecoder { return &StreamDecoder{t: t, inside: true} }

// Push takes one more id and returns the text that is complete with it, which may be empty.
func (d *StreamDecoder) Push(id int32) string {
	token := d.t.Token(id)
	if s, ok := d.t.(starter); ok && !d.inside {
		d.inside = len(token) > 0
		token = s.first(id)
	}
	d.pending = append(d.pending, token...)
	text, rest := lossy(d.pending, false)
	d.pending = append(d.pending[:0], rest...)
	return text
}

// Flush ends the text: it returns U+FFFD if a character was left incomplete. What is pushed then goes on with the same text.
func (d *StreamDecoder) Flush() string {
	text, _ := lossy(d.pending, true)
	d.pending = d.pending[:0]
	return text
}

// Lossy replaces what is not UTF-8 by U+FFFD, one for each maximal part of a character, as Hugging Face's decoders do.
func Lossy(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	text, _ := lossy([]byte(s), true)
	return text
}

// lossy is Lossy over b; unless it ends there, the start of a character at its end is returned as rest.
func lossy(b []byte, ends bool) (text string, rest []byte) {
	out := make([]byte, 0, len(b)+utf8.UTFMax)
	for len(b) > 0 {
		if r, n := utf8.DecodeRune(b); r != utf8.RuneError || n > 1 {
			out = append(out, b[:n]...)
			b = b[n:]
			continue
		}
		// b[:n] is the longest start of some character; at the end of b more bytes may complete it.
		n := 1
		for n < len(b) && !utf8.FullRune(b[:n+1]) {
			n++
		}
		if n == len(b) && !utf8.FullRune(b) && !ends {
			return string(out), b
		}
		out = utf8.AppendRune(out, utf8.RuneError)
		b = b[n:]
	}
	return string(out), nil
}
