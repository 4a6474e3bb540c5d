// Package vectors reads operator test vectors: safetensors files that hold one call of the operator with its results, computed
// in float64 by an independent implementation (testdata/vectors, whose scripts describe the layout). Tests of every backend
// and `nha doctor --vectors` share it.
//
//	v, err := vectors.Load(path)
//	c, g := v.Call(tensor.F32)
//	backend.Forward(c)
//	backend.Backward(c, g)
//	for _, r := range v.Results(c, g) { ... r.Tensor, r.Error, r.Limit ... }
package vectors

import (
	"encoding/json"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"nha/attention"
	"nha/tensor"
	"nha/weights"
)

// Vector is one file: the inputs of a call and the results it must have.
type Vector struct {
	Name    string // the file's name without .safetensors
	Config  *attention.Config
	Lengths []int // tokens of every sequence

	position int                      // of the first token of every sequence
	dFinal   bool                     // the final states have a gradient
	numeric  bool                     // gradients are finite differences, good to 1e-6
	tensors  map[string]tensor.Tensor // float64
}

// The tensors of a state in a file, after a prefix: slots, then the ring in the order of time, [N, H, min(W, position), *].
var (
	slotNames  = []string{"slot_keys", "slot_values"}
	ringNames  = []string{"keys", "values", "log_gates"}
	stateNames = slices.Concat(slotNames, ringNames)
)

// Load reads a vector. The error names the file and the tensor or metadata key at fault.
func Load(path string) (*Vector, error) {
	f, err := weights.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	v := &Vector{Name: strings.TrimSuffix(filepath.Base(path), ".safetensors"), tensors: map[string]tensor.Tensor{}}
	for _, name := range f.Names() {
		t, _ := f.Tensor(name)
		if !t.DType.Float() {
			return nil, fmt.Errorf("%s: tensor %s is %v, want a floating-point type", path, name, t.DType)
		}
		v.tensors[name] = convert(t, tensor.F64)
	}
	if err := v.configure(f.Metadata()); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if err := v.checkShapes(); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return v, nil
}

// configure reads the metadata and the shapes of q, k and v.
func (v *Vector) configure(meta map[string]string) error {
	for _, name := range []string{"q", "k", "v", "do"} {
		if t := v.tensors[name]; !t.Present() || t.Shape.Rank() != 4 {
			return fmt.Errorf("tensor %s [B, T, heads, dim] is missing", name)
		}
	}
	var err error
	number := func(key string) float64 {
		x, e := strconv.ParseFloat(meta[key], 64)
		if e != nil && err == nil {
			err = fmt.Errorf("metadata %s %q: want a number", key, meta[key])
		}
		return x
	}
	whole := func(key string) int {
		n, e := strconv.Atoi(meta[key])
		if e != nil && err == nil {
			err = fmt.Errorf("metadata %s %q: want a whole number", key, meta[key])
		}
		return n
	}
	q, k := v.tensors["q"], v.tensors["k"]
	c := &attention.Config{
		QueryHeads: q.Dim(2), KVHeads: k.Dim(2), KeyDim: k.Dim(3), ValueDim: v.tensors["v"].Dim(3),
		Slots: whole("slots"), Window: attention.Full, Scale: number("scale"), GateNormalizer: number("gate_normalizer"),
	}
	if meta["window"] != "full" {
		c.Window = whole("window")
	}
	if theta := number("rope_theta"); theta != 0 {
		c.Rope = attention.NewRope(c.KeyDim, theta)
	}
	if meta["position"] != "" {
		v.position = whole("position")
	}
	if err != nil {
		return err
	}
	if c.EmptySlots, err = attention.ParseEmptySlots(meta["empty_slots"]); err != nil {
		return fmt.Errorf("metadata %w", err)
	}
	if err := c.Check(); err != nil {
		return fmt.Errorf("metadata: %w", err)
	}
	if v.position < 0 {
		return fmt.Errorf("metadata position %d is negative", v.position)
	}
	v.Config, v.numeric = c, meta["gradients"] == "finite differences"
	v.dFinal = v.tensors["d_final_keys"].Present() || v.tensors["d_final_slot_keys"].Present()
	return v.readLengths(meta["seqlens"])
}

// readLengths sets Lengths from q's shape, or from a list of lengths that add up to it.
func (v *Vector) readLengths(list string) error {
	q := v.tensors["q"]
	if list == "" {
		for range q.Dim(0) {
			v.Lengths = append(v.Lengths, q.Dim(1))
		}
	} else if err := json.Unmarshal([]byte(list), &v.Lengths); err != nil {
		return fmt.Errorf("metadata seqlens %q: want a list of lengths", list)
	}
	sum := 0
	for _, n := range v.Lengths {
		if n < 1 {
			return fmt.Errorf("metadata seqlens %v: a length is less than 1", v.Lengths)
		}
		sum += n
	}
	if sum != v.tokens() || sum == 0 {
		return fmt.Errorf("metadata seqlens %v add up to %d tokens, q has %d", v.Lengths, sum, v.tokens())
	}
	return nil
}

func (v *Vector) tokens() int { return v.tensors["q"].Dim(0) * v.tensors["q"].Dim(1) }

// checkShapes holds every tensor of a known name against the configuration, and misses the inputs that are not there.
func (v *Vector) checkShapes() error {
	c, n := v.Config, v.tokens()
	want := map[string]int{
		"q": n * c.QueryHeads * c.KeyDim, "k": n * c.KVHeads * c.KeyDim, "v": n * c.KVHeads * c.ValueDim, "z": n * c.KVHeads * c.Slots,
		"do": n * c.QueryHeads * c.ValueDim, "o": n * c.QueryHeads * c.ValueDim, "slot_share": n * c.QueryHeads, "lse": n * c.QueryHeads,
	}
	for _, name := range []string{"q", "k", "v", "z"} {
		want["d"+name] = want[name]
	}
	shortest, longest := v.position+slices.Min(v.Lengths), v.position+slices.Max(v.Lengths)
	for prefix, held := range map[string]int{
		"initial_": min(c.Window, v.position), "d_initial_": min(c.Window, v.position), "final_": min(c.Window, longest), "d_final_": min(c.Window, longest),
	} {
		heads := len(v.Lengths) * c.KVHeads
		want[prefix+"slot_keys"], want[prefix+"slot_values"] = heads*c.Slots*c.KeyDim, heads*c.Slots*c.ValueDim
		want[prefix+"keys"], want[prefix+"values"], want[prefix+"log_gates"] = heads*held*c.KeyDim, heads*held*c.ValueDim, heads*held*c.Slots
	}
	want["slot_keys"], want["slot_values"] = want["final_slot_keys"], want["final_slot_values"]
	for name, t := range v.tensors {
		if length, known := want[name]; known && t.Len() != length {
			return fmt.Errorf("tensor %s %v has %d elements, the configuration asks for %d", name, t.Shape, t.Len(), length)
		}
	}

	needed := []string{"z"}
	for _, part := range stateNames {
		if v.position > 0 {
			needed = append(needed, "initial_"+part)
		}
		if v.dFinal {
			needed = append(needed, "d_final_"+part)
		}
	}
	for _, name := range needed {
		if want[name] > 0 && !v.tensors[name].Present() {
			return fmt.Errorf("tensor %s is missing", name)
		}
	}
	if rings := v.dFinal || v.tensors["final_keys"].Present(); rings && min(c.Window, shortest) != min(c.Window, longest) {
		return fmt.Errorf("metadata seqlens %v: final windows of unequal length cannot lie in one tensor", v.Lengths)
	}
	// A window beyond the tokens' end is the same function, without a ring that nothing fills.
	if c.Window != attention.Full {
		c.Window = min(c.Window, longest)
	}
	return nil
}

// Call is the vector as a call and gradients in element type d, with inputs filled in and room for every result.
func (v *Vector) Call(d tensor.DType) (*attention.Call, *attention.Gradients) {
	c, n := v.Config, v.tokens()
	input := func(name string, width int) tensor.Tensor {
		if width == 0 {
			return tensor.Tensor{}
		}
		return convert(v.tensors[name].View(n, width), d)
	}
	room := func(width int) tensor.Tensor {
		if width == 0 {
			return tensor.Tensor{}
		}
		return tensor.New(d, tensor.Of(n, width))
	}
	call := &attention.Call{
		Config: c, Lengths: v.Lengths,
		Q: input("q", c.QueryHeads*c.KeyDim), K: input("k", c.KVHeads*c.KeyDim), V: input("v", c.KVHeads*c.ValueDim), Z: input("z", c.KVHeads*c.Slots),
		O: room(c.QueryHeads * c.ValueDim), LSE: room(c.QueryHeads), Share: room(c.QueryHeads),
	}
	g := &attention.Gradients{
		DO: input("do", c.QueryHeads*c.ValueDim),
		DQ: room(c.QueryHeads * c.KeyDim), DK: room(c.KVHeads * c.KeyDim), DV: room(c.KVHeads * c.ValueDim), DZ: room(c.KVHeads * c.Slots),
	}
	for i, length := range v.Lengths {
		call.Final = append(call.Final, attention.NewState(c, d))
		if v.position > 0 {
			call.Initial = append(call.Initial, v.state("initial_", i, v.position, d))
			g.DInitial = append(g.DInitial, attention.NewState(c, d))
		}
		if v.dFinal {
			g.DFinal = append(g.DFinal, v.state("d_final_", i, v.position+length, d))
		}
	}
	return call, g
}

// state reads the state of sequence i.
func (v *Vector) state(prefix string, i, position int, d tensor.DType) *attention.State {
	c, s := v.Config, attention.NewState(v.Config, d)
	s.Reserve(c, position)
	s.Position, s.Count = position, min(c.Window, position)
	for at, t := range []tensor.Tensor{s.SlotKeys, s.SlotValues} {
		if t.Present() {
			tensor.Convert(t, v.tensors[prefix+slotNames[at]].View(len(v.Lengths), t.Len()).Narrow(i, i+1))
		}
	}
	for at, t := range []tensor.Tensor{s.Keys, s.Values, s.LogGates} {
		if !t.Present() {
			continue
		}
		from, width := v.tensors[prefix+ringNames[at]], t.Columns()
		for h := range c.KVHeads {
			for e := range s.Count * width {
				t.SetValue(h*s.Capacity()*width+e, from.Value((i*c.KVHeads+h)*s.Count*width+e))
			}
		}
	}
	return s
}

// Result is one tensor's error (Error) and what SPEC 1.5 allows it.
type Result struct {
	Tensor       string
	Error, Limit float64
}

// OK reports whether the error is within its limit; NaN is not.
func (r Result) OK() bool { return r.Error <= r.Limit }

// Results compares every tensor that the file holds with what Forward and Backward made of Call. For a 16-bit type the truth
// is the float64 reference on the rounded inputs.
func (v *Vector) Results(c *attention.Call, g *attention.Gradients) []Result {
	got, want := v.outputs(c, g), v.tensors
	if c.Q.DType.Size() == 2 {
		rounded := *v
		rounded.tensors = map[string]tensor.Tensor{}
		for name, t := range v.tensors {
			d := c.Q.DType
			if strings.Contains(name, "slot_") || strings.HasSuffix(name, "log_gates") {
				d = tensor.F32 // what a state keeps in float32
			}
			rounded.tensors[name] = convert(convert(t, d), tensor.F64)
		}
		rc, rg := rounded.Call(tensor.F64)
		attention.Forward(rc)
		attention.Backward(rc, rg)
		want = v.outputs(rc, rg)
	}
	var results []Result
	for _, name := range outputNames {
		x, y := got[name], want[name]
		if !v.tensors[name].Present() || !x.Present() || !y.Present() {
			continue
		}
		gradient := strings.HasPrefix(name, "d")
		limit := Limit(c.Q.DType, gradient)
		if gradient && v.numeric {
			limit = max(limit, 1e-6)
		}
		results = append(results, Result{name, Error(c.Q.DType, x, y), limit})
	}
	return results
}

var outputNames = func() []string {
	names := []string{"o", "slot_share", "lse", "slot_keys", "slot_values"}
	for _, ring := range ringNames {
		names = append(names, "final_"+ring)
	}
	names = append(names, "dq", "dk", "dv", "dz")
	for _, part := range stateNames {
		names = append(names, "d_initial_"+part)
	}
	return names
}()

// outputs are a call's results under the names of the file.
func (v *Vector) outputs(c *attention.Call, g *attention.Gradients) map[string]tensor.Tensor {
	m := map[string]tensor.Tensor{"o": c.O, "slot_share": c.Share, "lse": c.LSE, "dq": g.DQ, "dk": g.DK, "dv": g.DV, "dz": g.DZ}
	collect := func(prefix string, states []*attention.State) {
		parts := map[string][]float64{}
		for _, s := range states {
			for at, t := range []tensor.Tensor{s.SlotKeys, s.SlotValues} {
				for i := range elements(t) {
					parts[slotNames[at]] = append(parts[slotNames[at]], t.Value(i))
				}
			}
			for at, t := range []tensor.Tensor{s.Keys, s.Values, s.LogGates} {
				if !t.Present() {
					continue
				}
				for row := range c.KVHeads * s.Count {
					h, width := row/s.Count, t.Columns()
					for x := range width {
						parts[ringNames[at]] = append(parts[ringNames[at]], t.Value((h*s.Capacity()+s.Row(row%s.Count))*width+x))
					}
				}
			}
		}
		for name, x := range parts {
			m[prefix+name] = tensor.FromF64(x, len(x))
		}
	}
	collect("final_", c.Final)
	collect("d_initial_", g.DInitial)
	m["slot_keys"], m["slot_values"] = m["final_slot_keys"], m["final_slot_values"]
	return m
}

func elements(t tensor.Tensor) int {
	if !t.Present() {
		return 0
	}
	return t.Len()
}

func convert(t tensor.Tensor, d tensor.DType) tensor.Tensor {
	c := tensor.New(d, t.Shape)
	tensor.Convert(c, t)
	return c
}

// Limit is the error that SPEC 1.5 allows an implementation in element type d against the float64 reference.
func Limit(d tensor.DType, gradient bool) float64 {
	switch {
	case d == tensor.F64:
		return 1e-9
	case d == tensor.F32 && !gradient:
		return 2e-5
	case d == tensor.F32:
		return 1e-4
	case !gradient:
		return 5e-3
	}
	return 1e-2
}

// Error is how SPEC 1.5 measures an implementation in element type d: the relative L2 error for 16-bit types, tensor.MaxError
// for the others. NaN in got gives NaN.
func Error(d tensor.DType, got, want tensor.Tensor) float64 {
	if d.Size() != 2 {
		return tensor.MaxError(got, want)
	}
	var difference, norm float64
	for i, n := 0, want.Len(); i < n; i++ {
		x, y := got.Value(i), want.Value(i)
		difference += (x - y) * (x - y)
		norm += y * y
	}
	if norm == 0 {
		return math.Sqrt(difference)
	}
	return math.Sqrt(difference / norm)
}
