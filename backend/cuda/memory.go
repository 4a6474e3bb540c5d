package cuda

import (
	"fmt"
	"math/bits"
	"unsafe"

	"nha/tensor"
)

// memory is the card's memory: blocks from the driver, kept for the next request of their size when they are freed. Requests
// are rounded up to one of eight sizes between powers of two. Small ones are cut from slabs, since the driver gives out no
// less than 2 MiB at a time. Everything on the card runs in the order of one stream, so a freed block may be handed out at once.
type memory struct {
	free  map[int][]uintptr // blocks by size
	sizes map[uintptr]allocation
	slab  uintptr // what is left of the current slab
	left  int
	slabs []uintptr

	held   [kinds]int // bytes by what they are for
	counts [kinds]int
	cached int // bytes in free
}

// allocation is a block in use.
type allocation struct {
	size int
	kind int
	slab bool
}

// What memory is for, for the message when it runs out.
const (
	forTensors     = iota // parameters, gradients, optimiser states
	forActivations        // blocks of the tape's arena
	forScratch
	kinds
)

const (
	slabBytes = 16 << 20
	smallest  = 256
	slabLimit = 1 << 20 // requests above it come from the driver one by one
)

// class rounds n up to a multiple of an eighth of its power of two.
func class(n int) int {
	n = max(n, smallest)
	step := max(1<<max(0, bits.Len(uint(n-1))-4), smallest)
	if n > slabLimit {
		step = max(step, 2<<20)
	}
	return (n + step - 1) / step * step
}

// alloc is n bytes, not cleared.
func (d *device) alloc(n, kind int) uintptr {
	size, m := class(n), &d.memory
	p := uintptr(0)
	switch list := m.free[size]; {
	case len(list) > 0:
		p = list[len(list)-1]
		m.free[size] = list[:len(list)-1]
		m.cached -= size
	case size <= slabLimit:
		if m.left < size {
			m.slab, m.left = d.fromDriver(slabBytes, n), slabBytes
			m.slabs = append(m.slabs, m.slab)
		}
		p = m.slab
		m.slab, m.left = m.slab+uintptr(size), m.left-size
	default:
		p = d.fromDriver(size, n)
	}
	m.sizes[p] = allocation{size: size, kind: kind, slab: size <= slabLimit}
	m.held[kind] += size
	m.counts[kind]++
	return p
}

// release takes back what alloc gave.
func (d *device) release(p uintptr) {
	m := &d.memory
	a, ok := m.sizes[p]
	if !ok {
		panic("cuda: free of memory that is not in use")
	}
	delete(m.sizes, p)
	m.held[a.kind] -= a.size
	m.counts[a.kind]--
	m.free[a.size] = append(m.free[a.size], p)
	m.cached += a.size
}

// fromDriver asks the driver for size bytes, once more after giving it back what lies unused.
func (d *device) fromDriver(size, asked int) (p uintptr) {
	err := d.try(func() error {
		ask := func() error { return d.driver.do(cuMemAlloc, uintptr(unsafe.Pointer(&p)), uintptr(size)) }
		err := ask()
		if e, ok := err.(*Error); ok && e.Code == codeOutOfMemory && d.memory.cached > 0 {
			if err := d.driver.do(cuStreamSynchronize, d.stream); err != nil {
				return err
			}
			d.memory.trim(d)
			err = ask()
		}
		if e, ok := err.(*Error); ok && e.Code == codeOutOfMemory {
			e.Text, e.Advice = d.outOfMemory(asked), "lower the batch or the context, or let other programs on the card end"
		}
		return err
	})
	if err != nil {
		panic(err)
	}
	return p
}

// trim gives cached blocks back to the driver; on the device's thread.
func (m *memory) trim(d *device) {
	for size, list := range m.free {
		if size <= slabLimit { // parts of slabs
			continue
		}
		for _, p := range list {
			_ = d.driver.do(cuMemFree, p)
		}
		m.cached -= size * len(list)
		delete(m.free, size)
	}
}

// outOfMemory says how much was asked for and what holds the rest; on the device's thread.
func (d *device) outOfMemory(asked int) string {
	m := &d.memory
	var free, total int
	_ = d.driver.do(cuMemGetInfo, uintptr(unsafe.Pointer(&free)), uintptr(unsafe.Pointer(&total))) // zeros then
	ours := m.cached
	for _, n := range m.held {
		ours += n
	}
	return fmt.Sprintf("%s asked for, %s of %s free on %s; in use: %s for parameters, gradients and states (%d blocks), %s for activations (%d), %s for scratch, %s by other programs and CUDA itself",
		size(asked), size(free), size(total), d.name, size(m.held[forTensors]), m.counts[forTensors], size(m.held[forActivations]),
		m.counts[forActivations], size(m.held[forScratch]), size(max(0, total-free-ours)))
}

func size(n int) string {
	if n < 1<<30 {
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
}

// close gives all memory back; on the device's thread.
func (m *memory) close(d *device) {
	for p, a := range m.sizes {
		if !a.slab {
			_ = d.driver.do(cuMemFree, p)
		}
	}
	m.trim(d)
	for _, p := range m.slabs {
		_ = d.driver.do(cuMemFree, p)
	}
}

// fill queues setting n bytes at p to a value.
func (d *device) fill(p uintptr, value byte, n int) {
	if n == 0 {
		return
	}
	c := d.take(func(d *device, c *command) error {
		return d.issue(cuMemsetD8Async, uintptr(c.args[0]), uintptr(c.args[1]), uintptr(c.args[2]), d.stream)
	})
	c.args[0], c.args[1], c.args[2] = uint64(p), uint64(value), uint64(n)
	d.queue <- c
}

// copyOnDevice queues a copy of n bytes.
func (d *device) copyOnDevice(to, from uintptr, n int) {
	if n == 0 {
		return
	}
	c := d.take(func(d *device, c *command) error {
		return d.issue(cuMemcpyDtoDAsync, uintptr(c.args[0]), uintptr(c.args[1]), uintptr(c.args[2]), d.stream)
	})
	c.args[0], c.args[1], c.args[2] = uint64(to), uint64(from), uint64(n)
	d.queue <- c
}

// staging is page-locked memory on the host through which everything passes: the card reads and writes it by itself, and the
// host converts types on the way. Its buffers are used in turn; an event says when the card is through with one.
type staging struct {
	buffers [stagingBuffers]struct {
		address uintptr
		event   uintptr
		busy    bool
	}
	next int
}

const (
	stagingBuffers = 4
	stagingBytes   = 4 << 20
)

// buffer is the next staging buffer, once the card is through with it.
func (d *device) buffer() (i int, bytes []byte) {
	i = d.staging.next
	d.staging.next = (i + 1) % stagingBuffers
	b := &d.staging.buffers[i]
	if b.address == 0 {
		d.must(func() error {
			if err := d.driver.do(cuMemAllocHost, uintptr(unsafe.Pointer(&b.address)), stagingBytes); err != nil {
				return err
			}
			return d.driver.do(cuEventCreate, uintptr(unsafe.Pointer(&b.event)), eventWithoutTiming)
		})
	}
	if b.busy {
		c := d.take(func(d *device, c *command) error { return d.issue(cuEventSynchronize, uintptr(c.args[0])) })
		c.args[0] = uint64(b.event)
		if err := d.finish(c); err != nil {
			panic(err)
		}
		b.busy = false
	}
	return i, unsafe.Slice((*byte)(*(*unsafe.Pointer)(unsafe.Pointer(&b.address))), stagingBytes)
}

const eventWithoutTiming = 2

// write brings host memory to the card, converting to dst's type. It returns when src may be changed, not when it has arrived.
func (d *device) write(dst, src tensor.Tensor) {
	n, width := dst.Len(), dst.DType.Size()
	if n == 0 {
		return
	}
	step := stagingBytes / width
	for from := 0; from < n; from += step {
		part := tensor.Of(min(step, n-from))
		i, host := d.buffer()
		tensor.Convert(tensor.FromBytes(dst.DType, part, host[:part.Len()*width]), src.At(from, part))
		c := d.take(runWrite)
		c.args[0], c.args[1], c.args[2], c.args[3] = uint64(dst.Address())+uint64(from*width), uint64(d.staging.buffers[i].address),
			uint64(part.Len()*width), uint64(d.staging.buffers[i].event)
		d.staging.buffers[i].busy = true
		d.queue <- c
	}
}

func runWrite(d *device, c *command) error {
	if err := d.issue(cuMemcpyHtoDAsync, uintptr(c.args[0]), uintptr(c.args[1]), uintptr(c.args[2]), d.stream); err != nil {
		return err
	}
	return d.issue(cuEventRecord, uintptr(c.args[3]), d.stream)
}

// read brings memory of the card to the host, converting to dst's type, and waits for it.
func (d *device) read(dst, src tensor.Tensor) {
	n, width := src.Len(), src.DType.Size()
	step := stagingBytes / width
	for from := 0; from < n; from += step {
		part := tensor.Of(min(step, n-from))
		i, host := d.buffer()
		c := d.take(runRead)
		c.args[0], c.args[1], c.args[2] = uint64(d.staging.buffers[i].address), uint64(src.Address())+uint64(from*width), uint64(part.Len()*width)
		err := d.finish(c)
		d.check()
		if err != nil {
			panic(err)
		}
		tensor.Convert(dst.At(from, part), tensor.FromBytes(src.DType, part, host[:part.Len()*width]))
	}
}

func runRead(d *device, c *command) error {
	if err := d.issue(cuMemcpyDtoHAsync, uintptr(c.args[0]), uintptr(c.args[1]), uintptr(c.args[2]), d.stream); err != nil {
		return err
	}
	return d.issue(cuStreamSynchronize, d.stream)
}

func (s *staging) close(d *device) {
	for i := range s.buffers {
		if b := &s.buffers[i]; b.address != 0 {
			_ = d.driver.do(cuEventDestroy, b.event)
			_ = d.driver.do(cuMemFreeHost, b.address)
		}
	}
}
