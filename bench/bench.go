// Package bench measures what nha's speed is made of: matrix products, the operator, a training step, a decode step. Each
// measurement is a struct of options with Check, for what a user can get wrong, and Run, which emits one row of figures per
// shape; the names of a row's fields are SPEC 5's.
//
// A figure is the median of runs after a warm-up. What depends on the machine is measured in the same process: the peak
// that a model FLOP utilisation refers to is the best matrix product, the bandwidth that a decode step is held against is a
// streaming sum.
package bench

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"nha/backend"
	"nha/tensor"
)

// Emit takes one row of figures, a struct with JSON names. Its error ends the measurement.
type Emit func(row any) error

// Timing is how much time a figure gets.
type Timing struct {
	Seconds float64 // at least so long and 5 runs, at most 5 times as long; the warm-up comes on top
}

const (
	leastRuns = 5
	overtime  = 5 // times Seconds, for a single figure
)

// Check refuses a time that is none.
func (t Timing) Check() error {
	if !(t.Seconds >= 0 && t.Seconds <= 3600) {
		return fmt.Errorf("seconds %v: must be from 0 to 3600", t.Seconds)
	}
	return nil
}

// runs is the times of f, in seconds, shortest first; at least one, after a run that does not count.
func (t Timing) runs(ctx context.Context, f func()) ([]float64, error) {
	f()
	var list []float64
	for sum := 0.0; len(list) == 0 || sum < overtime*t.Seconds && (len(list) < leastRuns || sum < t.Seconds); {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		took := elapsed(f)
		list, sum = append(list, took), sum+took
	}
	slices.Sort(list)
	return list, nil
}

// elapsed is the time of one call in seconds, never 0.
func elapsed(f func()) float64 {
	start := time.Now()
	f()
	return max(time.Since(start), 1).Seconds()
}

// median is the median time of f in seconds.
func (t Timing) median(ctx context.Context, f func()) (float64, error) {
	list, err := t.runs(ctx, f)
	if err != nil {
		return 0, err
	}
	return median(list), nil
}

// median of a sorted list.
func median(list []float64) float64 {
	n := len(list)
	return (list[(n-1)/2] + list[n/2]) / 2
}

// maxBytes bounds what one shape may ask for: more than this is a slip of the finger.
const maxBytes = 1 << 36

// positive refuses a list that is empty or has a number below the least that makes sense.
func positive(name string, list []int, least int) error {
	for _, n := range list {
		if n < least || n > 1<<30 {
			return fmt.Errorf("%s %d: must be from %d to 2^30", name, n, least)
		}
	}
	if len(list) == 0 {
		return fmt.Errorf("%s: give at least one number", name)
	}
	return nil
}

func fits(what string, elements float64) error {
	if elements*4 > maxBytes {
		return fmt.Errorf("%s needs %.0f GiB: the limit is %d", what, elements*4/(1<<30), maxBytes>>30)
	}
	return nil
}

// combinations calls f with every choice of one number from each list, the last list fastest.
func combinations(lists [][]int, f func(choice []int) error) error {
	choice := make([]int, len(lists))
	var walk func(i int) error
	walk = func(i int) error {
		if i == len(lists) {
			return f(choice)
		}
		for _, choice[i] = range lists[i] {
			if err := walk(i + 1); err != nil {
				return err
			}
		}
		return nil
	}
	return walk(0)
}

// noise is the length of the random numbers that fill tensors by turns: prime, so that no two rows are alike.
const noise = 65521

// random is a tensor on the backend, filled with normal numbers.
func random(b backend.Backend, dims ...int) tensor.Tensor {
	t := b.Alloc(b.DType(), tensor.Of(dims...))
	fill(b, t, (*rand.Rand).NormFloat64)
	return t
}

func fill(b backend.Backend, t tensor.Tensor, draw func(*rand.Rand) float64) {
	fillBy(b.Write, t, draw)
}

// fillHost is fill for memory of the host, whatever the backend.
func fillHost(t tensor.Tensor, draw func(*rand.Rand) float64) { fillBy(tensor.Convert, t, draw) }

func fillBy(write func(dst, src tensor.Tensor), t tensor.Tensor, draw func(*rand.Rand) float64) {
	r := rand.New(rand.NewPCG(1, 2))
	x := make([]float32, min(noise, t.Len()))
	for i := range x {
		x[i] = float32(draw(r))
	}
	for from := 0; from < t.Len(); from += len(x) {
		n := min(len(x), t.Len()-from)
		write(t.At(from, tensor.Of(n)), tensor.FromF32(x[:n], n))
	}
}

// wait returns when t is computed, also where ops only queue: it brings one element to the host.
func wait(b backend.Backend, t tensor.Tensor) {
	var x [1]float32
	b.Read(tensor.FromF32(x[:], 1), t.At(0, tensor.Of(1)))
}

// dtypeName is the type's name in a configuration.
func dtypeName(d tensor.DType) string {
	switch d {
	case tensor.F64:
		return "float64"
	case tensor.F32:
		return "float32"
	case tensor.F16:
		return "float16"
	case tensor.BF16:
		return "bfloat16"
	}
	return d.String()
}
