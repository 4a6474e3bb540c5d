package cuda

import (
	"errors"
	"fmt"
	"strings"

	"nha/backend"
	"nha/tensor"
)

func init() {
	backend.Prefer("cuda", Here, Report)
	backend.Register("cuda", func(int) (backend.Backend, error) { return opened(tensor.BF16) })
	backend.Register("cuda-f32", func(int) (backend.Backend, error) { return opened(tensor.F32) })
}

func opened(d tensor.DType) (backend.Backend, error) {
	b, err := Open(d)
	if err != nil {
		return nil, err // not a typed nil
	}
	return b, nil
}

// Backend is a card. It implements backend.Backend.
type Backend struct {
	d       *device
	dtype   tensor.DType
	real    define // the element type in kernels
	lt      *multiplier
	bench   workbench
	ropes   ropeTables
	tables  tables
	results [1]float64
	host    tensor.Tensor // over results
}

// Open takes the first card that CUDA shows (CUDA_VISIBLE_DEVICES chooses) to compute in BF16 or F32. The errors say what is
// missing and how to get it.
func Open(dtype tensor.DType) (*Backend, error) {
	if supported != "" {
		return nil, errors.New(supported)
	}
	dr, err := loadDriver()
	if err != nil {
		return nil, err
	}
	c, err := loadCompiler(dr.version)
	if err != nil {
		return nil, fmt.Errorf("no kernel compiler here: %w: %s", err, installCommand)
	}
	lt, err := loadMultiplier(dr.version)
	if err != nil {
		return nil, fmt.Errorf("no matrix products here: %w: %s", err, installCommand)
	}
	d, err := openDevice()
	if err != nil {
		return nil, err
	}
	d.modules = modules{compiler: c, kernels: map[uint64][]*kernel{}, loaded: map[moduleKey]uintptr{}}
	b := &Backend{d: d, dtype: dtype, real: realType(dtype), lt: lt}
	b.host = tensor.FromF64(b.results[:], 1)
	err = d.load(b.common()...)
	if err == nil {
		err = lt.start(d)
	}
	if err != nil {
		d.close()
		return nil, err
	}
	return b, nil
}

// Here reports whether there is a sign of a card: the driver's library opens.
func Here() bool {
	if supported != "" {
		return false
	}
	_, err := openDriver()
	return err == nil
}

// typeNames are the element types as kernels call them.
var typeNames = map[tensor.DType]string{tensor.BF16: "bf16", tensor.F16: "f16", tensor.F32: "float"}

// typeOf is a constant that names a tensor's element type.
func typeOf(name string, d tensor.DType) define {
	t, ok := typeNames[d]
	if !ok {
		panic(fmt.Sprintf("cuda: no kernels for %v", d))
	}
	return word(name, t)
}

func realType(d tensor.DType) define { return typeOf("REAL", d) }

// Name is the name that Open knows it by.
func (b *Backend) Name() string {
	if b.dtype == tensor.BF16 {
		return "cuda"
	}
	return "cuda-f32"
}

// DType is BF16 for cuda, F32 for cuda-f32.
func (b *Backend) DType() tensor.DType { return b.dtype }

// Describe is the card, its memory and the libraries in use.
func (b *Backend) Describe() string {
	precision := "bfloat16 with float32 accumulation"
	if b.dtype == tensor.F32 {
		precision = "float32 without TF32"
	}
	return fmt.Sprintf("%s, %s (%s), %s, %d multiprocessors, driver CUDA %d.%d, NVRTC %d.%d", precision, b.d.name, b.d.arch, size(b.d.total), b.d.sms,
		b.d.driver.version/1000, b.d.driver.version%1000/10, b.d.modules.compiler.major, b.d.modules.compiler.minor)
}

// Close waits for the card and gives everything back. The error is the first failure of an op that nobody has been told of.
func (b *Backend) Close() error {
	if !b.d.closed {
		_ = b.d.try(func() error { b.lt.close(); return nil })
	}
	return b.d.close()
}

// Wait returns when everything queued so far has run.
func (b *Backend) Wait() { b.d.wait() }

// Milliseconds is the time that the card takes for what f queues.
func (b *Backend) Milliseconds(f func()) float64 { return b.d.elapsed(f) }

// peaks are the published rates of dense bf16 products in FLOP/s, by a part of the card's name.
var peaks = []struct {
	name string
	rate float64
}{{"H100 PCIe", 756e12}, {"H100 NVL", 835e12}, {"H100", 989e12}, {"H200", 989e12}, {"A100", 312e12}, {"A800", 312e12}}

// Peak is the published rate of the card's dense bf16 products, which float32 ones do not come near; 0: unknown.
func (b *Backend) Peak() float64 {
	for _, p := range peaks {
		if b.dtype == tensor.BF16 && strings.Contains(b.d.name, p.name) {
			return p.rate
		}
	}
	return 0
}

// Alloc is zeroed memory on the card.
func (b *Backend) Alloc(d tensor.DType, s tensor.Shape) tensor.Tensor {
	t := tensor.Tensor{DType: d, Shape: s}
	b.d.begin("alloc", t)
	n, kind := s.Len()*d.Size(), forTensors
	if d == tensor.U8 {
		kind = forActivations
	}
	p := b.d.alloc(max(n, 1), kind)
	b.d.fill(p, 0, n)
	return tensor.OnDevice(d, s, p)
}

// Free gives memory back for reuse.
func (b *Backend) Free(t tensor.Tensor) { b.d.release(t.Address()) }

// Write brings a host tensor to the card. It may return before the data has arrived, not before src may be changed.
func (b *Backend) Write(dst, src tensor.Tensor) {
	b.d.begin("write", dst, src)
	b.d.write(dst, src)
}

// Read brings a tensor of the card to the host.
func (b *Backend) Read(dst, src tensor.Tensor) {
	b.d.begin("read", dst, src)
	b.d.read(dst, src)
}

// Zero clears a tensor.
func (b *Backend) Zero(t tensor.Tensor) {
	b.d.begin("zero", t)
	b.d.fill(t.Address(), 0, t.Len()*t.DType.Size())
}

// Copy copies src into dst.
func (b *Backend) Copy(dst, src tensor.Tensor) {
	b.d.begin("copy", dst, src)
	b.d.copyOnDevice(dst.Address(), src.Address(), dst.Len()*dst.DType.Size())
}

// tables are small tables that calls bring to the card, the last few of them kept: every step of a training asks for the same.
type tables struct {
	kept map[string]uintptr
	ring [tablesKept]string // in the order they came
	next int
}

const (
	tablesKept = 64
	tableBytes = 64 << 10 // larger ones are not kept
)

// up is a table on the card, good for the op in hand.
func (t *tables) up(b *Backend, bytes []byte) arg {
	if p, ok := t.kept[string(bytes)]; ok {
		return arg(p)
	}
	host := tensor.FromBytes(tensor.U8, tensor.Of(len(bytes)), bytes)
	if len(bytes) > tableBytes || len(bytes) == 0 {
		d := b.scratchTensor(tensor.U8, host.Shape)
		b.d.write(d, host)
		return pointer(d)
	}
	if t.kept == nil {
		t.kept = map[string]uintptr{}
	}
	if old, ok := t.kept[t.ring[t.next]]; ok { // what runs after this in the card's order may have its memory
		delete(t.kept, t.ring[t.next])
		b.d.release(old)
	}
	p := b.d.alloc(len(bytes), forScratch)
	b.d.write(tensor.OnDevice(tensor.U8, host.Shape, p), host)
	key := string(bytes)
	t.kept[key], t.ring[t.next] = p, key
	t.next = (t.next + 1) % tablesKept
	return arg(p)
}

// workbench is scratch memory for the op in hand: one block, cut from the front, all of it free again when the next op begins.
type workbench struct {
	block    uintptr
	size     int
	used     int
	overflow []uintptr // what did not fit this time; the block grows by it
	wanted   int
}

// op begins an op: it names it for errors and frees the scratch memory of the one before.
func (b *Backend) op(name string, tensors ...tensor.Tensor) {
	b.d.begin(name, tensors...)
	w := &b.bench
	if w.wanted > w.size {
		for _, p := range w.overflow {
			b.d.release(p)
		}
		if w.block != 0 {
			b.d.release(w.block)
		}
		w.overflow = w.overflow[:0]
		w.size = class(w.wanted)
		w.block = b.d.alloc(w.size, forScratch)
	}
	w.used, w.wanted = 0, 0
}

// scratch is memory on the card for the op in hand, not cleared, aligned for every access. It is gone when the next op begins.
func (b *Backend) scratch(bytes int) arg {
	w := &b.bench
	n := (max(bytes, 1) + smallest - 1) / smallest * smallest
	w.wanted += n
	if w.used+n > w.size {
		p := b.d.alloc(n, forScratch)
		w.overflow = append(w.overflow, p)
		return arg(p)
	}
	p := w.block + uintptr(w.used)
	w.used += n
	return arg(p)
}

// scratchTensor is scratch with a type and a shape.
func (b *Backend) scratchTensor(d tensor.DType, s tensor.Shape) tensor.Tensor {
	return tensor.OnDevice(d, s, uintptr(b.scratch(s.Len()*d.Size())))
}
