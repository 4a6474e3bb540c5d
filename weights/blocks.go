package weights

import (
	"fmt"
	"maps"
	"strings"

	"nha/tensor"
)

// A quantised tensor [..., n] lies in a safetensors file as U8 [..., bytes of n elements], and the file's metadata says
//
//	"blocks:NAME": "Q8_0"
//
// with ggml's name of the type. So every safetensors reader can open, copy and shard the file, and none takes the bytes for
// numbers. Rows stay rows: a part of a tensor's rows is a part of its bytes.

const blockNote = "blocks:"

// stored is the type and shape that a header gives a tensor.
func stored(d tensor.DType, s tensor.Shape) (tensor.DType, tensor.Shape) {
	if !d.Quantized() {
		return d, s
	}
	dims := s.Dims()
	dims[len(dims)-1] = d.Bytes(dims[len(dims)-1])
	return tensor.U8, tensor.Of(dims...)
}

// blockNotes is metadata with a note for every quantised tensor.
func blockNotes(metadata map[string]string, tensors []Named) (map[string]string, error) {
	all := maps.Clone(metadata)
	for _, n := range tensors {
		d := n.dtype()
		if !d.Quantized() {
			continue
		}
		if elements, _ := d.Block(); n.Tensor.Shape.Rank() == 0 || n.Tensor.Columns()%elements != 0 {
			return nil, fmt.Errorf("tensor %q: rows of %v are not whole blocks of %v", n.Name, n.Tensor.Shape, d)
		}
		if all == nil {
			all = map[string]string{}
		}
		all[blockNote+n.Name] = d.String()
	}
	return all, nil
}

// readBlockNotes gives the tensors that have a note the type and shape that it means, and takes the notes away.
func (h *header) readBlockNotes() error {
	for key, kind := range h.metadata {
		name, ok := strings.CutPrefix(key, blockNote)
		if !ok {
			continue
		}
		delete(h.metadata, key)
		e, there := h.entries[name]
		d := blockType(kind)
		elements, size := d.Block()
		switch {
		case !there:
			return fmt.Errorf("metadata %q is about no tensor of this file", key)
		case d == tensor.Invalid:
			return fmt.Errorf("tensor %q: blocks of type %q are not supported", name, kind)
		case e.dtype != tensor.U8 || e.shape.Rank() == 0 || e.shape.Dim(-1)%size != 0:
			return fmt.Errorf("tensor %q is %v %v: rows of %s blocks are U8 and whole multiples of %d bytes", name, e.dtype, e.shape, kind, size)
		}
		dims := e.shape.Dims()
		dims[len(dims)-1] = dims[len(dims)-1] / size * elements
		e.dtype, e.shape = d, tensor.Of(dims...)
		h.entries[name] = e
	}
	return nil
}

func blockType(name string) tensor.DType {
	for _, kind := range ggmlTypes {
		if kind.name == name && kind.dtype.Quantized() {
			return kind.dtype
		}
	}
	return tensor.Invalid
}
