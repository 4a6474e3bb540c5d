package tokenizer

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

// Bytes is the byte tokenizer: byte b is token b. With EndOfText there is a 257th token, <|endoftext|>, which is EOS.
type Bytes struct{ EndOfText bool }

// endOfByteText is the id of <|endoftext|>.
const endOfByteText = 256

var everyByte = func() (t [256]byte) {
	for i := range t {
		t[i] = byte(i)
	}
	return t
}()

var _ Tokenizer = Bytes{}

func (t Bytes) Encode(text string) []int32 {
	return t.EncodeAppend(make([]int32, 0, len(text)), text)
}

func (t Bytes) EncodeAppend(dst []int32, text string) []int32 {
	for t.EndOfText {
		before, behind, found := strings.Cut(text, EndOfText)
		if !found {
			break
		}
		dst = append(t.EncodeOrdinary(dst, before), endOfByteText)
		text = behind
	}
	return t.EncodeOrdinary(dst, text)
}

func (t Bytes) EncodeOrdinary(dst []int32, text string) []int32 {
	for i := range len(text) {
		dst = append(dst, int32(text[i]))
	}
	return dst
}

func (t Bytes) Decode(ids []int32) string { return decode(t, ids) }

func (t Bytes) Token(id int32) []byte {
	switch {
	case id >= 0 && id < 256:
		return everyByte[id : id+1 : id+1]
	case t.Special(id):
		return []byte(EndOfText)
	}
	return nil
}

func (t Bytes) Special(id int32) bool { return t.EndOfText && id == endOfByteText }

func (t Bytes) VocabSize() int {
	if t.EndOfText {
		return 257
	}
	return 256
}

func (t Bytes) BOS() (int32, bool) { return 0, false }

func (t Bytes) EOS() (int32, bool) {
	if t.EndOfText {
		return endOfByteText, true
	}
	return 0, false
}

func (t Bytes) Template() (before, behind []int32) { return nil, nil }

func (t Bytes) Hash() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "nha bytes 1 %v", t.EndOfText))
	return hex.EncodeToString(sum[:])
}

// Save writes the byte tokenizer as a byte-level BPE without merges, which Hugging Face reads and Load gives back as
// the Bytes it was.
func (t Bytes) Save(dir string) error { return save(dir, t.source(), t.config()) }

func (t Bytes) source() []byte {
	d := description{vocab: make([]string, 256)}
	for b, r := range byteRunes {
		d.vocab[b] = string(r)
	}
	if t.EndOfText {
		d.vocab = append(d.vocab, EndOfText)
		d.special(endOfByteText)
	}
	return d.byteLevel()
}

func (t Bytes) config() []byte {
	if t.EndOfText {
		return configJSON(named{"eos_token", EndOfText})
	}
	return configJSON()
}

// A starter is a tokenizer that decodes the first token of a text in another way than the others.
type starter interface{ first(id int32) []byte }

// decode concatenates the bytes of ids.
func decode(t Tokenizer, ids []int32) string {
	var b strings.Builder
	s, starts := t.(starter)
	for _, id := range ids {
		token := t.Token(id)
		if starts {
			starts = len(token) == 0
			token = s.first(id)
		}
		b.Write(token)
	}
	return b.String()
}
