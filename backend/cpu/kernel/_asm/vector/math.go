package main

import (
	"math"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// The polynomials and splits of math.go in package kernel, step by step.
const (
	log2E        = 1.44269504088896341
	ln2Head      = 0.693359375
	ln2Tail      = -2.12194440e-4
	sqrtHalf     = 0x3f3504f3
	sqrt2Minus1  = 0x3ed413cd
	expUnderflow = -103.972084
	expOverflow  = 89
	expBounded   = 87
	expZero      = 104 // exp(-104) is 0
)

var (
	infinity        = float32(math.Inf(1))
	expCoefficients = []float32{1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1}
	logCoefficients = []float32{7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
		-1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1}

	// What each function needs held, most used first.
	reduceConstants  = append([]float32{log2E, ln2Head, ln2Tail, 1}, expCoefficients...)
	expConstants     = append([]float32{expUnderflow, expOverflow}, reduceConstants...)
	boundedConstants = append([]float32{-expBounded, expBounded}, reduceConstants...)
	logConstants     = append([]float32{ln2Head, ln2Tail, 0.5, 1}, logCoefficients...)
)

// polynomial is Horner's rule in x.
func (k *kernel) polynomial(coefficients []float32, x Op) reg.VecVirtual {
	q := k.vector()
	VMOVUPS(k.c(coefficients[0]), q)
	for _, c := range coefficients[1:] {
		VFMADD213PS(k.c(c), x, q)
	}
	return q
}

// reduced splits r, which it overwrites: exp(r) = 2^n (1 + p), n an integer.
func (k *kernel) reduced(r reg.VecVirtual) (n, p reg.VecVirtual) {
	n, f := k.vector(), k.vector()
	VCVTPS2DQ(k.multiply(r, k.c(log2E)), n)
	VCVTDQ2PS(n, f)
	VFNMADD231PS(k.c(ln2Head), f, r)
	VFNMADD231PS(k.c(ln2Tail), f, r)
	p = k.polynomial(expCoefficients, r)
	VFMADD213PS(r, k.multiply(r, r), p)
	return n, p
}

// exponential2 is 2^n for -126 <= n <= 127.
func (k *kernel) exponential2(n Op) reg.VecVirtual {
	d := k.vector()
	VPADDD(k.word(127), n, d)
	VPSLLD(U8(23), d, d)
	return d
}

// exp is exp(x) over the whole range: 0 under expUnderflow, where the power would not be representable, +Inf past 88.72.
func (k *kernel) exp(x Op) reg.VecVirtual {
	inside := k.compare(notLess, x, k.c(expUnderflow))
	v := k.atMost(k.keep(inside, x), k.cr(expOverflow))
	n, p := k.reduced(v)
	half := k.vector()
	VPSRAD(U8(1), n, half)
	rest := k.vector()
	VPSUBD(half, n, rest)
	y := k.multiply(k.add(p, k.c(1)), k.exponential2(half))
	return k.keep(inside, k.multiply(y, k.exponential2(rest)))
}

// expNegative is exp(x) for x <= 0: what exp is, in one step less, as the power 24 places up is a normal number.
func (k *kernel) expNegative(x Op) reg.VecVirtual {
	n, p := k.reduced(k.atLeast(x, k.cr(-expZero)))
	d := k.vector()
	VPADDD(k.word(127+24), n, d)
	VPSLLD(U8(23), d, d)
	return k.multiply(k.multiply(k.add(p, k.c(1)), d), k.c(0x1p-24))
}

// expBounded is exp(x) with x clamped to where 2^n is a normal number.
func (k *kernel) expBounded(x Op) reg.VecVirtual {
	n, p := k.reduced(k.atMost(k.atLeast(x, k.cr(-expBounded)), k.cr(expBounded)))
	return k.multiply(k.add(p, k.c(1)), k.exponential2(n))
}

// expm1Negative is exp(x) - 1 for x <= 0, with full relative accuracy at x = 0.
func (k *kernel) expm1Negative(x Op) reg.VecVirtual {
	n, p := k.reduced(k.atLeast(x, k.cr(-expBounded)))
	scale := k.exponential2(n)
	rest := k.subtract(scale, k.c(1))
	VFMADD231PS(scale, p, rest)
	return rest
}

// logSeries is e ln 2 + log(1+f).
func (k *kernel) logSeries(f, e Op) reg.VecVirtual {
	q := k.polynomial(logCoefficients, f)
	z := k.multiply(f, f)
	y := k.multiply(q, k.multiply(f, z))
	VFMADD231PS(k.c(ln2Tail), e, y)
	VFNMADD231PS(k.c(0.5), z, y)
	y = k.add(f, y)
	VFMADD231PS(k.c(ln2Head), e, y)
	return y
}

// log is the natural logarithm, denormal arguments included.
func (k *kernel) log(x Op) reg.VecVirtual {
	tiny := k.compare(less, x, k.c(0x1p-126))
	v := k.choose(tiny, k.multiply(x, k.c(1<<23)), x)
	shift := k.keep(tiny, k.cr(-23))
	n, m, e := k.vector(), k.vector(), k.vector()
	VPSUBD(k.word(sqrtHalf), v, n)
	VPSRAD(U8(23), n, n)
	VCVTDQ2PS(n, e)
	VPSLLD(U8(23), n, n)
	VPSUBD(n, v, m)
	y := k.logSeries(k.subtract(m, k.c(1)), k.add(e, shift))
	y = k.choose(k.compare(equals, x, k.c(infinity)), x, y)
	y = k.choose(k.compare(equals, x, k.c(0)), k.c(-infinity), y)
	return k.choose(k.compare(notAtLeast, x, k.c(0)), k.word(0x7fc00000), y)
}

// log1pUnit is log(1+u) for 0 <= u <= 1.
func (k *kernel) log1pUnit(u Op) reg.VecVirtual {
	large := k.compare(greater, u, k.word(sqrt2Minus1))
	f := k.choose(large, k.multiply(k.subtract(u, k.c(1)), k.c(0.5)), u)
	return k.logSeries(f, k.keep(large, k.cr(1)))
}

// exponentialOfMinus is e = exp(-x), clamped, and 1 + e: sigma(x) = 1/(1+e).
func (k *kernel) exponentialOfMinus(x Op) (e, onePlus reg.VecVirtual) {
	e = k.expBounded(k.negative(x))
	return e, k.add(e, k.c(1))
}
