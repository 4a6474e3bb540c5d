package bench

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"nha/backend"
	"nha/tensor"
)

// GEMM measures matrix products C[m,n] = A B of inner size k, 2 m n k operations each.
type GEMM struct {
	Ops    []backend.Op
	Shapes []Shape
	Timing
}

// Shape is the sizes of one product.
type Shape struct{ M, N, K int }

// GEMMResult is one product.
type GEMMResult struct {
	Op      string  `json:"op"`
	M       int     `json:"m"`
	N       int     `json:"n"`
	K       int     `json:"k"`
	Backend string  `json:"backend"`
	GFLOPS  float64 `json:"gflops"`
}

// ParseShape reads MxNxK.
func ParseShape(s string) (Shape, error) {
	var n [3]int
	parts := strings.Split(s, "x")
	for i := range n {
		var err error
		if len(parts) != 3 {
			return Shape{}, fmt.Errorf("shape %q: write MxNxK, such as 512x512x512", s)
		}
		if n[i], err = strconv.Atoi(parts[i]); err != nil {
			return Shape{}, fmt.Errorf("shape %q: %q is not a number; write MxNxK, such as 512x512x512", s, parts[i])
		}
	}
	return Shape{n[0], n[1], n[2]}, nil
}

// ParseOp reads nn, nt or tn.
func ParseOp(s string) (backend.Op, error) {
	for _, op := range []backend.Op{backend.NN, backend.NT, backend.TN} {
		if op.String() == s {
			return op, nil
		}
	}
	return 0, fmt.Errorf("op %q: use nn, nt or tn", s)
}

// Check refuses shapes that are none.
func (o *GEMM) Check() error {
	if len(o.Ops) == 0 || len(o.Shapes) == 0 {
		return fmt.Errorf("nothing to multiply: give ops and shapes")
	}
	for _, s := range o.Shapes {
		for _, err := range []error{positive("m", []int{s.M}, 1), positive("n", []int{s.N}, 1), positive("k", []int{s.K}, 1)} {
			if err != nil {
				return err
			}
		}
		if err := fits(fmt.Sprintf("the product %dx%dx%d", s.M, s.N, s.K), product(s.M, s.N)+product(s.M, s.K)+product(s.N, s.K)); err != nil {
			return err
		}
	}
	return o.Timing.Check()
}

func product(n ...int) float64 {
	p := 1.0
	for _, x := range n {
		p *= float64(x)
	}
	return p
}

// Run measures every shape under every op.
func (o *GEMM) Run(ctx context.Context, b backend.Backend, emit Emit) error {
	for _, s := range o.Shapes {
		for _, op := range o.Ops {
			list, err := multiply(ctx, b, op, s, o.Timing)
			if err != nil {
				return err
			}
			row := GEMMResult{Op: op.String(), M: s.M, N: s.N, K: s.K, Backend: b.Name(), GFLOPS: s.gflops(median(list))}
			if err := emit(row); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s Shape) gflops(seconds float64) float64 { return 2 * product(s.M, s.N, s.K) / seconds / 1e9 }

// multiply is the times of one product.
func multiply(ctx context.Context, b backend.Backend, op backend.Op, s Shape, t Timing) ([]float64, error) {
	rows, columns := [2]int{s.M, s.K}, [2]int{s.K, s.N}
	switch op {
	case backend.NT:
		columns = [2]int{s.N, s.K}
	case backend.TN:
		rows = [2]int{s.K, s.M}
	}
	a, w := random(b, rows[0], rows[1]), random(b, columns[0], columns[1])
	c := b.Alloc(b.DType(), tensor.Of(s.M, s.N))
	defer func() { b.Free(a); b.Free(w); b.Free(c) }()
	return t.runs(ctx, func() {
		backend.MatMul(b, op, backend.Gradient{Tensor: c}, a, w, tensor.Tensor{})
		wait(b, c)
	})
}

// peakShape is the product that stands for the machine's peak.
var peakShape = Shape{2048, 2048, 2048}

// peak is the best GFLOP/s of that product.
func peak(ctx context.Context, b backend.Backend, shape Shape, t Timing) (float64, error) {
	list, err := multiply(ctx, b, backend.NN, shape, t)
	if err != nil {
		return 0, err
	}
	return shape.gflops(list[0]), nil
}
