package kernel

import "math"

// RMSNorm over rows of n, with r = 1/sqrt(mean(x^2) + eps):
//
//	y  = x r w
//	dx = r (dy w - x r^2 mean(dy w x)),   dw = sum over rows of dy x r
//
// Each row is read twice, the second time from the first-level cache.

// RMSNorm normalises x [rows, n] by w [n] into y [rows, n] and writes r to rstd [rows]. The mean is taken in float64.
func RMSNorm(y, x, w []float32, rows, n int, eps float32, rstd []float32) {
	if n == 0 {
		return
	}
	w = w[:n]
	for i := range rows {
		row := x[i*n : (i+1)*n]
		r := float32(1 / math.Sqrt(vectors.sumSquares(row)/float64(n)+float64(eps)))
		rstd[i] = r
		vectors.norm(y[i*n:(i+1)*n], row, w, r)
	}
}

// RMSNormBackward writes the gradient of x to dx [rows, n], or adds it, and adds that of w to dw [n]. x, w and rstd are those of
// the forward pass. dx may be dy.
func RMSNormBackward(dx, dw, dy, x, w, rstd []float32, rows, n int, add bool) {
	if n == 0 {
		return
	}
	backward := vectors.normBackward
	if add {
		backward = vectors.normBackwardAdd
	}
	dw, w = dw[:n], w[:n]
	for i := range rows {
		a, b := i*n, (i+1)*n
		r := rstd[i]
		c := r * r * r * (vectors.dot3(dy[a:b], w, x[a:b]) / float32(n))
		backward(dx[a:b], dw, dy[a:b], x[a:b], w, r, c)
	}
}

func normGeneric(y, x, w []float32, r float32) {
	x, w = x[:len(y)], w[:len(y)]
	for i := range y {
		y[i] = x[i] * r * w[i]
	}
}

// normBackwardGeneric is dx = r dy w - c x and dw += r dy x.
func normBackwardGeneric(dx, dw, dy, x, w []float32, r, c float32) {
	n := len(dx)
	dw, dy, x, w = dw[:n], dy[:n], x[:n], w[:n]
	for i := range dx {
		d := r * dy[i]
		dx[i] = d*w[i] - c*x[i]
		dw[i] += d * x[i]
	}
}

func normBackwardAddGeneric(dx, dw, dy, x, w []float32, r, c float32) {
	n := len(dx)
	dw, dy, x, w = dw[:n], dy[:n], x[:n], w[:n]
	for i := range dx {
		d := r * dy[i]
		dx[i] += d*w[i] - c*x[i]
		dw[i] += d * x[i]
	}
}
