package generate

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"

	"nha/atomicfile"
	"nha/attention"
)

// A session file, little-endian:
//
//	"NHASESSN", version, length of the head         8 bytes, uint32, uint32
//	head                                            JSON (sessionHead)
//	seen tokens                                     ceil(vocabulary / 64) x uint64
//	logits                                          vocabulary x float64
//	CRC-32C of all that                             uint32
//	decode states                                   attention.WriteStates
//
// What the session depends on stands in the head in words, so that a file that does not fit is refused with the difference,
// before anything of its size is allocated.
const (
	sessionMagic   = "NHASESSN"
	sessionVersion = 1
	maxHead        = 1 << 20
)

type sessionPrefix struct {
	Magic         [8]byte
	Version, Head uint32
}

type sessionHead struct {
	Model      string  `json:"model"` // model.Hash
	Tokenizer  string  `json:"tokenizer"`
	Windows    string  `json:"layer_windows"` // model.Windows, as a pattern
	Layers     int     `json:"num_hidden_layers"`
	Slots      int     `json:"num_slots"`
	EmptySlots string  `json:"empty_slots"`
	Vocabulary int     `json:"vocab_size"`
	Position   int     `json:"position"`
	Tail       []int32 `json:"tail"`
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// head is what a session of this generator says of itself.
func (g *Generator) head() sessionHead {
	c := &g.m.Config
	return sessionHead{Model: g.m.Hash(), Tokenizer: g.tk.Hash(), Windows: c.LayerWindows.String(), Layers: c.NumHiddenLayers, Slots: c.NumSlots, EmptySlots: c.EmptySlots,
		Vocabulary: c.VocabSize}
}

// layers is the attention of every layer and the model's hash, as the states' own form wants them.
func (g *Generator) layers() (hash [32]byte, configs []*attention.Config, err error) {
	if n, err := hex.Decode(hash[:], []byte(g.m.Hash())); err != nil || n != len(hash) {
		return hash, nil, fmt.Errorf("model hash %q is not 32 bytes in hexadecimal", g.m.Hash())
	}
	for i := range g.m.Config.NumHiddenLayers {
		c, err := g.m.Config.Attention(i, nil)
		if err != nil {
			return hash, nil, err
		}
		configs = append(configs, c)
	}
	return hash, configs, nil
}

// Save writes the session to a file, atomically.
func (s *Session) Save(path string) error {
	return atomicfile.WriteFile(path, 0o644, s.write)
}

func (s *Session) write(w io.Writer) error {
	head := s.g.head()
	head.Position, head.Tail = s.Position(), s.tail
	text, err := json.Marshal(head)
	if err != nil {
		return err
	}
	sum := crc32.New(castagnoli)
	out := io.MultiWriter(w, sum)
	prefix := sessionPrefix{Version: sessionVersion, Head: uint32(len(text))}
	copy(prefix.Magic[:], sessionMagic)
	for _, part := range []any{prefix, text, []uint64(s.seen), s.logits} {
		if err := binary.Write(out, binary.LittleEndian, part); err != nil {
			return err
		}
	}
	if err := binary.Write(w, binary.LittleEndian, sum.Sum32()); err != nil {
		return err
	}
	hash, configs, err := s.g.layers()
	if err != nil {
		return err
	}
	return attention.WriteStates(w, hash, configs, s.state.Layers)
}

// LoadSession reads what Save wrote. A file of another model, tokenizer, windows, number of slots or rule for empty slots is an
// error that says what differs; so is one that is truncated or damaged. On the backend and number of threads that wrote it,
// the session goes on with the same bits as if it had never been saved.
func (g *Generator) LoadSession(path string) (*Session, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("session: %w", err)
	}
	defer f.Close()
	s, err := g.readSession(bufio.NewReaderSize(f, 1<<16))
	if err != nil {
		return nil, fmt.Errorf("session %s: %w", path, err)
	}
	return s, nil
}

func (g *Generator) readSession(r io.Reader) (*Session, error) {
	sum := crc32.New(castagnoli)
	in := io.TeeReader(r, sum)
	var prefix sessionPrefix
	if err := binary.Read(in, binary.LittleEndian, &prefix); err != nil {
		return nil, truncated(err)
	}
	switch {
	case string(prefix.Magic[:]) != sessionMagic:
		return nil, fmt.Errorf("not a session file: it begins with %q", prefix.Magic[:])
	case prefix.Version != sessionVersion:
		return nil, fmt.Errorf("format version %d, this program reads %d", prefix.Version, sessionVersion)
	case prefix.Head > maxHead:
		return nil, fmt.Errorf("head of %d bytes: damaged", prefix.Head)
	}
	text := make([]byte, prefix.Head)
	if _, err := io.ReadFull(in, text); err != nil {
		return nil, truncated(err)
	}
	var head sessionHead
	if err := json.Unmarshal(text, &head); err != nil {
		return nil, fmt.Errorf("damaged head: %w", err)
	}
	if err := head.check(g.head()); err != nil {
		return nil, err
	}
	s := g.NewSession()
	for _, part := range []any{[]uint64(s.seen), s.logits} {
		if err := binary.Read(in, binary.LittleEndian, part); err != nil {
			return nil, truncated(err)
		}
	}
	want := sum.Sum32()
	var got uint32
	if err := binary.Read(r, binary.LittleEndian, &got); err != nil {
		return nil, truncated(err)
	}
	if got != want {
		return nil, fmt.Errorf("damaged: checksum %08x, want %08x", got, want)
	}
	for _, id := range head.Tail {
		s.remember(id)
	}
	hash, configs, err := g.layers()
	if err != nil {
		return nil, err
	}
	layers, err := attention.ReadStates(r, hash, configs)
	if err != nil {
		return nil, err
	}
	for i, l := range layers {
		if l.Position != head.Position {
			return nil, fmt.Errorf("damaged: layer %d is at position %d, the session at %d", i, l.Position, head.Position)
		}
		if d := g.m.Backend().DType(); l.DType() != d {
			layers[i] = l.ConvertTo(d)
		}
	}
	s.state.Position, s.state.Layers = head.Position, layers
	return s, nil
}

// check says in what a session differs from what this model and tokenizer continue.
func (h *sessionHead) check(want sessionHead) error {
	for _, d := range []struct {
		what      string
		got, want any
	}{
		{"num_hidden_layers", h.Layers, want.Layers}, {"num_slots", h.Slots, want.Slots}, {"empty_slots", h.EmptySlots, want.EmptySlots}, {"vocab_size", h.Vocabulary, want.Vocabulary},
		{"layer windows", h.Windows, want.Windows},
	} {
		if d.got != d.want {
			return fmt.Errorf("it was made with %s %v, the model has %v", d.what, d.got, d.want)
		}
	}
	switch {
	case h.Model != want.Model:
		return fmt.Errorf("it was made by another model (%.12s, this one is %.12s)", h.Model, want.Model)
	case h.Tokenizer != want.Tokenizer:
		return fmt.Errorf("it was made with another tokenizer (%.12s, this one is %.12s)", h.Tokenizer, want.Tokenizer)
	}
	for _, id := range h.Tail {
		if id < 0 || int(id) >= want.Vocabulary {
			return fmt.Errorf("damaged: token %d is outside the vocabulary of %d", id, want.Vocabulary)
		}
	}
	return nil
}

// truncated says in plain words that the file ended early.
func truncated(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("truncated: the file ends early")
	}
	return err
}
