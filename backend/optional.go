package backend

import "nha/tensor"

// What a backend may have beside the op table. The rooms above ask for it by type and do without where it is missing.

// Compiler is a backend that compiles kernels for the shapes in use: Compile runs what queues them without computing anything,
// then makes what was missing, several at a time. What the ops write meanwhile is undefined. progress, which may be nil, is told
// how many are done; it is not called where nothing had to be compiled.
type Compiler interface {
	Compile(uses func(), progress func(done, total int)) error
}

// Residual is a backend that adds a residual [m, n] to a product without copying it first: c = A B + bias + residual.
type Residual interface {
	MatMulResidual(op Op, c, a, b, bias, residual tensor.Tensor)
}

// Rated is a backend that knows the rate of its machine's matrix products, as published, in FLOP/s; 0: unknown.
type Rated interface{ Peak() float64 }

// Profiler is a backend that can say where the time of what f queues goes, the longest first.
type Profiler interface{ Profile(f func()) []OpTime }

// OpTime is what an op, or a kernel of it, took in all.
type OpTime struct {
	Name  string
	Calls int
	MS    float64
}

// MatMulResidual is the op matmul with a residual: c = A B (+ bias) + residual. c is not the residual's memory.
func MatMulResidual(b Backend, op Op, c, x, y, bias, residual tensor.Tensor) {
	require(residual.Len() == c.Len(), "matmul residual", c, residual)
	if r, ok := b.(Residual); ok {
		r.MatMulResidual(op, c, x, y, bias, residual)
		return
	}
	b.Copy(c, residual)
	MatMul(b, op, Gradient{Tensor: c, Add: true}, x, y, bias)
}
