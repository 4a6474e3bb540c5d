package kernel

// The vector kernels: sums, maxima, products by a scalar and the fused rows of a training step, over float32 slices of any
// length and alignment, in one thread and without allocating. The caller spreads rows over threads. The first slice of an
// argument list is what is written; where nothing else is said it may be the same slice as an input, never a shifted one.

// A vectorSet is one instruction set's vector kernels. Lengths are those of the exported functions below; the exported ones
// add what happens once per row.
type vectorSet struct {
	exp, log                      func(dst, x []float32)
	sum, max                      func(x []float32) float32
	sumSquares                    func(x []float32) float64
	dot                           func(x, y []float32) float32
	axpy                          func(y []float32, a float32, x []float32)
	add                           func(dst, a, b []float32)
	scale, fill                   func(dst []float32, a float32)
	silu                          func(y, x []float32)
	siluBackward, siluBackwardAdd func(dx, dy, x []float32)
	swiglu                        func(y, gate, up []float32)
	swigluBackward                func(dgate, dup, dy, gate, up []float32)
	norm                          func(y, x, w []float32, r float32)
	dot3                          func(x, y, z []float32) float32
	normBackward, normBackwardAdd func(dx, dw, dy, x, w []float32, r, c float32)
	expSum                        func(dst, x []float32, shift float32) float32
	sumExp                        func(x []float32, shift float32) float32
	rotate                        func(dst, src, cos, sin []float32, sign float32)
	adamW                         func(p, g, m, v []float32, gradientScale, keep, beta1, rest1, beta2, rest2, step, correction, epsilon float32)
	gateForward                   func(logA, s, z []float32, inverseTau float32)
	gateBackward                  func(dz, dA, logA, z []float32, inverseTau float32)
}

var vectorGeneric = vectorSet{
	exp: expGeneric, log: logGeneric,
	sum: sumGeneric, max: maxGeneric, sumSquares: sumSquaresGeneric, dot: dotGeneric,
	axpy: axpyGeneric, add: addGeneric, scale: scaleGeneric, fill: fillGeneric,
	silu: siluGeneric, siluBackward: siluBackwardGeneric, siluBackwardAdd: siluBackwardAddGeneric,
	swiglu: swigluGeneric, swigluBackward: swigluBackwardGeneric,
	norm: normGeneric, dot3: dot3Generic, normBackward: normBackwardGeneric, normBackwardAdd: normBackwardAddGeneric,
	expSum: expSumGeneric, sumExp: sumExpGeneric,
	rotate: rotateGeneric, adamW: adamWGeneric,
	gateForward: gateForwardGeneric, gateBackward: gateBackwardGeneric,
}

// vectors is the set in use.
var vectors = vectorGeneric

func init() {
	register("generic", func() { vectors = vectorGeneric })
}

// Sum is the sum of x, accumulated in float32 over independent lanes.
func Sum(x []float32) float32 { return vectors.sum(x) }

// SumSquares is the sum of x_i^2, accumulated in float64.
func SumSquares(x []float32) float64 { return vectors.sumSquares(x) }

// Max is the largest element of x: NaNs are passed over, and -Inf stands for a slice with nothing else.
func Max(x []float32) float32 { return vectors.max(x) }

// Dot is the sum of x_i y_i over len(x), accumulated in float32 over independent lanes.
func Dot(x, y []float32) float32 { return vectors.dot(x, y[:len(x)]) }

// Axpy adds a x to y, over len(x).
func Axpy(y []float32, a float32, x []float32) { vectors.axpy(y[:len(x)], a, x) }

// Add writes a + b to dst, over len(dst).
func Add(dst, a, b []float32) { vectors.add(dst, a[:len(dst)], b[:len(dst)]) }

// AddTo adds x to dst, over len(dst).
func AddTo(dst, x []float32) { vectors.add(dst, dst, x[:len(dst)]) }

// Scale multiplies dst by a.
func Scale(dst []float32, a float32) { vectors.scale(dst, a) }

// Fill sets every element of dst to a.
func Fill(dst []float32, a float32) { vectors.fill(dst, a) }

func sumGeneric(x []float32) float32 {
	var s0, s1, s2, s3 float32
	i := 0
	for ; i+4 <= len(x); i += 4 {
		v := x[i : i+4 : i+4]
		s0 += v[0]
		s1 += v[1]
		s2 += v[2]
		s3 += v[3]
	}
	for ; i < len(x); i++ {
		s0 += x[i]
	}
	return (s0 + s1) + (s2 + s3)
}

func sumSquaresGeneric(x []float32) float64 {
	var s0, s1, s2, s3 float64
	i := 0
	for ; i+4 <= len(x); i += 4 {
		v := x[i : i+4 : i+4]
		a, b, c, d := float64(v[0]), float64(v[1]), float64(v[2]), float64(v[3])
		s0 += a * a
		s1 += b * b
		s2 += c * c
		s3 += d * d
	}
	for ; i < len(x); i++ {
		s0 += float64(x[i]) * float64(x[i])
	}
	return (s0 + s1) + (s2 + s3)
}

func maxGeneric(x []float32) float32 {
	m := negativeInfinity
	for _, v := range x {
		if v > m {
			m = v
		}
	}
	return m
}

func dotGeneric(x, y []float32) float32 {
	var s0, s1, s2, s3 float32
	y = y[:len(x)]
	i := 0
	for ; i+4 <= len(x); i += 4 {
		a, b := x[i:i+4:i+4], y[i:i+4:i+4]
		s0 += a[0] * b[0]
		s1 += a[1] * b[1]
		s2 += a[2] * b[2]
		s3 += a[3] * b[3]
	}
	for ; i < len(x); i++ {
		s0 += x[i] * y[i]
	}
	return (s0 + s1) + (s2 + s3)
}

// dot3Generic is the sum of x_i y_i z_i.
func dot3Generic(x, y, z []float32) float32 {
	var s0, s1, s2, s3 float32
	y, z = y[:len(x)], z[:len(x)]
	i := 0
	for ; i+4 <= len(x); i += 4 {
		a, b, c := x[i:i+4:i+4], y[i:i+4:i+4], z[i:i+4:i+4]
		s0 += a[0] * b[0] * c[0]
		s1 += a[1] * b[1] * c[1]
		s2 += a[2] * b[2] * c[2]
		s3 += a[3] * b[3] * c[3]
	}
	for ; i < len(x); i++ {
		s0 += x[i] * y[i] * z[i]
	}
	return (s0 + s1) + (s2 + s3)
}

func axpyGeneric(y []float32, a float32, x []float32) {
	y = y[:len(x)]
	for i, v := range x {
		y[i] += a * v
	}
}

func addGeneric(dst, a, b []float32) {
	a, b = a[:len(dst)], b[:len(dst)]
	for i := range dst {
		dst[i] = a[i] + b[i]
	}
}

func scaleGeneric(dst []float32, a float32) {
	for i := range dst {
		dst[i] *= a
	}
}

func fillGeneric(dst []float32, a float32) {
	for i := range dst {
		dst[i] = a
	}
}
