package kernel

import (
	"os"
	"runtime"
	"sync"
	"sync/atomic"
)

// A pool hands the indices of one loop to a few goroutines that stay alive between loops.
//
// An index goes to whoever asks next, so a thread that the machine gives to another process delays the loop by one index,
// not by its share. Results cannot depend on that: a task computes index i the same way on every worker, and writes
// only what belongs to i (or, per worker, scratch).
//
// A goroutine without work waits for a byte from a pipe. A channel would do the same 60 microseconds later: the scheduler lets
// an idle thread take a goroutine that another just made ready only after a sleep, as its waker may be about to block, and
// ours is about to compute. A thread that sleeps in the network poller runs what it polled at once: 5 microseconds. Before
// it waits a goroutine looks for work for about as long as the wake-up would take, since the loops of a training step
// follow each other within microseconds.

// A Task is the body of a parallel loop.
type Task interface {
	// Do computes index. No two calls with one worker number run at the same time within one Run.
	Do(worker, index int)
}

// Pool runs parallel loops on a fixed number of goroutines. It is safe for concurrent use.
type Pool struct {
	threads int
	busy    atomic.Bool
	helpers []poolHelper

	mu      sync.Mutex // guards what follows, up to failure
	task    Task
	n       int
	open    bool // helpers may join
	waiting bool // the caller is parked on done
	failure any

	done   chan struct{}
	active atomic.Int32 // helpers inside the loop
	closed atomic.Bool

	_     [64]byte // the counters are written by every thread: each has a cache line
	next  atomic.Int64
	_     [64]byte
	epoch atomic.Uint32
	_     [64]byte

	jobs struct {
		sync.Mutex
		free []*gemmJob
	}
}

type poolHelper struct {
	sleep, wake *os.File // the two ends of its pipe
	parked      atomic.Bool
	_           [64]byte
}

// poolSpin bounds the loads of one look for work: 16 to 48 microseconds, about the serial work between two products of a decoding step.
const poolSpin = 40000

var poolToken = []byte{0}

// NewPool makes a pool of that many threads, the caller of Run among them; 0 or less means GOMAXPROCS. Where the system has no
// pipes left it makes fewer.
func NewPool(threads int) *Pool {
	if threads <= 0 {
		threads = runtime.GOMAXPROCS(0)
	}
	p := &Pool{done: make(chan struct{}, 1), helpers: make([]poolHelper, 0, threads-1)}
	for len(p.helpers) < threads-1 {
		sleep, wake, err := os.Pipe()
		if err != nil {
			break
		}
		p.helpers = append(p.helpers, poolHelper{sleep: sleep, wake: wake})
	}
	p.threads = len(p.helpers) + 1
	for i := range p.helpers {
		go p.serve(i + 1)
	}
	return p
}

// Threads is the number of workers; worker numbers lie in [0, Threads()).
func (p *Pool) Threads() int { return p.threads }

// Close ends the goroutines. Run still works afterwards, on its caller alone.
func (p *Pool) Close() {
	p.closed.Store(true)
	p.epoch.Add(1)
	p.wake(len(p.helpers))
}

// Run calls task.Do(worker, i) for every i in [0, n) and returns when all have returned; the caller is worker 0. It does
// not allocate.
//
// A Run inside a task, or while another goroutine's Run holds the pool, does the whole loop on its caller, as worker 0:
// scratch that a task keeps per worker must therefore belong to that task, not to the pool. A panic in Do ends the loop
// early and continues in the caller. Do must not call runtime.Goexit.
func (p *Pool) Run(n int, task Task) {
	if n <= 1 || p.threads == 1 || !p.busy.CompareAndSwap(false, true) {
		for i := range n {
			task.Do(0, i)
		}
		return
	}
	p.mu.Lock()
	p.task, p.n, p.open = task, n, true
	p.next.Store(0)
	p.epoch.Add(1)
	p.mu.Unlock()
	p.wake(min(n-1, len(p.helpers)))
	p.work(0, n, task)

	p.mu.Lock()
	p.open, p.task = false, nil
	p.mu.Unlock()
	p.join()
	failure := p.failure
	p.failure = nil
	p.busy.Store(false)
	if failure != nil {
		panic(failure)
	}
}

// join waits until no helper is inside the loop. One that was never scheduled is not waited for.
func (p *Pool) join() {
	for spin := 0; spin < poolSpin; spin++ {
		if p.active.Load() == 0 {
			return
		}
	}
	p.mu.Lock()
	p.waiting = p.active.Load() > 0
	waiting := p.waiting
	p.mu.Unlock()
	if waiting {
		<-p.done
	}
}

func (p *Pool) wake(n int) {
	for i := range p.helpers[:n] {
		if h := &p.helpers[i]; h.parked.CompareAndSwap(true, false) {
			h.wake.Write(poolToken) // cannot fail: an empty pipe takes a byte
		}
	}
}

func (p *Pool) work(worker, n int, task Task) {
	defer func() {
		if r := recover(); r != nil {
			p.next.Store(int64(n))
			p.mu.Lock()
			p.failure = r
			p.mu.Unlock()
		}
	}()
	for {
		i := int(p.next.Add(1)) - 1
		if i >= n {
			return
		}
		task.Do(worker, i)
	}
}

func (p *Pool) serve(worker int) {
	h := &p.helpers[worker-1]
	defer h.sleep.Close()
	defer h.wake.Close()
	token := make([]byte, 1)
	var seen uint32
	for {
		seen = p.await(h, seen, token)
		if p.closed.Load() {
			return
		}
		p.mu.Lock()
		if !p.open {
			p.mu.Unlock()
			continue
		}
		task, n := p.task, p.n
		p.active.Add(1)
		p.mu.Unlock()
		p.work(worker, n, task)
		p.mu.Lock()
		if p.active.Add(-1) == 0 && p.waiting {
			p.waiting = false
			p.done <- struct{}{}
		}
		p.mu.Unlock()
	}
}

// await returns the epoch once it differs from seen.
func (p *Pool) await(h *poolHelper, seen uint32, token []byte) uint32 {
	for spin := 0; spin < poolSpin; spin++ {
		if e := p.epoch.Load(); e != seen {
			return e
		}
	}
	h.parked.Store(true)
	// The epoch may have moved before parked was seen: whoever takes the flag back decides whether a byte comes.
	if p.epoch.Load() == seen || !h.parked.CompareAndSwap(true, false) {
		h.sleep.Read(token)
	}
	return p.epoch.Load()
}
