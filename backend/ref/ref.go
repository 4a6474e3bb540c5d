// Package ref is the op table as plain float64 loops: the truth that every other backend is held against. It is slow and
// meant to be read.
package ref

import (
	"math"

	"nha/attention"
	"nha/backend"
	"nha/tensor"
)

func init() {
	backend.Register("ref", func(int) (backend.Backend, error) { return Backend{}, nil })
}

// Backend is the reference; it has no state.
type Backend struct{}

func (Backend) Name() string        { return "ref" }
func (Backend) DType() tensor.DType { return tensor.F64 }
func (Backend) Describe() string    { return "plain float64 loops, one thread" }
func (Backend) Close() error        { return nil }

func (Backend) Alloc(d tensor.DType, s tensor.Shape) tensor.Tensor { return tensor.New(d, s) }
func (Backend) Free(tensor.Tensor)                                 {}
func (Backend) Write(dst, src tensor.Tensor)                       { tensor.Convert(dst, src) }
func (Backend) Read(dst, src tensor.Tensor)                        { tensor.Convert(dst, src) }
func (Backend) Zero(t tensor.Tensor)                               { clear(t.Bytes()) }
func (Backend) Copy(dst, src tensor.Tensor)                        { copy(dst.Bytes(), src.Bytes()) }

// begin returns the data of a gradient, cleared unless it is to be added to.
func begin(g backend.Gradient) []float64 {
	if !g.Present() {
		return nil
	}
	d := g.F64()
	if !g.Add {
		clear(d)
	}
	return d
}

// MatMul is c[i,j] (+)= sum_l a[i,l] b[l,j] + bias[j], with a or b read transposed.
func (Backend) MatMul(op backend.Op, c backend.Gradient, a, b, bias tensor.Tensor) {
	x, y, z := a.F64(), b.F64(), begin(c)
	m, n, k := c.Rows(), c.Columns(), a.Columns()
	if op == backend.TN {
		k = a.Rows()
	}
	for i := range m {
		for j := range n {
			sum := 0.0
			for l := range k {
				switch op {
				case backend.NN:
					sum += x[i*k+l] * y[l*n+j]
				case backend.NT:
					sum += x[i*k+l] * y[j*k+l]
				case backend.TN:
					sum += x[l*m+i] * y[l*n+j]
				}
			}
			if bias.Present() {
				sum += bias.F64()[j]
			}
			z[i*n+j] += sum
		}
	}
}

func (Backend) Embed(y, table, ids tensor.Tensor) {
	d := table.Columns()
	for r, id := range ids.I32() {
		copy(y.F64()[r*d:(r+1)*d], table.F64()[int(id)*d:])
	}
}

func (Backend) EmbedBackward(dtable backend.Gradient, dy, ids tensor.Tensor) {
	dt, d := begin(dtable), dtable.Columns()
	for r, id := range ids.I32() {
		for i, g := range dy.F64()[r*d : (r+1)*d] {
			dt[int(id)*d+i] += g
		}
	}
}

func (Backend) SumRows(dst backend.Gradient, x tensor.Tensor) {
	d, n := begin(dst), x.Columns()
	for i, v := range x.F64() {
		d[i%n] += v
	}
}

// RMSNorm is y = x * rstd * weight, rstd = (mean(x^2) + epsilon)^-1/2.
func (Backend) RMSNorm(y, rstd, x, weight tensor.Tensor, epsilon float64) {
	w := weight.F64()
	n := len(w)
	for r := range rstd.Len() {
		row, sum := x.F64()[r*n:(r+1)*n], 0.0
		for _, v := range row {
			sum += v * v
		}
		s := 1 / math.Sqrt(sum/float64(n)+epsilon)
		rstd.F64()[r] = s
		for i, v := range row {
			y.F64()[r*n+i] = v * s * w[i]
		}
	}
}

// RMSNormBackward: with g = dy * weight, dx = rstd (g - x rstd^2 mean(g x)), dweight = sum_rows dy x rstd.
func (Backend) RMSNormBackward(dx, dweight backend.Gradient, dy, x, weight, rstd tensor.Tensor) {
	dxs, dws, w := begin(dx), begin(dweight), weight.F64()
	n := len(w)
	for r, s := range rstd.F64() {
		row, g, mean := x.F64()[r*n:(r+1)*n], dy.F64()[r*n:(r+1)*n], 0.0
		for i, v := range row {
			mean += g[i] * w[i] * v / float64(n)
		}
		for i, v := range row {
			if dxs != nil {
				dxs[r*n+i] += s * (g[i]*w[i] - v*s*s*mean)
			}
			if dws != nil {
				dws[i] += g[i] * v * s
			}
		}
	}
}

func (Backend) Add(y, a, b tensor.Tensor) {
	for i, v := range a.F64() {
		y.F64()[i] = v + b.F64()[i]
	}
}

func sigmoid(x float64) float64 {
	if x < 0 {
		e := math.Exp(x)
		return e / (1 + e)
	}
	return 1 / (1 + math.Exp(-x))
}

// siluGradient is the derivative of x sigmoid(x).
func siluGradient(x float64) float64 {
	s := sigmoid(x)
	return s * (1 + x*sigmoid(-x))
}

func (Backend) SiLU(y, x tensor.Tensor) {
	for i, v := range x.F64() {
		y.F64()[i] = v * sigmoid(v)
	}
}

func (Backend) SiLUBackward(dx backend.Gradient, dy, x tensor.Tensor) {
	d := begin(dx)
	for i, v := range x.F64() {
		d[i] += dy.F64()[i] * siluGradient(v)
	}
}

func (Backend) SwiGLU(y, gate, up tensor.Tensor) {
	for i, v := range gate.F64() {
		y.F64()[i] = v * sigmoid(v) * up.F64()[i]
	}
}

func (Backend) SwiGLUBackward(dgate, dup backend.Gradient, dy, gate, up tensor.Tensor) {
	dg, du := begin(dgate), begin(dup)
	for i, g := range dy.F64() {
		v := gate.F64()[i]
		dg[i] += g * up.F64()[i] * siluGradient(v)
		du[i] += g * v * sigmoid(v)
	}
}

func (Backend) NHA(c *attention.Call)                                 { attention.Forward(c) }
func (Backend) NHABackward(c *attention.Call, g *attention.Gradients) { attention.Backward(c, g) }

func (Backend) CrossEntropy(loss, logits, targets tensor.Tensor, scale float64) {
	n := logits.Columns()
	for r, target := range targets.I32() {
		row := logits.F64()[r*n : (r+1)*n]
		if target < 0 {
			loss.F64()[r] = 0
			clear(row)
			continue
		}
		largest := math.Inf(-1)
		for _, v := range row {
			largest = max(largest, v)
		}
		sum := 0.0
		for _, v := range row {
			sum += math.Exp(v - largest)
		}
		lse := largest + math.Log(sum)
		loss.F64()[r] = lse - row[target]
		for i, v := range row {
			row[i] = scale * math.Exp(v-lse)
		}
		row[target] -= scale
	}
}

func (Backend) Sum(x tensor.Tensor) float64 {
	sum := 0.0
	for _, v := range x.F64() {
		sum += v
	}
	return sum
}

func (Backend) SumSquares(x tensor.Tensor) float64 {
	sum := 0.0
	for _, v := range x.F64() {
		sum += v * v
	}
	return sum
}

// AdamW: m = b1 m + (1-b1) g, v = b2 v + (1-b2) g^2, p -= lr (wd p + m/(1-b1^t) / (sqrt(v/(1-b2^t)) + epsilon)).
func (Backend) AdamW(p, g, m, v tensor.Tensor, s backend.AdamW) {
	c1, c2 := 1-math.Pow(s.Beta1, float64(s.Step)), 1-math.Pow(s.Beta2, float64(s.Step))
	for i, x := range p.F64() {
		gi := g.F64()[i] * s.GradientScale
		mi := s.Beta1*m.F64()[i] + (1-s.Beta1)*gi
		vi := s.Beta2*v.F64()[i] + (1-s.Beta2)*gi*gi
		m.F64()[i], v.F64()[i] = mi, vi
		p.F64()[i] = x - s.LearningRate*(s.WeightDecay*x+mi/c1/(math.Sqrt(vi/c2)+s.Epsilon))
	}
}
