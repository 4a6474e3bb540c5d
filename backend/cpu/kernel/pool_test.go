package kernel

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

type poolFunc func(worker, index int)

func (f poolFunc) Do(worker, index int) { f(worker, index) }

func TestPoolRunsEveryIndexOnce(t *testing.T) {
	for _, threads := range []int{1, 2, 3, 8} {
		p := NewPool(threads)
		if p.Threads() != threads {
			t.Fatalf("Threads() = %d, want %d", p.Threads(), threads)
		}
		for _, n := range []int{0, 1, 2, 7, 100} {
			for range 50 {
				counts := make([]atomic.Int32, n)
				inside := make([]atomic.Int32, threads)
				p.Run(n, poolFunc(func(worker, i int) {
					if inside[worker].Add(1) != 1 {
						t.Errorf("worker %d runs two tasks at once", worker)
					}
					counts[i].Add(1)
					inside[worker].Add(-1)
				}))
				for i := range counts {
					if c := counts[i].Load(); c != 1 {
						t.Fatalf("%d threads, n %d: index %d ran %d times", threads, n, i, c)
					}
				}
			}
		}
		p.Close()
	}
}

func TestPoolDefaultThreads(t *testing.T) {
	before := runtime.GOMAXPROCS(3)
	defer runtime.GOMAXPROCS(before)
	p := NewPool(0)
	defer p.Close()
	if p.Threads() != 3 {
		t.Fatalf("NewPool(0) has %d threads at GOMAXPROCS 3", p.Threads())
	}
}

func TestPoolNestedAndConcurrentRuns(t *testing.T) {
	p := NewPool(4)
	defer p.Close()
	var total atomic.Int64
	var callers sync.WaitGroup
	for range 4 {
		callers.Go(func() {
			for range 100 {
				p.Run(5, poolFunc(func(worker, i int) {
					p.Run(3, poolFunc(func(worker, i int) { total.Add(1) }))
				}))
			}
		})
	}
	callers.Wait()
	if total.Load() != 4*100*15 {
		t.Fatalf("%d inner tasks ran, want %d", total.Load(), 4*100*15)
	}
}

func TestPoolPanicReachesCaller(t *testing.T) {
	p := NewPool(3)
	defer p.Close()
	for index := range 6 {
		func() {
			defer func() {
				if r := recover(); r != fmt.Sprint("index ", index) {
					t.Fatalf("recovered %v", r)
				}
			}()
			p.Run(6, poolFunc(func(worker, i int) {
				if i == index {
					panic(fmt.Sprint("index ", i))
				}
			}))
			t.Fatal("the panic was lost")
		}()
		ran := atomic.Int32{}
		p.Run(10, poolFunc(func(worker, i int) { ran.Add(1) }))
		if ran.Load() != 10 {
			t.Fatalf("after a panic %d of 10 tasks ran", ran.Load())
		}
	}
}

// A caller must not wait for a helper whose goroutine never got to run.
func TestPoolClose(t *testing.T) {
	before := runtime.NumGoroutine()
	p := NewPool(4)
	p.Run(4, poolFunc(func(worker, i int) {}))
	p.Close()
	ran := 0
	p.Run(4, poolFunc(func(worker, i int) { ran++ }))
	if ran != 4 {
		t.Fatalf("after Close %d of 4 tasks ran", ran)
	}
	for range 200 {
		if runtime.NumGoroutine() <= before {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("%d goroutines, %d before the pool", runtime.NumGoroutine(), before)
}

func TestPoolRunDoesNotAllocate(t *testing.T) {
	p := NewPool(2)
	defer p.Close()
	var task Task = poolFunc(func(worker, i int) {})
	for _, pause := range []time.Duration{0, time.Millisecond} { // with helpers looking for work, and asleep
		if n := testing.AllocsPerRun(100, func() { time.Sleep(pause); p.Run(16, task) }); n != 0 {
			t.Errorf("%g allocations a Run after %v", n, pause)
		}
	}
}

// Two tasks that wait for each other end only if a helper that was asleep joins in.
func TestPoolWakesHelpers(t *testing.T) {
	p := NewPool(2)
	defer p.Close()
	for range 20 {
		time.Sleep(time.Millisecond)
		var here atomic.Int32
		p.Run(2, poolFunc(func(worker, i int) {
			here.Add(1)
			for start := time.Now(); here.Load() < 2; runtime.Gosched() {
				if time.Since(start) > 10*time.Second {
					t.Error("the helper never came")
					return
				}
			}
		}))
	}
}

// BenchmarkPoolRun is the cost of starting and joining a loop: back to back, and after a pause in which helpers park.
func BenchmarkPoolRun(b *testing.B) {
	p := NewPool(0)
	defer p.Close()
	spin := func(d time.Duration) {
		for start := time.Now(); time.Since(start) < d; {
		}
	}
	for _, pause := range []time.Duration{0, 5 * time.Microsecond, 50 * time.Microsecond, time.Millisecond} {
		for _, work := range []time.Duration{0, 50 * time.Microsecond} {
			b.Run(fmt.Sprintf("pause-%v-work-%v", pause, work), func(b *testing.B) {
				var task Task = poolFunc(func(worker, i int) { spin(work) })
				var inside time.Duration
				for range b.N {
					spin(pause)
					start := time.Now()
					p.Run(2, task)
					inside += time.Since(start)
				}
				b.ReportMetric(float64(inside.Nanoseconds())/float64(b.N), "ns/run")
			})
		}
	}
}
