// Package optest holds every backend against the reference: one table of cases for all ops (cases.go) and three modes.
//
//	match     outputs and gradients equal the reference's on the same rounded inputs, within SPEC 1.5
//	gradient  gradients equal central finite differences of the reference's forward
//	perf      time of forward and backward
//
// `NHA_BACKEND=ref|cpu|cuda|cuda-f32 go test ./backend/optest` runs it; without the variable every backend that opens here takes its turn.
package optest

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"

	"nha/attention/vectors"
	"nha/backend"
	"nha/backend/ref"
	"nha/tensor"
)

// Input is one tensor that a case gives to an op.
type Input struct {
	Name        string
	Shape       tensor.Shape
	Std         float64 // of normal values, 0 means 1
	Mean        float64
	Ids         int          // I32 values from 0 to Ids-1 instead (from -1 with Negative)
	Negative    bool         // every fifth id is -1
	Permutation bool         // every id once
	Distinct    bool         // the ids of a row differ from one another
	Wide        bool         // float32 where the backend's type is a 16-bit one
	Blocks      tensor.DType // a quantised type, in which the cpu backends read the tensor
}

// Output is one tensor that an op gives.
type Output struct {
	Name  string
	Shape tensor.Shape
	Wide  bool // float32 where the backend's type is a 16-bit one
	Ids   bool // I32
}

// Case is one use of one op.
type Case struct {
	Op, Name string
	Inputs   []Input
	Outputs  []Output
	Forward  func(b backend.Backend, in, out []tensor.Tensor)
	// Backward takes the gradients of the outputs and gives those of the inputs in Wants, into din (same index as the
	// input). nil: the op has none.
	Backward   func(b backend.Backend, in, out, dout []tensor.Tensor, din []backend.Gradient)
	Wants      []int
	Through    []int   // outputs through which gradients flow; nil means the first alone
	Constant   float64 // the gradient of the outputs is this number; 0 means random
	OnlyWrites bool    // the op writes gradients, never adds (nha)
	Picks      int     // elements of an input that gradient mode differentiates; 0 means 24
	// Bound is what a backend's method may cost: the largest error of every element of an output, absolute. nil, or nothing for a
	// backend: SPEC 1.5's limits.
	Bound func(b backend.Backend, in []tensor.Tensor, output int) []float64

	differences map[difference]float64 // of gradient mode: the same for every backend of a type
}

// Result is one comparison.
type Result struct {
	Case, Tensor string
	Error, Limit float64
}

// OK reports whether the error is a number within the limit.
func (r Result) OK() bool { return r.Error <= r.Limit }

// String is one line of the match table.
func (r Result) String() string {
	return fmt.Sprintf("%-40s %-12s error %.2g limit %.0e", r.Case, r.Tensor, r.Error, r.Limit)
}

// Title names the case.
func (c *Case) Title() string { return c.Op + "/" + c.Name }

// difference names a finite difference: the type that inputs are rounded to, the input, the element.
type difference struct {
	dtype     tensor.DType
	input, at int
}

// run is a case's tensors on one backend.
type run struct {
	b             backend.Backend
	in, out, dout []tensor.Tensor
	din           []backend.Gradient
}

// draw makes host inputs and output gradients, rounded to type d (to float32 at least) so that the reference sees the numbers
// that a backend of that type does.
func (c *Case) draw(seed uint64, d tensor.DType) (in, dout []tensor.Tensor) {
	r := rand.New(rand.NewPCG(seed, uint64(len(c.Title()))))
	normal := func(s tensor.Shape, std, mean float64, wide bool) tensor.Tensor {
		t := tensor.New(tensor.F64, s)
		for i := range t.F64() {
			t.F64()[i] = float64(float32(mean + std*r.NormFloat64()))
		}
		if d.Size() == 2 && !wide {
			rounded := tensor.New(d, s)
			tensor.Convert(rounded, t)
			tensor.Convert(t, rounded)
		}
		return t
	}
	for _, x := range c.Inputs {
		if x.Ids > 0 {
			t := tensor.New(tensor.I32, x.Shape)
			for i := range t.I32() {
				t.I32()[i] = r.Int32N(int32(x.Ids))
				if n := x.Shape.Dim(-1); x.Distinct && i%n > 0 {
					t.I32()[i] = (t.I32()[i-1] + 1 + r.Int32N(int32(x.Ids/n))) % int32(x.Ids)
				}
				if x.Negative && i%5 == 4 {
					t.I32()[i] = -1
				}
			}
			if x.Permutation {
				for i, p := range r.Perm(x.Ids) {
					t.I32()[i] = int32(p)
				}
			}
			in = append(in, t)
			continue
		}
		if x.Blocks.Quantized() {
			in = append(in, drawBlocks(r, x.Blocks, x.Shape))
			continue
		}
		std := x.Std
		if std == 0 {
			std = 1
		}
		in = append(in, normal(x.Shape, std, x.Mean, x.Wide))
	}
	through := c.Through
	if through == nil {
		through = []int{0}
	}
	for i, o := range c.Outputs {
		g := tensor.New(tensor.F64, o.Shape)
		for _, j := range through {
			if i == j {
				if g = normal(o.Shape, 1, 0, o.Wide); c.Constant != 0 {
					for k := range g.F64() {
						g.F64()[k] = c.Constant
					}
				}
			}
		}
		dout = append(dout, g)
	}
	return in, dout
}

// place brings host tensors to b; outputs and gradients start as NaN, so that what is not written shows.
func (c *Case) place(b backend.Backend, in, dout []tensor.Tensor) *run {
	r := &run{b: b}
	to := func(h tensor.Tensor, wide bool) tensor.Tensor {
		d := b.DType()
		if wide && d.Size() == 2 {
			d = tensor.F32
		}
		if !h.DType.Float() && (!h.DType.Quantized() || readsBlocks(b)) {
			d = h.DType
		}
		t := b.Alloc(d, h.Shape)
		b.Write(t, h)
		return t
	}
	for i, h := range in {
		r.in = append(r.in, to(h, c.Inputs[i].Wide))
	}
	for i, h := range dout {
		r.dout = append(r.dout, to(h, c.Outputs[i].Wide))
		out := filled(c.Outputs[i].Shape, math.NaN())
		if c.Outputs[i].Ids {
			out = tensor.New(tensor.I32, c.Outputs[i].Shape)
		}
		r.out = append(r.out, to(out, c.Outputs[i].Wide))
	}
	r.din = make([]backend.Gradient, len(in))
	for _, i := range c.Wants {
		r.din[i].Tensor = to(filled(in[i].Shape, math.NaN()), c.Inputs[i].Wide)
	}
	return r
}

// readsBlocks reports whether b multiplies with quantised weights as they are; others convert them when they are written.
func readsBlocks(b backend.Backend) bool { return strings.HasPrefix(b.Name(), "cpu") }

func filled(s tensor.Shape, x float64) tensor.Tensor {
	t := tensor.New(tensor.F64, s)
	for i := range t.F64() {
		t.F64()[i] = x
	}
	return t
}

func (r *run) host(t tensor.Tensor) tensor.Tensor {
	h := tensor.New(tensor.F64, t.Shape)
	r.b.Read(h, t)
	return h
}

// Match runs the case on b and on the reference and compares everything; gradients once written over NaN and once added to 1.
func (c *Case) Match(b backend.Backend) []Result {
	in, dout := c.draw(1, b.DType())
	want, have := c.place(ref.Backend{}, in, dout), c.place(b, in, dout)
	var results []Result
	compare := func(name string, got, want tensor.Tensor, gradient bool) {
		e := vectors.Error(b.DType(), have.host(got), want)
		results = append(results, Result{c.Title(), name, e, vectors.Limit(b.DType(), gradient)})
	}
	for _, r := range []*run{want, have} {
		c.Forward(r.b, r.in, r.out)
	}
	for i, o := range c.Outputs {
		var bound []float64
		if c.Bound != nil {
			bound = c.Bound(b, in, i)
		}
		if bound != nil {
			results = append(results, Result{c.Title(), o.Name + " bound", worstShare(have.host(have.out[i]), want.host(want.out[i]), bound), 1})
			continue
		}
		compare(o.Name, have.out[i], want.host(want.out[i]), false)
	}
	if c.Backward == nil {
		return results
	}
	for _, add := range []bool{false, true} {
		if add && c.OnlyWrites {
			continue
		}
		for _, r := range []*run{want, have} {
			for _, i := range c.Wants {
				if r.din[i].Add = add; add {
					r.b.Write(r.din[i].Tensor, filled(in[i].Shape, 1))
				}
			}
			c.Backward(r.b, r.in, r.out, r.dout, r.din)
		}
		for _, i := range c.Wants {
			name := "d" + c.Inputs[i].Name
			if add {
				name += " added"
			}
			compare(name, have.din[i].Tensor, want.host(want.din[i].Tensor), true)
		}
	}
	return results
}

// worstShare is the largest |x - y| / bound over all elements; NaN anywhere in x gives NaN.
func worstShare(x, y tensor.Tensor, bound []float64) float64 {
	worst := 0.0
	for i, most := range bound {
		share := math.Abs(x.Value(i)-y.Value(i)) / most
		if share != share {
			return share
		}
		worst = max(worst, share)
	}
	return worst
}

// Gradient compares b's gradients with central differences of the reference's forward, at some elements of each input.
func (c *Case) Gradient(b backend.Backend) []Result {
	if c.Backward == nil {
		return nil
	}
	in, dout := c.draw(2, b.DType())
	have := c.place(b, in, dout)
	c.Forward(b, have.in, have.out)
	c.Backward(b, have.in, have.out, have.dout, have.din)
	limit := max(1e-6, vectors.Limit(b.DType(), true))
	var results []Result
	for _, i := range c.Wants {
		analytic := have.host(have.din[i].Tensor)
		n := in[i].Len()
		picks := min(n, 24)
		if c.Picks > 0 {
			picks = min(n, c.Picks)
		}
		x, y := tensor.New(tensor.F64, tensor.Of(picks+1)), tensor.New(tensor.F64, tensor.Of(picks+1))
		for j := range picks {
			at := j * n / picks
			x.F64()[j], y.F64()[j] = analytic.F64()[at], c.difference(in, dout, difference{b.DType(), i, at})
		}
		for _, g := range analytic.F64() { // errors count relative to the largest gradient of the tensor, picked or not
			if math.Abs(g) > math.Abs(y.F64()[picks]) {
				x.F64()[picks], y.F64()[picks] = g, g
			}
		}
		results = append(results, Result{c.Title(), "d" + c.Inputs[i].Name + " fd", vectors.Error(b.DType(), x, y), limit})
	}
	return results
}

// difference is the central difference of <dout, out> along one element.
func (c *Case) difference(in, dout []tensor.Tensor, key difference) float64 {
	if d, ok := c.differences[key]; ok {
		return d
	}
	const h = 1e-5
	var side [2]float64
	for s, step := range []float64{-h, h} {
		r := c.place(ref.Backend{}, in, dout)
		r.in[key.input].F64()[key.at] += step
		c.Forward(r.b, r.in, r.out)
		for o, g := range dout {
			for i, d := range g.F64() {
				if d != 0 {
					side[s] += d * r.out[o].F64()[i]
				}
			}
		}
	}
	if c.differences == nil {
		c.differences = map[difference]float64{}
	}
	c.differences[key] = (side[1] - side[0]) / (2 * h)
	return c.differences[key]
}

// Perf prepares the case on b and returns its forward and, where the op has one, its backward.
func (c *Case) Perf(b backend.Backend) (forward, backward func()) {
	in, dout := c.draw(3, b.DType())
	r := c.place(b, in, dout)
	forward = func() { c.Forward(b, r.in, r.out) }
	if c.Backward != nil {
		backward = func() { c.Backward(b, r.in, r.out, r.dout, r.din) }
	}
	return forward, backward
}
