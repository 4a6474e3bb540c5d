package weights

// A GGUF file, versions 2 and 3, all numbers little-endian:
//
//	"GGUF"  u32 version  u64 tensors  u64 pairs
//	pairs    of   string key, u32 type, value           a string is u64 length and bytes, an array u32 type, u64 count, values
//	tensors  of   string name, u32 rank, u64 dimensions (innermost first), u32 type, u64 offset
//	padding to general.alignment (32 where it is not given); offsets count from here
//	the tensors' bytes, each padded to the alignment
//
// Nothing is allocated by a count that the rest of the file cannot hold.

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"

	"nha/tensor"
)

// The types of metadata values.
const (
	ggufU8 = iota
	ggufI8
	ggufU16
	ggufI16
	ggufU32
	ggufI32
	ggufF32
	ggufBool
	ggufString
	ggufArray
	ggufU64
	ggufI64
	ggufF64
)

// ggufSizes are the bytes of a value; of a string or an array those of its count.
var ggufSizes = [...]int{ggufU8: 1, ggufI8: 1, ggufU16: 2, ggufI16: 2, ggufU32: 4, ggufI32: 4, ggufF32: 4, ggufBool: 1, ggufString: 8,
	ggufArray: 12, ggufU64: 8, ggufI64: 8, ggufF64: 8}

// ggmlTypes are ggml's numbers of element types; an entry without a dtype is known by name only.
var ggmlTypes = map[uint32]struct {
	name  string
	dtype tensor.DType
}{0: {"F32", tensor.F32}, 1: {"F16", tensor.F16}, 2: {"Q4_0", tensor.Q4_0}, 3: {"Q4_1", tensor.Q4_1}, 6: {"Q5_0", tensor.Q5_0}, 7: {"Q5_1", tensor.Q5_1},
	8: {"Q8_0", tensor.Q8_0}, 9: {name: "Q8_1"}, 10: {name: "Q2_K"}, 11: {name: "Q3_K"}, 12: {"Q4_K", tensor.Q4_K}, 13: {"Q5_K", tensor.Q5_K},
	14: {"Q6_K", tensor.Q6_K}, 15: {name: "Q8_K"}, 16: {name: "IQ2_XXS"}, 17: {name: "IQ2_XS"}, 18: {name: "IQ3_XXS"}, 19: {name: "IQ1_S"},
	20: {name: "IQ4_NL"}, 21: {name: "IQ3_S"}, 22: {name: "IQ2_S"}, 23: {name: "IQ4_XS"}, 24: {name: "I8"}, 25: {name: "I16"}, 26: {name: "I32"},
	27: {name: "I64"}, 28: {name: "F64"}, 29: {name: "IQ1_M"}, 30: {"BF16", tensor.BF16}, 34: {name: "TQ1_0"}, 35: {name: "TQ2_0"}, 39: {name: "MXFP4"},
	40: {name: "NVFP4"}}

const ggufAlignmentKey = "general.alignment"

// ggufHeader is what a file says before its tensors' bytes. The entries' names are the file's own.
type ggufHeader struct {
	values  map[string]any
	pairs   []ggufPair // in the file's order
	entries map[string]entry
}

// ggufPair is where a metadata key and its value lie in the file.
type ggufPair struct {
	key      string
	from, to int
}

// ggufCursor walks over a file; after the first error it stands still and gives zeros.
type ggufCursor struct {
	file []byte
	at   int
	err  error
}

func (c *ggufCursor) fail(format string, args ...any) {
	if c.err == nil {
		c.err = fmt.Errorf(format, args...)
	}
}

// take is the next n bytes, nil at an error.
func (c *ggufCursor) take(n uint64, what string) []byte {
	if rest := uint64(len(c.file) - c.at); c.err == nil && n > rest {
		c.fail("%s of %d bytes where %d are left: truncated?", what, n, rest)
	}
	if c.err != nil {
		return nil
	}
	b := c.file[c.at:][:n]
	c.at += int(n)
	return b
}

func (c *ggufCursor) u32(what string) uint32 {
	if b := c.take(4, what); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (c *ggufCursor) u64(what string) uint64 {
	if b := c.take(8, what); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

func (c *ggufCursor) text(what string) string { return string(c.take(c.u64(what), what)) }

// count reads how many things of at least size bytes follow.
func (c *ggufCursor) count(what string, size int) uint64 {
	n := c.u64("number of " + what)
	if rest := uint64(len(c.file) - c.at); c.err == nil && n > rest/uint64(size) {
		c.fail("%d %s in %d bytes: truncated?", n, what, rest)
	}
	if c.err != nil {
		return 0
	}
	return n
}

// parseGGUF reads everything before the data of a whole file and holds it against the file's length.
func parseGGUF(file []byte) (ggufHeader, error) {
	h := ggufHeader{values: map[string]any{}, entries: map[string]entry{}}
	if !hasMagic(file) {
		return h, errors.New("does not begin with GGUF: not a GGUF file")
	}
	c := &ggufCursor{file: file, at: 4}
	switch version := c.u32("version"); {
	case c.err != nil:
		return h, c.err
	case version == 1:
		return h, errors.New("GGUF version 1 is not supported: convert the model anew")
	case version&0xffff == 0 && version != 0:
		return h, errors.New("a big-endian GGUF file is not supported")
	case version != 2 && version != 3:
		return h, fmt.Errorf("GGUF version %d is not supported: 2 and 3 are", version)
	}
	const leastTensor, leastPair = 8 + 4 + 4 + 8, 8 + 4 + 1
	tensors := c.count("tensors", leastTensor)
	for range c.count("metadata pairs", leastPair) {
		from := c.at
		if key := c.pair(h.values); c.err == nil {
			h.pairs = append(h.pairs, ggufPair{key, from, c.at})
		}
	}
	alignment := c.alignment(h.values)
	var list []ggufTensor
	for range tensors {
		if t := c.tensor(); c.err == nil {
			list = append(list, t)
		}
	}
	if c.err != nil {
		return h, c.err
	}
	return h, h.place(list, c.at, len(file), alignment)
}

func hasMagic(file []byte) bool { return len(file) >= 4 && string(file[:4]) == "GGUF" }

func (c *ggufCursor) pair(values map[string]any) (key string) {
	key = c.text("metadata key")
	if c.err != nil {
		return key
	}
	if _, twice := values[key]; twice || key == "" || len(key) > 1<<16-1 {
		c.fail("metadata key %.100q is empty, too long or comes twice", key)
		return key
	}
	value := c.value(c.u32("type"))
	if c.err != nil {
		c.err = fmt.Errorf("metadata %.100q: %w", key, c.err)
		return key
	}
	values[key] = value
	return key
}

func (c *ggufCursor) alignment(values map[string]any) int {
	v, given := values[ggufAlignmentKey]
	if c.err != nil || !given {
		return 32
	}
	a, ok := v.(uint64)
	if !ok || a < 8 || a > 1<<24 || a&(a-1) != 0 {
		c.fail("%s %v: must be a power of two, 8 to 16777216", ggufAlignmentKey, v)
		return 32
	}
	return int(a)
}

// value reads a value: a string, bool, int64, uint64 or float64, or an array of them.
func (c *ggufCursor) value(kind uint32) any {
	switch {
	case kind >= uint32(len(ggufSizes)):
		c.fail("value type %d does not exist", kind)
		return nil
	case kind == ggufString:
		return c.text("string")
	case kind == ggufArray:
		return c.array()
	}
	return c.scalar(kind, c.take(uint64(ggufSizes[kind]), "value"))
}

// scalar reads a number or a bool.
func (c *ggufCursor) scalar(kind uint32, b []byte) any {
	if c.err != nil {
		return nil
	}
	e := binary.LittleEndian
	switch kind {
	case ggufU8:
		return uint64(b[0])
	case ggufI8:
		return int64(int8(b[0]))
	case ggufU16:
		return uint64(e.Uint16(b))
	case ggufI16:
		return int64(int16(e.Uint16(b)))
	case ggufU32:
		return uint64(e.Uint32(b))
	case ggufI32:
		return int64(int32(e.Uint32(b)))
	case ggufF32:
		return float64(math.Float32frombits(e.Uint32(b)))
	case ggufU64:
		return e.Uint64(b)
	case ggufI64:
		return int64(e.Uint64(b))
	case ggufF64:
		return math.Float64frombits(e.Uint64(b))
	}
	if b[0] > 1 {
		c.fail("bool of value %d: must be 0 or 1", b[0])
	}
	return b[0] == 1
}

func (c *ggufCursor) array() any {
	kind := c.u32("type of array")
	switch {
	case c.err != nil:
		return nil
	case kind == ggufArray:
		c.fail("an array of arrays is not supported")
		return nil
	case kind >= uint32(len(ggufSizes)):
		c.fail("value type %d does not exist", kind)
		return nil
	}
	size := ggufSizes[kind]
	n := c.count("array elements", size)
	if kind == ggufString {
		return c.strings(n)
	}
	b := c.take(n*uint64(size), "array")
	switch kind {
	case ggufF32:
		list := make([]float32, n)
		for i := range list {
			list[i] = math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:]))
		}
		return list
	case ggufI32:
		list := make([]int32, n)
		for i := range list {
			list[i] = int32(binary.LittleEndian.Uint32(b[4*i:]))
		}
		return list
	}
	list := make([]any, n)
	for i := range list {
		list[i] = c.scalar(kind, b[i*size:][:size])
	}
	return list
}

// strings reads n strings. A vocabulary has some 10^5 of them: they are slices of one copy.
func (c *ggufCursor) strings(n uint64) []string {
	start := c.at
	ends := make([]int, 0, n)
	for range n {
		c.take(c.u64("string"), "string")
		ends = append(ends, c.at)
	}
	if c.err != nil {
		return nil
	}
	all := string(c.file[start:c.at])
	list := make([]string, n)
	at := 0
	for i, end := range ends {
		list[i] = all[at+8 : end-start]
		at = end - start
	}
	return list
}

type ggufTensor struct {
	name   string
	entry  entry
	offset uint64
}

// tensor reads one tensor's description.
func (c *ggufCursor) tensor() (t ggufTensor) {
	t.name = c.text("tensor name")
	rank := c.u32("rank")
	if c.err != nil {
		return t
	}
	if rank > tensor.MaxRank {
		c.fail("tensor %.100q has %d dimensions: at most %d", t.name, rank, tensor.MaxRank)
		return t
	}
	dims := make([]int, rank)
	for i := range dims {
		n := c.u64("dimension")
		if n > math.MaxInt {
			c.fail("tensor %.100q: dimension of %d", t.name, n)
			return t
		}
		dims[rank-1-uint32(i)] = int(n)
	}
	number := c.u32("tensor type")
	t.offset = c.u64("offset")
	if c.err != nil {
		return t
	}
	kind := ggmlTypes[number]
	if kind.dtype == tensor.Invalid {
		if kind.name == "" {
			kind.name = fmt.Sprintf("of unknown type %d", number)
		}
		c.fail("tensor %.100q is %s, which is not supported: quantise the model to one of F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K", t.name, kind.name)
		return t
	}
	t.entry.dtype, t.entry.shape = kind.dtype, tensor.Of(dims...)
	return t
}

// place gives every tensor its bytes. They must lie one after the other, aligned, with no more between and behind them than
// padding.
func (h *ggufHeader) place(list []ggufTensor, at, end, alignment int) error {
	slices.SortStableFunc(list, func(a, b ggufTensor) int { return cmp.Compare(a.offset, b.offset) })
	data, free := padded(at, alignment), 0 // free: where the next tensor begins, from data
	for _, t := range list {
		e := t.entry
		size, ok := byteSize(e.dtype, e.shape)
		switch {
		case h.entries[t.name].dtype != tensor.Invalid:
			return fmt.Errorf("tensor %.100q comes twice", t.name)
		case !ok:
			return fmt.Errorf("tensor %.100q: %v %v is not a whole number of blocks in memory that exists", t.name, e.dtype, e.shape)
		case t.offset != uint64(free):
			return fmt.Errorf("tensor %.100q begins at byte %d of the data, should at %d: tensors must follow each other, aligned to %d bytes", t.name, t.offset, free, alignment)
		case data > end || size > end-data-free:
			return fmt.Errorf("tensor %.100q of %d bytes at byte %d lies outside the file's %d bytes: truncated?", t.name, size, data+free, end)
		}
		e.from, e.to = data+free, data+free+size
		h.entries[t.name] = e
		free = padded(free+size, alignment)
	}
	if last := data + free; end > last {
		return fmt.Errorf("%d bytes at the end belong to no tensor", end-last)
	}
	return nil
}

func padded(n, alignment int) int { return (n + alignment - 1) / alignment * alignment }
