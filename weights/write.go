package weights

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"unicode/utf8"

	"nha/atomicfile"
	"nha/tensor"
)

// Named is a host tensor to write.
type Named struct {
	Name   string
	Tensor tensor.Tensor
	As     tensor.DType // the element type in the file; Invalid keeps the tensor's own
}

func (n Named) dtype() tensor.DType {
	if n.As != tensor.Invalid {
		return n.As
	}
	return n.Tensor.DType
}

// Write writes a safetensors file, atomically. The bytes depend on the names, types and values alone, not on the order of
// the list: tensors lie by falling element size, so that each is aligned, then by name. Quantised tensors are stored as blocks.go says.
func Write(path string, metadata map[string]string, tensors []Named) error {
	return WriteContext(context.Background(), path, metadata, tensors)
}

// WriteContext is Write for large files: when the context ends, so does it, and nothing is written.
func WriteContext(ctx context.Context, path string, metadata map[string]string, tensors []Named) error {
	sorted := slices.Clone(tensors)
	slices.SortFunc(sorted, func(a, b Named) int {
		return cmp.Or(cmp.Compare(alignment(b.dtype()), alignment(a.dtype())), cmp.Compare(a.Name, b.Name))
	})
	metadata, err := blockNotes(metadata, sorted)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	head, err := formatHeader(metadata, sorted)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return atomicfile.WriteFile(path, 0o644, func(w io.Writer) error {
		if _, err := w.Write(head); err != nil {
			return err
		}
		for _, n := range sorted {
			if err := writeTensor(ctx, w, n); err != nil {
				return err
			}
		}
		return nil
	})
}

// alignment is that of a type's first byte; every quantised block begins with or ends in a half and has an even size.
func alignment(d tensor.DType) int {
	if d.Quantized() {
		return 2
	}
	return d.Size()
}

// formatHeader is the length and the JSON, padded with spaces to a multiple of 8.
func formatHeader(metadata map[string]string, sorted []Named) ([]byte, error) {
	var b bytes.Buffer
	b.Write(make([]byte, 8))
	b.WriteByte('{')
	seen := map[string]bool{metadataKey: true}
	if len(metadata) > 0 {
		text, err := json.Marshal(metadata) // sorts its keys
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&b, "%q:%s", metadataKey, text)
	}
	from := 0
	for _, n := range sorted {
		switch {
		case seen[n.Name]:
			return nil, fmt.Errorf("tensor name %q is taken", n.Name)
		case !utf8.ValidString(n.Name):
			return nil, fmt.Errorf("tensor name %q is not valid UTF-8", n.Name)
		case !n.Tensor.Present() || n.Tensor.DType.Bytes(n.Tensor.Len()) != len(n.Tensor.Bytes()):
			return nil, fmt.Errorf("tensor %q is not in host memory", n.Name)
		}
		stored, shape := stored(n.dtype(), n.Tensor.Shape)
		seen[n.Name] = true
		name, err := json.Marshal(n.Name)
		if err != nil {
			return nil, err
		}
		if b.Len() > 9 {
			b.WriteByte(',')
		}
		to := from + n.dtype().Bytes(n.Tensor.Len())
		fmt.Fprintf(&b, `%s:{"dtype":"%v","shape":[`, name, stored)
		for i := range shape.Rank() {
			if i > 0 {
				b.WriteByte(',')
			}
			b.WriteString(strconv.Itoa(shape.Dim(i)))
		}
		fmt.Fprintf(&b, `],"data_offsets":[%d,%d]}`, from, to)
		from = to
	}
	b.WriteByte('}')
	for b.Len()%8 != 0 {
		b.WriteByte(' ')
	}
	head := b.Bytes()
	if len(head)-8 > maxHeader {
		return nil, fmt.Errorf("header of %d bytes is over the format's limit of %d", len(head)-8, maxHeader)
	}
	binary.LittleEndian.PutUint64(head, uint64(len(head)-8))
	return head, nil
}

// writeTensor writes the elements, converted a piece at a time where the file's type is another. Blocks hold finite numbers.
func writeTensor(ctx context.Context, w io.Writer, n Named) error {
	t := n.Tensor
	if n.dtype() == t.DType {
		_, err := w.Write(t.Bytes())
		return errors.Join(err, ctx.Err())
	}
	const piece = 1 << 16
	t = t.View(t.Len())
	for at := 0; at < t.Len(); at += piece {
		if err := ctx.Err(); err != nil {
			return err
		}
		c := tensor.New(n.dtype(), tensor.Of(min(piece, t.Len()-at)))
		x := t.At(at, c.Shape)
		if c.DType.Quantized() {
			wide := tensor.New(tensor.F32, c.Shape)
			tensor.Convert(wide, x)
			if i := slices.IndexFunc(wide.F32(), notFinite); i >= 0 {
				return fmt.Errorf("tensor %q: element %d is %v, which %v cannot hold", n.Name, at+i, wide.F32()[i], c.DType)
			}
			x = wide
		}
		tensor.Convert(c, x)
		if _, err := w.Write(c.Bytes()); err != nil {
			return err
		}
	}
	return nil
}

func notFinite(x float32) bool { return x-x != 0 }
