package cuda

import (
	"fmt"
	"math"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"unsafe"

	"nha/tensor"
)

// device is a card and the one operating-system thread that talks to it. A goroutine queues commands, the thread issues them
// on one stream in that order. Commands are taken from a fixed set and given back, so queueing allocates nothing, and a
// producer that is far ahead waits.
type device struct {
	driver *driver
	name   string
	arch   string // sm_90a
	major  int
	sms    int // multiprocessors
	total  int // bytes of memory
	shared int // bytes of shared memory that a block may ask for

	handle   int32
	context  uintptr
	stream   uintptr
	syncEach bool // NHA_CUDA_SYNC: wait after every command, so that a fault names its op

	queue  chan *command
	spare  chan *command
	done   chan struct{} // the answer to a command that is waited for
	failed atomic.Pointer[Error]
	where  where
	closed bool

	frame   [maxArgs]uintptr // arguments of the C call in hand, on the device's thread
	modules modules
	memory  memory
	staging staging

	collecting bool      // Compile: kernels are noted, nothing is launched
	noted      []*kernel // those that are not loaded yet
	profile    *profile  // nil: not measured
}

// maxArgs is the most parameters a kernel takes.
const maxArgs = 32

// queued is how many commands may wait for the thread.
const queued = 512

// where is the op that queues commands, for errors.
type where struct {
	op     string
	shapes [8]tensor.Shape
	n      int
}

// command is a unit of work of the device's thread.
type command struct {
	run     func(*device, *command) error // what to do; a plain function, so that storing it allocates nothing
	kernel  *kernel
	plan    *product
	owner   *multiplier
	grid    grid
	block   int
	shared  int
	args    [maxArgs]uint64
	params  [maxArgs]unsafe.Pointer // to args, as cuLaunchKernel wants them
	call    func() error            // for rare work
	err     error
	waiting bool // somebody waits: answer instead of giving the command back
	where   where
}

// grid is the number of blocks in x, y and z.
type grid struct{ x, y, z int }

// arg is a kernel's parameter: a pointer, an integer or a float32, in the low bytes.
type arg uint64

// pointer is the address of a tensor, 0 for none.
func pointer(t tensor.Tensor) arg { return arg(t.Address()) }

// integer is an int (32 bits) or a long long; f32 a float.
func integer(n int) arg { return arg(n) }

func f32(x float64) arg { return arg(math.Float32bits(float32(x))) }

// openDevice takes the card that CUDA numbers 0 (CUDA_VISIBLE_DEVICES chooses).
func openDevice() (*device, error) {
	dr, err := loadDriver()
	if err != nil {
		return nil, err
	}
	d := &device{driver: dr, queue: make(chan *command, queued), spare: make(chan *command, queued), done: make(chan struct{}, 1),
		syncEach: os.Getenv("NHA_CUDA_SYNC") != ""}
	for range queued {
		c := &command{}
		for i := range c.args {
			c.params[i] = unsafe.Pointer(&c.args[i])
		}
		d.spare <- c
	}
	d.memory.free, d.memory.sizes = map[int][]uintptr{}, map[uintptr]allocation{}
	go d.serve()
	if err := d.try(d.start); err != nil {
		d.close()
		return nil, fmt.Errorf("the NVIDIA card cannot be used: %w", err)
	}
	if d.major < 8 {
		d.close()
		return nil, fmt.Errorf("%s has compute capability %s: sm_80 (Ampere) or newer is needed; use --backend cpu", d.name, strings.TrimPrefix(d.arch, "sm_"))
	}
	return d, nil
}

// start makes the context; on the device's thread.
func (d *device) start() error {
	dr := d.driver
	if err := dr.do(cuDeviceGet, uintptr(unsafe.Pointer(&d.handle)), 0); err != nil {
		return err
	}
	var name [256]byte
	if err := dr.do(cuDeviceGetName, uintptr(unsafe.Pointer(&name)), uintptr(len(name)), uintptr(d.handle)); err != nil {
		return err
	}
	d.name, _, _ = strings.Cut(string(name[:]), "\x00")
	attribute := func(a int) int {
		var v int32
		_ = dr.do(cuDeviceGetAttribute, uintptr(unsafe.Pointer(&v)), uintptr(a), uintptr(d.handle)) // 0 shows below
		return int(v)
	}
	d.major, d.sms, d.shared = attribute(attributeComputeMajor), attribute(attributeSMs), attribute(attributeSharedPerBlock)
	d.arch = fmt.Sprintf("sm_%d%d", d.major, attribute(attributeComputeMinor))
	if d.arch == "sm_90" {
		d.arch = "sm_90a"
	}
	if err := dr.do(cuDeviceTotalMem, uintptr(unsafe.Pointer(&d.total)), uintptr(d.handle)); err != nil {
		return err
	}
	if err := dr.do(cuDevicePrimaryCtxRetain, uintptr(unsafe.Pointer(&d.context)), uintptr(d.handle)); err != nil {
		const choose = "or choose another card with CUDA_VISIBLE_DEVICES"
		switch e := err.(*Error); e.Code {
		case codeUnavailable:
			e.Advice = "another program has the card to itself: let it end, " + choose
		case codeOutOfMemory:
			e.Advice = "its memory is full: let other programs on it end, " + choose
		}
		return err
	}
	if err := dr.do(cuCtxSetCurrent, d.context); err != nil {
		return err
	}
	const nonBlocking = 1
	return dr.do(cuStreamCreate, uintptr(unsafe.Pointer(&d.stream)), nonBlocking)
}

// serve is the device's thread.
func (d *device) serve() {
	runtime.LockOSThread()
	for c := range d.queue {
		c.err = nil
		if d.failed.Load() == nil || c.waiting {
			if p := d.profile; p != nil && !c.waiting {
				c.err = p.run(d, c)
			} else {
				c.err = c.run(d, c)
			}
			if c.err == nil && d.syncEach && d.stream != 0 {
				c.err = d.driver.do(cuStreamSynchronize, d.stream)
			}
			if e, ok := c.err.(*Error); ok && e.Op == "" {
				e.Op, e.Shapes = c.where.op, append([]tensor.Shape(nil), c.where.shapes[:c.where.n]...)
			}
		}
		c.call, c.kernel, c.plan, c.owner = nil, nil, nil, nil
		if c.waiting {
			d.done <- struct{}{}
			continue
		}
		if e, ok := c.err.(*Error); ok {
			d.failed.CompareAndSwap(nil, e)
		}
		d.spare <- c
	}
	// The thread ends with its goroutine, still locked: nothing of CUDA's stays on a thread that others use.
}

// begin names the op whose commands follow. It is also where a failure of earlier commands comes up.
func (d *device) begin(op string, tensors ...tensor.Tensor) {
	d.check()
	w := &d.where
	w.op, w.n = op, 0
	for _, t := range tensors {
		if t.Present() && w.n < len(w.shapes) {
			w.shapes[w.n] = t.Shape
			w.n++
		}
	}
}

func (d *device) check() {
	if e := d.failed.Load(); e != nil {
		panic(e)
	}
}

// take is a free command for run.
func (d *device) take(run func(*device, *command) error) *command {
	c := <-d.spare
	c.run, c.where, c.waiting = run, d.where, false
	return c
}

// try runs f on the device's thread and waits.
func (d *device) try(f func() error) error {
	c := d.take(runCall)
	c.call = f
	return d.finish(c)
}

// finish queues a command and waits for it.
func (d *device) finish(c *command) error {
	c.waiting = true
	d.queue <- c
	<-d.done
	err := c.err
	d.spare <- c
	return err
}

func runCall(_ *device, c *command) error { return c.call() }

// must is try for what cannot fail.
func (d *device) must(f func() error) {
	if err := d.try(f); err != nil {
		panic(err)
	}
}

// wait returns when everything queued so far has run on the card.
func (d *device) wait() {
	d.check()
	d.must(func() error { return d.driver.do(cuStreamSynchronize, d.stream) })
	d.check()
}

// launch queues a kernel over a grid of blocks of threads, with shared bytes of dynamic shared memory.
func (d *device) launch(k *kernel, g grid, block, shared int, args ...arg) {
	if len(args) > maxArgs {
		panic(fmt.Sprintf("cuda: %d parameters for kernel %s", len(args), k.entry))
	}
	if g.x == 0 || g.y == 0 || g.z == 0 || d.collecting {
		return
	}
	c := d.take(runLaunch)
	c.kernel, c.grid, c.block, c.shared = k, g, block, shared
	for i, a := range args {
		c.args[i] = uint64(a)
	}
	d.queue <- c
}

// invoke calls a C function without making garbage; on the device's thread. What the arguments point to must be on the heap and
// held by somebody else.
func (d *device) invoke(f uintptr, args ...uintptr) int {
	return int(int32(call(f, d.frame[:copy(d.frame[:], args)]...)))
}

// issue is invoke for the driver's functions.
func (d *device) issue(f function, args ...uintptr) error {
	if code := d.invoke(d.driver.f[f], args...); code != 0 {
		return d.driver.failure(f.String(), code)
	}
	return nil
}

func runLaunch(d *device, c *command) error {
	k := c.kernel
	if c.shared > k.shared {
		if err := d.driver.do(cuFuncSetAttribute, k.function, functionMaxDynamicShared, uintptr(c.shared)); err != nil {
			return err
		}
		k.shared = c.shared
	}
	code := d.invoke(d.driver.f[cuLaunchKernel], k.function, uintptr(c.grid.x), uintptr(c.grid.y), uintptr(c.grid.z), uintptr(c.block), 1, 1,
		uintptr(c.shared), d.stream, uintptr(unsafe.Pointer(&c.params)), 0)
	if code != 0 {
		return d.driver.failure("cuLaunchKernel "+k.entry, code)
	}
	return nil
}

// elapsed is the milliseconds that the card takes for what f queues.
func (d *device) elapsed(f func()) float64 {
	var events [2]uintptr
	dr := d.driver
	d.must(func() error {
		for i := range events {
			if err := dr.do(cuEventCreate, uintptr(unsafe.Pointer(&events[i])), 0); err != nil {
				return err
			}
		}
		return nil
	})
	record := func(event uintptr) {
		c := d.take(func(d *device, c *command) error { return d.issue(cuEventRecord, uintptr(c.args[0]), d.stream) })
		c.args[0] = uint64(event)
		d.queue <- c
	}
	record(events[0])
	f()
	record(events[1])
	var ms float32
	d.must(func() error {
		if err := dr.do(cuEventSynchronize, events[1]); err != nil {
			return err
		}
		if err := dr.do(cuEventElapsedTime, uintptr(unsafe.Pointer(&ms)), events[0], events[1]); err != nil {
			return err
		}
		for _, e := range events {
			if err := dr.do(cuEventDestroy, e); err != nil {
				return err
			}
		}
		return nil
	})
	return float64(ms)
}

// close waits for the card, gives everything back and ends the thread.
func (d *device) close() error {
	if d.closed {
		return nil
	}
	d.closed = true
	err := d.try(func() error {
		if d.stream == 0 {
			return nil
		}
		first := d.driver.do(cuStreamSynchronize, d.stream)
		d.staging.close(d)
		d.memory.close(d)
		d.modules.close(d)
		_ = d.driver.do(cuStreamDestroy, d.stream)
		_ = d.driver.do(cuDevicePrimaryCtxRelease, uintptr(d.handle)) // the process may go on without the card
		return first
	})
	close(d.queue)
	if e := d.failed.Load(); e != nil {
		return e
	}
	return err
}
