package data

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"unicode"
	"unicode/utf8"
)

// Long texts are tokenised in pieces: in parallel, and without ever being in memory as a whole. The tokens are those of the
// whole text as long as the cut lies where the tokenizer's own pattern cuts, before it merges anything. Every byte-level
// BPE pattern in use (GPT-2, Llama 3, Qwen, o200k) cuts in two places that are easy to see: before a single space between
// two letters, and behind a single line end between two characters that are not space. The first is preferred: there, a
// tokenizer that puts a space in front of a text does not.
const (
	pieceSize  = 1 << 20 // a piece of a text file is about this long
	forcedSize = 1 << 24 // a text this long without any such place is cut between two characters
	preferSize = 1 << 12 // how far to look for the better place
)

func spaceCut[S string | []byte](text S, i int) bool {
	return i > 0 && i+1 < len(text) && text[i] == ' ' && letter(text[i-1]) && letter(text[i+1])
}

func letter(b byte) bool { return 'a' <= b|0x20 && b|0x20 <= 'z' }

func lineCut[S string | []byte](text S, i int) bool {
	if i < 2 || i >= len(text) || text[i-1] != '\n' {
		return false
	}
	before, _ := utf8.DecodeLastRuneInString(string(text[max(0, i-1-utf8.UTFMax) : i-1]))
	behind, _ := utf8.DecodeRuneInString(string(text[i:min(len(text), i+utf8.UTFMax)]))
	return !unicode.IsSpace(before) && !unicode.IsSpace(behind)
}

// lastCut is the last good place to cut text; 0 when there is none.
func lastCut(text []byte) int {
	for i := len(text) - 2; i > max(0, len(text)-preferSize); i-- {
		if spaceCut(text, i) {
			return i
		}
	}
	for i := len(text) - utf8.UTFMax; i > 0; i-- { // the character behind must be there as a whole
		if lineCut(text, i) || spaceCut(text, i) {
			return i
		}
	}
	return 0
}

// nextCut is the first good place at least size bytes into text; len(text) when there is none.
func nextCut(text string, size int) int {
	for i := size; i < min(len(text), size+preferSize); i++ {
		if spaceCut(text, i) {
			return i
		}
	}
	for i := size; i < len(text); i++ {
		if lineCut(text, i) || spaceCut(text, i) {
			return i
		}
	}
	return len(text)
}

// readText reads a text file: one document, or several with the line separator between them.
func readText(r io.Reader, path, separator string, emit func(Document) error) error {
	b := bufio.NewReaderSize(r, 1<<16)
	t := textReader{path: path, line: 1, limit: pieceSize, emit: emit}
	if mark, _ := b.Peek(3); string(mark) == "\uFEFF" {
		b.Discard(3)
		t.offset = 3
	}
	whole := true // the last line read was read to its end
	for {
		start := len(t.text)
		var err error
		t.text, err = appendLine(t.text, b, pieceSize)
		if err != nil && err != io.EOF && err != bufio.ErrBufferFull {
			return readError(path, err)
		}
		line := t.text[start:]
		if i := bytes.IndexByte(line, 0); i >= 0 {
			return notText(path, t.offset+int64(start+i))
		}
		begins := whole
		whole = err != bufio.ErrBufferFull
		if separator != "" && begins && whole && string(bytes.TrimRight(line, "\r\n")) == separator {
			skipped := len(line)
			t.text = t.text[:start]
			if err := t.flush(len(t.text), false); err != nil {
				return err
			}
			t.offset += int64(skipped)
			t.line++
		}
		if err == io.EOF {
			return t.flush(len(t.text), false)
		}
		if len(t.text) >= t.limit {
			if err := t.cut(); err != nil {
				return err
			}
		}
	}
}

// textReader gathers the text of a document until it is whole or long enough for a piece.
type textReader struct {
	path   string
	text   []byte
	offset int64 // of text in the file
	line   int   // of text in the file
	limit  int   // cut when text is this long
	emit   func(Document) error
}

func (t *textReader) cut() error {
	n := lastCut(t.text)
	if n == 0 && len(t.text) < forcedSize {
		t.limit = 2 * len(t.text)
		return nil
	}
	if n == 0 {
		for n = len(t.text) - 1; n > 1 && !utf8.RuneStart(t.text[n]); n-- {
		}
	}
	return t.flush(n, true)
}

// flush emits the first n bytes of the text.
func (t *textReader) flush(n int, continues bool) error {
	text := t.text[:n]
	if !utf8.Valid(text) {
		return notText(t.path, t.offset+int64(invalidAt(text)))
	}
	d := Document{Text: string(text), Source: t.path, Line: t.line, Continues: continues}
	t.line += bytes.Count(text, []byte{'\n'})
	t.offset += int64(n)
	t.text = t.text[:copy(t.text, t.text[n:])]
	t.limit = pieceSize
	return t.emit(d)
}

func invalidAt(text []byte) int {
	for i := 0; i < len(text); {
		r, size := utf8.DecodeRune(text[i:])
		if r == utf8.RuneError && size == 1 {
			return i
		}
		i += size
	}
	return len(text)
}

func notText(path string, offset int64) error {
	return fmt.Errorf("%s: byte %d is not UTF-8 text: a binary file, or another encoding?", path, offset)
}
