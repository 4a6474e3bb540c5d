// Package nn holds the small layers that blocks are made of: parameters with names and a forward over a tape.
package nn

import "nha/autograd"

// Linear is y = x W^T + b: weight [out, in], bias [out] or nil. With A [r, in] and B [out, r] it is x (W + B A)^T + b, an update of
// low rank (Hu et al. 2021) beside a weight that may be frozen.
type Linear struct{ Weight, Bias, A, B *autograd.Value }

// Forward maps [N, in] to [N, out].
func (l Linear) Forward(t *autograd.Tape, x *autograd.Value) *autograd.Value {
	return l.AddTo(t, nil, x)
}

// AddTo is Forward plus a residual [N, out], in one op.
func (l Linear) AddTo(t *autograd.Tape, residual, x *autograd.Value) *autograd.Value {
	y := t.Linear(x, l.Weight, l.Bias, residual)
	if l.A != nil {
		y = t.Linear(t.Linear(x, l.A, nil, nil), l.B, nil, y)
	}
	return y
}

// RMSNorm is x / sqrt(mean(x^2) + epsilon) * weight (Zhang and Sennrich 2019).
type RMSNorm struct {
	Weight  *autograd.Value
	Epsilon float64
}

// Forward keeps the shape; the mean is over len(weight) columns.
func (n RMSNorm) Forward(t *autograd.Tape, x *autograd.Value) *autograd.Value {
	return t.RMSNorm(x, n.Weight, n.Epsilon)
}

// SwiGLU is down(silu(gate(x)) * up(x)) (Shazeer 2020).
type SwiGLU struct{ Gate, Up, Down Linear }

// AddTo is residual + SwiGLU(x), [N, hidden].
func (m SwiGLU) AddTo(t *autograd.Tape, residual, x *autograd.Value) *autograd.Value {
	return m.Down.AddTo(t, residual, t.SwiGLU(m.Gate.Forward(t, x), m.Up.Forward(t, x)))
}
