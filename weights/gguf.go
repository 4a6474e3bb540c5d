package weights

import (
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"

	"nha/atomicfile"
	"nha/mapfile"
	"nha/tensor"
)

// GGUF is an open GGUF file: llama.cpp's container of weights, configuration and tokenizer, as a Source under Hugging
// Face's names. Quantised tensors come as their blocks, as views on the mapping, but for the query and key projections of
// architecture llama: llama.cpp keeps their rows in the order of its rotary embedding, and Tensor gives a copy in Hugging Face's.
type GGUF struct {
	path    string
	data    []byte
	unmap   func() error
	values  map[string]any
	pairs   []ggufPair
	family  *ggufFamily // nil: a file without tensors, a vocabulary
	entries map[string]ggufEntry
	factors entry // rope_freqs.weight, if there is one

	mutex  sync.Mutex
	copies map[string]tensor.Tensor // reordered projections, once asked for
}

// ggufEntry is a tensor under its Hugging Face name. heads > 0: the rows of so many heads lie in llama.cpp's order.
type ggufEntry struct {
	entry
	heads int
}

// IsGGUF reports whether the file at path begins as a GGUF file does.
func IsGGUF(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	head := make([]byte, 4)
	_, err = io.ReadFull(f, head)
	return err == nil && hasMagic(head)
}

// OpenGGUF maps the GGUF file at path and checks all that it says before its tensors' bytes. A tensor of a type or a name
// that is not understood is an error; a file without tensors, a vocabulary, may be of any architecture.
func OpenGGUF(path string) (*GGUF, error) {
	data, unmap, err := mapfile.Open(path)
	if err != nil {
		return nil, err
	}
	g, err := newGGUF(path, data)
	if err != nil {
		unmap()
		return nil, err
	}
	g.unmap = unmap
	return g, nil
}

func newGGUF(path string, data []byte) (*GGUF, error) {
	h, err := parseGGUF(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	g := &GGUF{path: path, data: data, unmap: func() error { return nil }, values: h.values, pairs: h.pairs, entries: map[string]ggufEntry{}, copies: map[string]tensor.Tensor{}}
	if parts, ok := h.values["split.count"].(uint64); ok && parts > 1 {
		return nil, fmt.Errorf("%s: one of %d files of a model: merge them first (llama-gguf-split --merge)", path, parts)
	}
	if len(h.entries) == 0 {
		return g, nil
	}
	if g.family, err = familyOf(h.values); err == nil {
		err = g.rename(h.entries)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return g, nil
}

// Value is a metadata value: string, bool, int64, uint64, float64, []string, []float32, []int32, or []any of the former.
func (g *GGUF) Value(key string) (any, bool) {
	v, ok := g.values[key]
	return v, ok
}

// ChatTemplate is the Jinja template of the chat, "" where the file has none.
func (g *GGUF) ChatTemplate() string {
	text, _ := g.values["tokenizer.chat_template"].(string)
	return text
}

// Names lists the tensors under Hugging Face's names, sorted.
func (g *GGUF) Names() []string { return slices.Sorted(maps.Keys(g.entries)) }

// Metadata is what the file says about itself as text: the string-valued keys "general.*".
func (g *GGUF) Metadata() map[string]string {
	m := map[string]string{}
	for key, v := range g.values {
		if text, ok := v.(string); ok && strings.HasPrefix(key, "general.") {
			m[key] = text
		}
	}
	return m
}

// Tensor is a read-only tensor under its Hugging Face name, valid until Close.
func (g *GGUF) Tensor(name string) (tensor.Tensor, bool) {
	e, ok := g.entries[name]
	if !ok {
		return tensor.Tensor{}, false
	}
	t := g.view(e.entry)
	if e.heads == 0 {
		return t, true
	}
	g.mutex.Lock()
	defer g.mutex.Unlock()
	c, ok := g.copies[name]
	if !ok {
		c = unpermute(t, e.heads)
		g.copies[name] = c
	}
	return c, true
}

func (g *GGUF) view(e entry) tensor.Tensor {
	if e.from == e.to {
		return tensor.New(e.dtype, e.shape)
	}
	return tensor.FromBytes(e.dtype, e.shape, g.data[e.from:e.to:e.to])
}

// unpermute is t with the rows of each head in Hugging Face's order: llama.cpp rotates neighbours, elements 2i and 2i+1,
// Hugging Face elements i and i + D/2. Rows are whole blocks, so they move as they are.
func unpermute(t tensor.Tensor, heads int) tensor.Tensor {
	out := tensor.New(t.DType, t.Shape)
	rows := t.Dim(0)
	row, d := len(t.Bytes())/rows, rows/heads
	for h := range heads {
		for half := range 2 {
			for i := range d / 2 {
				to, from := h*d+half*d/2+i, h*d+2*i+half
				copy(out.Bytes()[to*row:][:row], t.Bytes()[from*row:])
			}
		}
	}
	return out
}

// VocabularyName is the file in a model directory that holds the vocabulary of a GGUF file, where there is no tokenizer.json.
const VocabularyName = "tokenizer.gguf"

// WriteVocabulary writes a GGUF file without tensors: the architecture and all that the metadata says about the tokenizer, byte
// for byte. OpenGGUF reads it.
func (g *GGUF) WriteVocabulary(path string) error {
	var list [][]byte
	for _, p := range g.pairs {
		if p.key == "general.architecture" || strings.HasPrefix(p.key, "tokenizer.") {
			list = append(list, g.data[p.from:p.to])
		}
	}
	head := binary.LittleEndian.AppendUint32([]byte("GGUF"), 3)
	head = binary.LittleEndian.AppendUint64(head, 0)
	head = binary.LittleEndian.AppendUint64(head, uint64(len(list)))
	return atomicfile.WriteFile(path, 0o644, func(w io.Writer) error {
		for _, b := range append([][]byte{head}, list...) {
			if _, err := w.Write(b); err != nil {
				return err
			}
		}
		return nil
	})
}

// Close unmaps the file: its views must not be used afterwards. A second Close does nothing.
func (g *GGUF) Close() error {
	unmap := g.unmap
	g.unmap, g.data, g.copies, g.entries = func() error { return nil }, nil, nil, nil
	if err := unmap(); err != nil {
		return fmt.Errorf("%s: unmap: %w", g.path, err)
	}
	return nil
}
