package weights

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"slices"
	"strconv"
	"unicode/utf8"

	"nha/tensor"
)

// maxHeader is the format's own limit: a longer header is a lie or an attack.
const maxHeader = 100_000_000

const metadataKey = "__metadata__"

// entry is one tensor as the header describes it; from and to count from the start of the file.
type entry struct {
	dtype    tensor.DType
	shape    tensor.Shape
	from, to int
}

type header struct {
	entries  map[string]entry
	metadata map[string]string
}

// parseHeader reads the header of a whole file and holds it against the file's length.
func parseHeader(file []byte) (header, error) {
	h := header{entries: map[string]entry{}}
	if len(file) < 8 {
		return h, fmt.Errorf("%d bytes are too short for a safetensors file: truncated?", len(file))
	}
	n := binary.LittleEndian.Uint64(file)
	switch {
	case n > maxHeader:
		return h, fmt.Errorf("header of %d bytes is over the format's limit of %d: not a safetensors file?", n, maxHeader)
	case n > uint64(len(file)-8):
		return h, fmt.Errorf("header of %d bytes in a file of %d: truncated?", n, len(file))
	}
	text, data := file[8:8+n], 8+int(n)
	if len(text) == 0 || text[0] != '{' {
		return h, errors.New("header does not begin with '{': not a safetensors file?")
	}
	if !utf8.Valid(text) {
		return h, errors.New("header is not valid UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	err := object(d, func(name string) (err error) {
		if name == metadataKey {
			if h.metadata, err = stringMap(d); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			return nil
		}
		if h.entries[name], err = parseEntry(d, data, len(file)); err != nil {
			return fmt.Errorf("tensor %q: %w", name, err)
		}
		return nil
	})
	if err != nil {
		return h, fmt.Errorf("header: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return h, errors.New("header: something follows the JSON object")
	}
	return h, h.checkCover(data, len(file))
}

// parseEntry reads {"dtype", "shape", "data_offsets"}. The file's data lies in [data, end).
func parseEntry(d *json.Decoder, data, end int) (e entry, err error) {
	var seen int
	var offsets []int
	err = object(d, func(key string) error {
		seen++
		switch key {
		case "dtype":
			name, err := stringToken(d)
			if err != nil {
				return fmt.Errorf("dtype: %w", err)
			}
			e.dtype, err = tensor.ParseDType(name)
			if err != nil || e.dtype.String() != name {
				return fmt.Errorf("dtype %q is not supported: convert it to F64, F32, F16, BF16, I64, I32 or U8", name)
			}
		case "shape":
			dims, err := integers(d, tensor.MaxRank)
			if err != nil {
				return fmt.Errorf("shape: %w", err)
			}
			e.shape = tensor.Of(dims...)
		case "data_offsets":
			var err error
			if offsets, err = integers(d, 2); err != nil {
				return fmt.Errorf("data_offsets: %w", err)
			}
			if len(offsets) != 2 {
				return fmt.Errorf("data_offsets %v: want two numbers", offsets)
			}
		default:
			return fmt.Errorf("unknown key %q", key)
		}
		return nil
	})
	if err != nil {
		return e, err
	}
	if seen != 3 {
		return e, errors.New("want dtype, shape and data_offsets")
	}
	if offsets[0] > offsets[1] || offsets[1] > end-data {
		return e, fmt.Errorf("data_offsets %v lie outside the file's %d bytes of data: truncated?", offsets, end-data)
	}
	size, ok := byteSize(e.dtype, e.shape)
	if !ok || size != offsets[1]-offsets[0] {
		return e, fmt.Errorf("data_offsets %v span %d bytes, which is not %v %v", offsets, offsets[1]-offsets[0], e.dtype, e.shape)
	}
	e.from, e.to = data+offsets[0], data+offsets[1]
	return e, nil
}

// checkCover holds the tensors to lie one after the other from data to end, without a hole or an overlap.
func (h header) checkCover(data, end int) error {
	names := make([]string, 0, len(h.entries))
	for name := range h.entries {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int {
		x, y := h.entries[a], h.entries[b]
		if x.from != y.from {
			return x.from - y.from
		}
		return x.to - y.to
	})
	at := data
	for _, name := range names {
		switch e := h.entries[name]; {
		case e.from > at:
			return fmt.Errorf("%d bytes before tensor %q belong to no tensor", e.from-at, name)
		case e.from < at:
			return fmt.Errorf("tensor %q overlaps the one before it by %d bytes", name, at-e.from)
		default:
			at = e.to
		}
	}
	if at != end {
		return fmt.Errorf("%d bytes at the end belong to no tensor", end-at)
	}
	return nil
}

// byteSize is the length of a tensor in bytes; false when it does not fit an int or its rows are not whole blocks.
func byteSize(d tensor.DType, s tensor.Shape) (int, bool) {
	elements, bytes := d.Block()
	dims := s.Dims()
	switch last := len(dims) - 1; {
	case elements == 1:
	case last < 0 || dims[last]%elements != 0:
		return 0, false
	default:
		dims[last] /= elements
	}
	if slices.Contains(dims, 0) {
		return 0, true
	}
	size := uint64(bytes)
	for _, n := range dims {
		hi, lo := bits.Mul64(size, uint64(n))
		if hi != 0 || lo > 1<<62 {
			return 0, false
		}
		size = lo
	}
	return int(size), size == uint64(int(size))
}

// object reads a JSON object, calling field, which must read the value, for every key. A key that comes twice is an error:
// readers would differ in which of the two they believe.
func object(d *json.Decoder, field func(key string) error) error {
	if err := delim(d, '{'); err != nil {
		return err
	}
	seen := map[string]bool{}
	for d.More() {
		key, err := stringToken(d)
		if err != nil {
			return err
		}
		if seen[key] {
			return fmt.Errorf("key %q comes twice", key)
		}
		seen[key] = true
		if err := field(key); err != nil {
			return err
		}
	}
	return delim(d, '}')
}

func stringMap(d *json.Decoder) (map[string]string, error) {
	m := map[string]string{}
	return m, object(d, func(key string) (err error) {
		if m[key], err = stringToken(d); err != nil {
			return fmt.Errorf("%q: %w", key, err)
		}
		return nil
	})
}

// integers reads an array of at most limit non-negative integers.
func integers(d *json.Decoder, limit int) ([]int, error) {
	if err := delim(d, '['); err != nil {
		return nil, err
	}
	var list []int
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, err
		}
		number, _ := t.(json.Number)
		n, err := strconv.ParseInt(string(number), 10, strconv.IntSize)
		if err != nil || n < 0 {
			return nil, fmt.Errorf("want a non-negative integer, not %v", t)
		}
		if len(list) == limit {
			return nil, fmt.Errorf("more than %d numbers", limit)
		}
		list = append(list, int(n))
	}
	return list, delim(d, ']')
}

func stringToken(d *json.Decoder) (string, error) {
	t, err := d.Token()
	if err != nil {
		return "", unexpectedEnd(err)
	}
	s, ok := t.(string)
	if !ok {
		return "", fmt.Errorf("want a string, not %v", t)
	}
	return s, nil
}

func delim(d *json.Decoder, want json.Delim) error {
	t, err := d.Token()
	if err != nil {
		return unexpectedEnd(err)
	}
	if t != want {
		return fmt.Errorf("want %q, not %v", want.String(), t)
	}
	return nil
}

func unexpectedEnd(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
