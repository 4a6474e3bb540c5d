package attention

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"

	"nha/tensor"
)

// The serialised form of one sequence's states, one for each layer (SPEC 1.1), little-endian:
//
//	"NHASTATE", version, number of layers           8 bytes, uint32, uint32
//	hash of the model, position                     32 bytes, uint64
//	for every layer: W, M, H, K, V                  5 x uint32, a full window as 2^31-1
//	                 empty-slot rule, dtype         8 bytes and 4 bytes, names padded with zeros
//	                 slot keys, slot values         [H, M, K], [H, M, V]
//	                 keys, values, log gates        [H, min(W, position), *] in the order of time, unrotated
//	CRC-32C of all that
//
// A state is good for the model, window and slots that made it and nothing else, so all that is held against the reader's own
// configuration. Sizes follow from that configuration and the position alone, and memory is taken as the bytes arrive.

const (
	stateMagic   = "NHASTATE"
	stateVersion = 1
)

type stateHeader struct {
	Magic           [8]byte
	Version, Layers uint32
	Model           [32]byte
	Position        uint64
}

type layerHeader struct {
	Window, Slots, KVHeads, KeyDim, ValueDim uint32
	EmptySlots                               [8]byte
	DType                                    [4]byte
}

func newLayerHeader(c *Config, d tensor.DType) layerHeader {
	h := layerHeader{
		Window: uint32(c.Window), Slots: uint32(c.Slots), KVHeads: uint32(c.KVHeads), KeyDim: uint32(c.KeyDim), ValueDim: uint32(c.ValueDim),
	}
	copy(h.EmptySlots[:], c.EmptySlots.String())
	copy(h.DType[:], d.String())
	return h
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// WriteStates writes the states of one sequence, one for each layer, as ReadStates reads them. model is a hash of the weights
// and the configuration, by which the reader knows its own. The error is w's, or says which layer's state does not fit.
func WriteStates(w io.Writer, model [32]byte, configs []*Config, states []*State) error {
	if len(states) != len(configs) {
		return fmt.Errorf("%d states for %d layers", len(states), len(configs))
	}
	header := stateHeader{Version: stateVersion, Layers: uint32(len(states)), Model: model}
	copy(header.Magic[:], stateMagic)
	for i, s := range states {
		if err := s.Check(configs[i]); err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
		if s.Position != states[0].Position {
			return fmt.Errorf("layer %d is at position %d, layer 0 at %d", i, s.Position, states[0].Position)
		}
		header.Position = uint64(s.Position)
	}
	buffered := bufio.NewWriterSize(w, 1<<16)
	sum := crc32.New(castagnoli)
	out := io.MultiWriter(buffered, sum)
	if err := binary.Write(out, binary.LittleEndian, header); err != nil {
		return err
	}
	for i, s := range states {
		if err := s.write(out, configs[i]); err != nil {
			return err
		}
	}
	if err := binary.Write(buffered, binary.LittleEndian, sum.Sum32()); err != nil {
		return err
	}
	return buffered.Flush()
}

func (s *State) write(w io.Writer, c *Config) error {
	if err := binary.Write(w, binary.LittleEndian, newLayerHeader(c, s.DType())); err != nil {
		return err
	}
	for _, t := range []tensor.Tensor{s.SlotKeys, s.SlotValues} {
		if _, err := w.Write(t.Bytes()); err != nil {
			return err
		}
	}
	for _, t := range s.ringTensors() {
		if !t.Present() {
			continue
		}
		row := t.Columns() * t.DType.Size()
		for h := range c.KVHeads {
			for _, p := range s.parts() {
				first := h*s.Capacity() + p.first
				if _, err := w.Write(t.Bytes()[first*row : (first+p.rows)*row]); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// ReadStates reads what WriteStates wrote, to its end. It is an error if the states are of another model, other windows, slots,
// sizes or rules than configs (it says which), or if the bytes are damaged, too few or too many.
func ReadStates(r io.Reader, model [32]byte, configs []*Config) ([]*State, error) {
	buffered, sum := bufio.NewReaderSize(r, 1<<16), crc32.New(castagnoli)
	in := io.TeeReader(buffered, sum)
	var header stateHeader
	if err := binary.Read(in, binary.LittleEndian, &header); err != nil {
		return nil, truncated(err)
	}
	switch {
	case string(header.Magic[:]) != stateMagic:
		return nil, fmt.Errorf("not a saved state: it begins with %q, want %q", header.Magic[:], stateMagic)
	case header.Version != stateVersion:
		return nil, fmt.Errorf("saved state of format version %d, this program reads %d", header.Version, stateVersion)
	case header.Model != model:
		return nil, fmt.Errorf("saved state of another model (%x..., this one is %x...)", header.Model[:6], model[:6])
	case int64(header.Layers) != int64(len(configs)):
		return nil, fmt.Errorf("saved state of %d layers, the model has %d", header.Layers, len(configs))
	case header.Position > math.MaxInt64/2:
		return nil, fmt.Errorf("saved state at position %d: damaged", header.Position)
	}
	var states []*State
	for i, c := range configs {
		s, err := readState(in, c, int(header.Position))
		if err != nil {
			return nil, fmt.Errorf("saved state of layer %d: %w", i, err)
		}
		states = append(states, s)
	}
	want := sum.Sum32()
	var got uint32
	if err := binary.Read(buffered, binary.LittleEndian, &got); err != nil {
		return nil, truncated(err)
	}
	if got != want {
		return nil, fmt.Errorf("saved state is damaged: checksum %08x, want %08x", got, want)
	}
	if _, err := buffered.ReadByte(); err != io.EOF {
		if err != nil {
			return nil, err
		}
		return nil, errors.New("saved state is damaged: bytes after its end")
	}
	return states, nil
}

func readState(r io.Reader, c *Config, position int) (*State, error) {
	var h layerHeader
	if err := binary.Read(r, binary.LittleEndian, &h); err != nil {
		return nil, truncated(err)
	}
	d, err := tensor.ParseDType(string(bytes.TrimRight(h.DType[:], "\x00")))
	if err != nil || !d.Float() {
		return nil, fmt.Errorf("element type %q: damaged", h.DType[:])
	}
	want := newLayerHeader(c, d)
	for _, number := range []struct {
		name      string
		got, want uint32
	}{
		{"window", h.Window, want.Window}, {"num_slots", h.Slots, want.Slots}, {"num_kv_heads", h.KVHeads, want.KVHeads},
		{"key dimension", h.KeyDim, want.KeyDim}, {"value dimension", h.ValueDim, want.ValueDim},
	} {
		if number.got != number.want {
			return nil, fmt.Errorf("it was made with %s %s, the model has %s", number.name, windowName(int(number.got)), windowName(int(number.want)))
		}
	}
	if h.EmptySlots != want.EmptySlots {
		return nil, fmt.Errorf("it was made with empty_slots %q, the model has %q", bytes.TrimRight(h.EmptySlots[:], "\x00"), c.EmptySlots)
	}
	if h.DType != want.DType {
		return nil, fmt.Errorf("element type %q: damaged", h.DType[:])
	}

	// The bytes come first and the state's memory, of the same size for all but the unused rows of a window, after them.
	held := min(c.Window, position)
	ring := c.KVHeads * held
	var blobs [5][]byte
	for i, size := range [5]int{
		c.KVHeads * c.Slots * c.KeyDim * gateType(d).Size(), c.KVHeads * c.Slots * c.ValueDim * gateType(d).Size(),
		ring * c.KeyDim * d.Size(), ring * c.ValueDim * d.Size(), ring * c.Slots * gateType(d).Size(),
	} {
		var b bytes.Buffer
		if _, err := io.CopyN(&b, r, int64(size)); err != nil {
			return nil, truncated(err)
		}
		blobs[i] = b.Bytes()
	}
	s := NewState(c, d)
	s.Reserve(c, position)
	s.Position, s.Count = position, held
	if c.Slots > 0 {
		copy(s.SlotKeys.Bytes(), blobs[0])
		copy(s.SlotValues.Bytes(), blobs[1])
	}
	for i, t := range s.ringTensors() {
		if !t.Present() {
			continue
		}
		head, all := len(blobs[2+i])/c.KVHeads, len(t.Bytes())/c.KVHeads
		for h := range c.KVHeads {
			copy(t.Bytes()[h*all:], blobs[2+i][h*head:(h+1)*head])
		}
	}
	return s, nil
}

// truncated says in plain words that the input ended early.
func truncated(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("saved state is truncated")
	}
	return err
}
