package tensor

import (
	"fmt"
	"strings"
	"unsafe"
)

// MaxRank is the largest number of dimensions.
const MaxRank = 4

// Shape is a list of at most MaxRank dimensions, a comparable value that needs no allocation.
type Shape struct {
	dims [MaxRank]int
	rank int
}

// Of makes a shape. More than MaxRank dimensions or a negative one is a bug of the caller.
func Of(dims ...int) Shape {
	if len(dims) > MaxRank {
		panic("tensor: a shape has at most 4 dimensions")
	}
	s := Shape{rank: len(dims)}
	for i, d := range dims {
		if d < 0 {
			panic("tensor: negative dimension")
		}
		s.dims[i] = d
	}
	return s
}

// Rank is the number of dimensions.
func (s Shape) Rank() int { return s.rank }

// Dim is the size of dimension i; negative i counts from the end.
func (s Shape) Dim(i int) int {
	if i < 0 {
		i += s.rank
	}
	return s.dims[:s.rank][i]
}

// Dims is a fresh slice of the dimensions.
func (s Shape) Dims() []int { return append([]int(nil), s.dims[:s.rank]...) }

// Len is the number of elements; 1 for a scalar (rank 0).
func (s Shape) Len() int {
	n := 1
	for _, d := range s.dims[:s.rank] {
		n *= d
	}
	return n
}

// String is "[2 3 4]".
func (s Shape) String() string {
	var b strings.Builder
	b.WriteByte('[')
	for i, d := range s.dims[:s.rank] {
		if i > 0 {
			b.WriteByte(' ')
		}
		fmt.Fprint(&b, d)
	}
	b.WriteByte(']')
	return b.String()
}

// Tensor is a dense row-major array: a view on memory that somebody else owns. The zero Tensor is "no tensor".
// Data lies on the host (Bytes) or at a device address (Address), never both.
type Tensor struct {
	DType   DType
	Shape   Shape
	data    []byte
	address uintptr
}

// New is a zeroed host tensor.
func New(d DType, s Shape) Tensor {
	n := d.Bytes(s.Len())
	if n == 0 {
		return Tensor{DType: d, Shape: s, data: []byte{}}
	}
	words := make([]uint64, (n+7)/8) // aligned for every element type
	return Tensor{DType: d, Shape: s, data: unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), n)}
}

// FromBytes is a host tensor over data, which must be aligned for d and exactly as long as the shape asks.
func FromBytes(d DType, s Shape, data []byte) Tensor {
	if len(data) != d.Bytes(s.Len()) {
		panic(fmt.Sprintf("tensor: %d bytes for %v %v", len(data), d, s))
	}
	return Tensor{DType: d, Shape: s, data: data}
}

// FromF32 is a host tensor over x, not a copy.
func FromF32(x []float32, dims ...int) Tensor { return fromSlice(F32, x, dims) }

// FromF64 is a host tensor over x, not a copy.
func FromF64(x []float64, dims ...int) Tensor { return fromSlice(F64, x, dims) }

// FromI32 is a host tensor over x, not a copy.
func FromI32(x []int32, dims ...int) Tensor { return fromSlice(I32, x, dims) }

func fromSlice[E any](d DType, x []E, dims []int) Tensor {
	s := Of(dims...)
	return FromBytes(d, s, unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(x))), len(x)*d.Size()))
}

// OnDevice is a tensor at a device address.
func OnDevice(d DType, s Shape, address uintptr) Tensor {
	return Tensor{DType: d, Shape: s, address: address}
}

// Present reports whether t is a tensor at all.
func (t Tensor) Present() bool { return t.DType != Invalid }

// Address is the device address, 0 for a host tensor.
func (t Tensor) Address() uintptr { return t.address }

// Len is the number of elements, 0 for no tensor.
func (t Tensor) Len() int {
	if t.DType == Invalid {
		return 0
	}
	return t.Shape.Len()
}

// Dim is Shape.Dim.
func (t Tensor) Dim(i int) int { return t.Shape.Dim(i) }

// Rows is the product of all dimensions but the last; Columns is the last.
func (t Tensor) Rows() int { return t.Len() / max(1, t.Columns()) }

// Columns is the last dimension.
func (t Tensor) Columns() int { return t.Shape.Dim(-1) }

// View is the same memory under another shape of equal length.
func (t Tensor) View(dims ...int) Tensor {
	s := Of(dims...)
	if s.Len() != t.Len() {
		panic(fmt.Sprintf("tensor: view of %v as %v", t.Shape, s))
	}
	t.Shape = s
	return t
}

// Narrow is rows [from, to) of the first dimension, the same memory.
func (t Tensor) Narrow(from, to int) Tensor {
	row := t.Len() / max(1, t.Shape.dims[0])
	return t.At(from*row, replaceFirst(t.Shape, to-from))
}

func replaceFirst(s Shape, n int) Shape {
	if n < 0 || n > s.dims[0] {
		panic(fmt.Sprintf("tensor: %d rows of %v", n, s))
	}
	s.dims[0] = n
	return s
}

// At is the tensor of shape s that starts offset elements into t, the same memory.
func (t Tensor) At(offset int, s Shape) Tensor {
	if offset < 0 || offset+s.Len() > t.Len() {
		panic(fmt.Sprintf("tensor: %v at element %d of %v", s, offset, t.Shape))
	}
	t.Shape = s
	if t.data != nil {
		from, to := t.DType.Bytes(offset), t.DType.Bytes(offset+s.Len())
		t.data = t.data[from:to:to]
	} else {
		t.address += uintptr(t.DType.Bytes(offset))
	}
	return t
}

// Reinterpret is the beginning of t's memory as a tensor of type d and shape s.
func (t Tensor) Reinterpret(d DType, s Shape) Tensor {
	n := d.Bytes(s.Len())
	if n > t.DType.Bytes(t.Len()) {
		panic(fmt.Sprintf("tensor: %v %v in %d bytes", d, s, t.DType.Bytes(t.Len())))
	}
	r := Tensor{DType: d, Shape: s, address: t.address}
	if t.data != nil {
		r.data = t.data[:n:n]
	}
	return r
}

// Bytes is the host memory; nil for a device tensor.
func (t Tensor) Bytes() []byte { return t.data }

// F64 is the host data as float64. A wrong type is a bug of the caller; so for the accessors below.
func (t Tensor) F64() []float64 { return as[float64](t, F64) }

// F32 is the host data as float32.
func (t Tensor) F32() []float32 { return as[float32](t, F32) }

// I64 is the host data as int64.
func (t Tensor) I64() []int64 { return as[int64](t, I64) }

// I32 is the host data as int32.
func (t Tensor) I32() []int32 { return as[int32](t, I32) }

// U16 is the bits of an F16 or BF16 tensor.
func (t Tensor) U16() []uint16 {
	if t.DType == F16 {
		return as[uint16](t, F16)
	}
	return as[uint16](t, BF16)
}

func as[E any](t Tensor, want DType) []E {
	if t.DType != want {
		panic(fmt.Sprintf("tensor: %v read as %v", t.DType, want))
	}
	if t.address != 0 {
		panic("tensor: device memory read on the host")
	}
	return unsafe.Slice((*E)(unsafe.Pointer(unsafe.SliceData(t.data))), len(t.data)/want.Size())
}

// Clone is a copy of a host tensor in memory of its own.
func (t Tensor) Clone() Tensor {
	c := New(t.DType, t.Shape)
	copy(c.data, t.data)
	return c
}

// Value is element i of a host tensor as float64, whatever its type: for checks and reports, not for loops that matter.
func (t Tensor) Value(i int) float64 {
	if t.DType.Quantized() {
		n, _ := t.DType.Block()
		var block [maxBlock]float32
		Dequantize(block[:n], t.At(i/n*n, Of(n)))
		return float64(block[i%n])
	}
	switch t.DType {
	case F64:
		return t.F64()[i]
	case F32:
		return float64(t.F32()[i])
	case F16:
		return float64(F16ToF32(t.U16()[i]))
	case BF16:
		return float64(BF16ToF32(t.U16()[i]))
	case I64:
		return float64(t.I64()[i])
	case I32:
		return float64(t.I32()[i])
	}
	return float64(t.data[i])
}

// SetValue rounds x to the element type and stores it as element i of a host tensor, which is not quantised.
func (t Tensor) SetValue(i int, x float64) {
	switch t.DType {
	case F64:
		t.F64()[i] = x
	case F32:
		t.F32()[i] = float32(x)
	case F16:
		t.U16()[i] = F32ToF16(float32(x))
	case BF16:
		t.U16()[i] = F32ToBF16(float32(x))
	case I64:
		t.I64()[i] = int64(x)
	case I32:
		t.I32()[i] = int32(x)
	case U8:
		t.data[i] = byte(x)
	default:
		panic("tensor: an element of " + t.DType.String() + " cannot be set alone")
	}
}

// Convert copies src into dst, rounding to dst's element type (Quantize where it is quantised). Both on the host, of equal length.
func Convert(dst, src Tensor) {
	if dst.Len() != src.Len() {
		panic(fmt.Sprintf("tensor: convert %v into %v", src.Shape, dst.Shape))
	}
	switch {
	case dst.DType == src.DType:
		copy(dst.data, src.data)
	case dst.DType == F32 && src.DType.Quantized():
		Dequantize(dst.F32(), src)
	case dst.DType == F32 && src.DType == BF16:
		d := dst.F32()
		for i, b := range src.U16() {
			d[i] = BF16ToF32(b)
		}
	case dst.DType == F32 && src.DType == F16:
		d := dst.F32()
		for i, h := range src.U16() {
			d[i] = F16ToF32(h)
		}
	case dst.DType == BF16 && src.DType == F32:
		d := dst.U16()
		for i, x := range src.F32() {
			d[i] = F32ToBF16(x)
		}
	case dst.DType == F16 && src.DType == F32:
		d := dst.U16()
		for i, x := range src.F32() {
			d[i] = F32ToF16(x)
		}
	case dst.DType.Quantized() && src.DType == F32:
		Quantize(dst, src.F32())
	case dst.DType.Quantized() || src.DType.Quantized():
		convertPieces(dst, src)
	default:
		for i, n := 0, src.Len(); i < n; i++ {
			dst.SetValue(i, src.Value(i))
		}
	}
}

// convertPieces goes through float32, a few blocks at a time.
func convertPieces(dst, src Tensor) {
	const piece = 16 * maxBlock
	var buffer [piece]float32
	for at, n := 0, src.Len(); at < n; at += piece {
		s := Of(min(piece, n-at))
		x := FromF32(buffer[:s.Len()], s.Len())
		Convert(x, src.At(at, s))
		Convert(dst.At(at, s), x)
	}
}

// MaxError is max|x - y| / max|y|, absolute where max|y| = 0 (SPEC 1.5); NaN anywhere in x gives NaN.
func MaxError(x, y Tensor) float64 {
	var worst, scale float64
	for i, n := 0, y.Len(); i < n; i++ {
		a, b := x.Value(i), y.Value(i)
		if a != a {
			return a
		}
		worst, scale = max(worst, abs(a-b)), max(scale, abs(b))
	}
	if scale == 0 {
		return worst
	}
	return worst / scale
}

func abs(x float64) float64 {
	if x < 0 {
		return -x
	}
	return x
}
