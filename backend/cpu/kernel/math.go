package kernel

import "math"

// Exponential and logarithm in float32, the polynomials of Cephes (expf, logf), shared by the generic twins and the assembly:
//
//	exp(x) = 2^n (1 + r + r^2 P(r)),   n = round(x log2 e), r = x - n ln 2, |r| <= ln(2)/2
//	log(x) = e ln 2 + f - f^2/2 + f^3 Q(f),   x = 2^e (1 + f), sqrt(1/2) <= 1 + f < sqrt(2)
//
// ln 2 is split in a head of ten bits, whose product with n or e is exact, and a tail.

const (
	log2E       = 1.44269504088896341
	ln2Head     = 0.693359375
	ln2Tail     = -2.12194440e-4
	roundMagic  = 1.5 * (1 << 23) // adding and taking it away rounds to an integer, ties to even
	sqrtHalf    = 0x3f3504f3      // bits of sqrt(1/2)
	sqrt2Minus1 = 0x3ed413cd      // bits of sqrt(2) - 1

	// expUnderflow is where exp(x) falls under half the smallest denormal, expOverflow is past the last finite result.
	expUnderflow = -103.972084
	expOverflow  = 89

	// expBounded keeps 2^n, and 1/(1+exp(x)), a normal number.
	expBounded = 87
)

var negativeInfinity = float32(math.Inf(-1))

// Exp writes exp(x) to dst, over len(x), within 2 units in the last place: denormal results are right (not flushed), -Inf
// gives 0, past 88.72 comes +Inf, NaN stays NaN. dst may be x.
func Exp(dst, x []float32) { vectors.exp(dst[:len(x)], x) }

// Log writes the natural logarithm of x to dst, over len(x), within 2 units in the last place, denormal arguments
// included: 0 gives -Inf, a negative number NaN, +Inf and NaN stay. dst may be x.
func Log(dst, x []float32) { vectors.log(dst[:len(x)], x) }

func expGeneric(dst, x []float32) {
	dst = dst[:len(x)]
	for i, v := range x {
		dst[i] = exp32(v)
	}
}

func logGeneric(dst, x []float32) {
	dst = dst[:len(x)]
	for i, v := range x {
		dst[i] = log32(v)
	}
}

// expReduce splits x: exp(x) = 2^n (1 + p).
func expReduce(x float32) (n int32, p float32) {
	f := float32(x*log2E+roundMagic) - roundMagic
	r := x - f*ln2Head
	r -= f * ln2Tail
	q := float32(1.9875691500e-4)
	q = q*r + 1.3981999507e-3
	q = q*r + 8.3334519073e-3
	q = q*r + 4.1665795894e-2
	q = q*r + 1.6666665459e-1
	q = q*r + 5.0000001201e-1
	return int32(f), q*(r*r) + r
}

// exponential2 is 2^n for -126 <= n <= 127.
func exponential2(n int32) float32 { return math.Float32frombits(uint32(n+127) << 23) }

func exp32(x float32) float32 {
	switch {
	case x != x:
		return x
	case x < expUnderflow:
		return 0
	case x > expOverflow:
		x = expOverflow
	}
	n, p := expReduce(x)
	half := n >> 1 // 2^n itself may be out of range: two factors, one rounding
	return (1 + p) * exponential2(half) * exponential2(n-half)
}

// expBounded32 is exp(x) with x clamped to [-expBounded, expBounded].
func expBounded32(x float32) float32 {
	if x != x {
		return x
	}
	n, p := expReduce(min(max(x, -expBounded), expBounded))
	return (1 + p) * exponential2(n)
}

// expm1Negative32 is exp(x) - 1 for x <= 0, with full relative accuracy at x = 0.
func expm1Negative32(x float32) float32 {
	if x != x {
		return x
	}
	n, p := expReduce(max(x, -expBounded))
	scale := exponential2(n)
	return p*scale + (scale - 1)
}

// logSeries is e ln 2 + log(1+f).
func logSeries(f, e float32) float32 {
	q := float32(7.0376836292e-2)
	q = q*f - 1.1514610310e-1
	q = q*f + 1.1676998740e-1
	q = q*f - 1.2420140846e-1
	q = q*f + 1.4249322787e-1
	q = q*f - 1.6668057665e-1
	q = q*f + 2.0000714765e-1
	q = q*f - 2.4999993993e-1
	q = q*f + 3.3333331174e-1
	z := f * f
	y := q * f * z
	y += e * ln2Tail
	y -= 0.5 * z
	return (f + y) + e*ln2Head
}

func log32(x float32) float32 {
	const smallestNormal = 0x1p-126
	e := float32(0)
	switch {
	case !(x >= 0):
		return float32(math.NaN())
	case x == 0:
		return negativeInfinity
	case x > math.MaxFloat32:
		return x
	case x < smallestNormal:
		x *= 1 << 23
		e = -23
	}
	b := int32(math.Float32bits(x))
	n := (b - sqrtHalf) >> 23
	m := math.Float32frombits(uint32(b - n<<23))
	return logSeries(m-1, e+float32(n))
}

// log1pUnit32 is log(1+u) for 0 <= u <= 1: 1+u is never formed, so that a small u loses nothing. Without a branch, which
// no machine would predict.
func log1pUnit32(u float32) float32 {
	b := int32(math.Float32bits(u))
	large := uint32((sqrt2Minus1 - b) >> 31)
	f := choose32(large, (u-1)*0.5, u)
	return logSeries(f, choose32(large, 1, 0))
}

// choose32 is a where mask is all ones, b where it is 0.
func choose32(mask uint32, a, b float32) float32 {
	return math.Float32frombits(math.Float32bits(a)&mask | math.Float32bits(b)&^mask)
}
