package bench

import (
	"context"
	"fmt"
	"math"
	"slices"

	"nha/attention"
	"nha/backend"
	"nha/tensor"
)

// Operator measures the operator (SPEC 1) forward and backward, with rotary positions in the window, for every combination
// of its sizes. H and V may be empty: then they are Hq and K.
type Operator struct {
	B, T, Hq, H, K, V, M, W []int // W: attention.Full for the whole context
	Timing
}

// OperatorResult is one combination. BytesPerSecond counts q, k, v and z read once and o written once, in the time of forward:
// a machine's bandwidth bounds it.
type OperatorResult struct {
	Backend        string  `json:"backend"`
	DType          string  `json:"dtype"`
	B              int     `json:"B"`
	T              int     `json:"T"`
	Hq             int     `json:"Hq"`
	H              int     `json:"H"`
	K              int     `json:"K"`
	V              int     `json:"V"`
	M              int     `json:"M"`
	W              any     `json:"W"` // a number or "full"
	ForwardMS      float64 `json:"forward_ms"`
	BackwardMS     float64 `json:"backward_ms"`
	BytesPerSecond float64 `json:"bytes_per_s"`
}

// Check refuses sizes that the operator cannot have.
func (o *Operator) Check() error {
	for _, l := range []struct {
		name  string
		list  []int
		least int
	}{{"B", o.B, 1}, {"T", o.T, 1}, {"Hq", o.Hq, 1}, {"K", o.K, 1}, {"M", o.M, 0}} {
		if err := positive(l.name, l.list, l.least); err != nil {
			return err
		}
	}
	if len(o.W) == 0 {
		return fmt.Errorf("no window: give at least one W")
	}
	if err := o.each(func(s operatorShape) error {
		if err := s.config().Check(); err != nil {
			return err
		}
		elements := product(s.b, s.t) * float64(2*s.hq*(s.k+s.v)+2*s.h*(s.k+s.v+s.m))
		return fits(fmt.Sprintf("the operator for B %d, T %d", s.b, s.t), elements)
	}); err != nil {
		return err
	}
	return o.Timing.Check()
}

type operatorShape struct{ b, t, hq, h, k, v, m, w int }

// each calls f with every combination.
func (o *Operator) each(f func(operatorShape) error) error {
	heads, values := o.H, o.V
	if len(heads) == 0 {
		heads = []int{0}
	}
	if len(values) == 0 {
		values = []int{0}
	}
	return combinations([][]int{o.B, o.Hq, heads, o.K, values, o.M, o.W, o.T}, func(n []int) error {
		s := operatorShape{b: n[0], hq: n[1], h: n[2], k: n[3], v: n[4], m: n[5], w: n[6], t: n[7]}
		if len(o.H) == 0 {
			s.h = s.hq
		}
		if len(o.V) == 0 {
			s.v = s.k
		}
		return f(s)
	})
}

func (s operatorShape) config() *attention.Config {
	c := &attention.Config{QueryHeads: s.hq, KVHeads: s.h, KeyDim: s.k, ValueDim: s.v, Slots: s.m, Window: s.w, Scale: 1 / math.Sqrt(float64(max(1, s.k))), GateNormalizer: 8}
	if s.k%2 == 0 && s.k > 0 {
		c.Rope = attention.NewRope(s.k, 10000)
	}
	return c
}

// Run measures every combination.
func (o *Operator) Run(ctx context.Context, b backend.Backend, emit Emit) error {
	return o.each(func(s operatorShape) error {
		row, err := s.measure(ctx, b, o.Timing)
		if err != nil {
			return err
		}
		return emit(row)
	})
}

func (s operatorShape) measure(ctx context.Context, b backend.Backend, t Timing) (OperatorResult, error) {
	n := s.b * s.t
	empty := func(dims ...int) tensor.Tensor { return b.Alloc(b.DType(), tensor.Of(dims...)) }
	c := &attention.Call{Config: s.config(), Q: random(b, n, s.hq*s.k), K: random(b, n, s.h*s.k), V: random(b, n, s.h*s.v),
		O: empty(n, s.hq*s.v), LSE: empty(n, s.hq)}
	g := &attention.Gradients{DO: random(b, n, s.hq*s.v), DQ: empty(n, s.hq*s.k), DK: empty(n, s.h*s.k), DV: empty(n, s.h*s.v)}
	if s.m > 0 {
		c.Z, g.DZ = random(b, n, s.h*s.m), empty(n, s.h*s.m)
	}
	defer func() {
		for _, x := range []tensor.Tensor{c.Q, c.K, c.V, c.Z, c.O, c.LSE, g.DO, g.DQ, g.DK, g.DV, g.DZ} {
			if x.Present() {
				b.Free(x)
			}
		}
	}()
	for range s.b {
		c.Lengths = append(c.Lengths, s.t)
	}
	forward, err := t.operation(ctx, b, c.O, func() { backend.NHA(b, c) })
	if err != nil {
		return OperatorResult{}, err
	}
	backward, err := t.operation(ctx, b, g.DQ, func() { backend.NHABackward(b, c, g) })
	if err != nil {
		return OperatorResult{}, err
	}
	bytes := float64(b.DType().Size()) * product(n) * float64(s.hq*(s.k+s.v)+s.h*(s.k+s.v+s.m))
	row := OperatorResult{Backend: b.Name(), DType: dtypeName(b.DType()), B: s.b, T: s.t, Hq: s.hq, H: s.h, K: s.k, V: s.v, M: s.m, W: s.w,
		ForwardMS: forward * 1e3, BackwardMS: backward * 1e3, BytesPerSecond: bytes / forward}
	if s.w == attention.Full {
		row.W = "full"
	}
	return row, nil
}

// deviceClock is a backend that times what it queues by the device's own clock.
type deviceClock interface{ Milliseconds(f func()) float64 }

// operation is the median time of op in seconds, out being its last result: by the device's clock where there is one, several
// calls at a time, so that what the host does between them does not count.
func (t Timing) operation(ctx context.Context, b backend.Backend, out tensor.Tensor, op func()) (float64, error) {
	clock, ok := b.(deviceClock)
	if !ok {
		return t.median(ctx, func() { op(); wait(b, out) })
	}
	const calls = 10
	var list []float64
	_, err := t.median(ctx, func() {
		list = append(list, clock.Milliseconds(func() {
			for range calls {
				op()
			}
		}))
	})
	if err != nil {
		return 0, err
	}
	list = list[1:] // the first warms up
	slices.Sort(list)
	return median(list) / calls / 1e3, nil
}
