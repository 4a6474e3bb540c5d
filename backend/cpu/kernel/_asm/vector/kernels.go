package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// streams is how many registers a step takes where memory or the latency of a sum is the bound.
const streams = 4

func elementwise(t *table, wide bool) {
	k := begin(t, wide, "Exp", "func(dst, x []float32)", "x", "dst")
	k.hold(expConstants)
	k.loop(1, func(at place) { k.store("dst", at, k.exp(k.load("x", at))) })
	k.end()

	k = begin(t, wide, "Log", "func(dst, x []float32)", "x", "dst")
	k.hold(logConstants)
	k.loop(1, func(at place) { k.store("dst", at, k.log(k.load("x", at))) })
	k.end()

	k = begin(t, wide, "Axpy", "func(y []float32, a float32, x []float32)", "x", "y")
	a := k.scalar("a")
	k.loop(streams, func(at place) {
		y := k.load("y", at)
		VFMADD231PS(k.load("x", at), a, y)
		k.store("y", at, y)
	})
	k.end()

	k = begin(t, wide, "Add", "func(dst, a, b []float32)", "dst", "a", "b")
	k.loop(streams, func(at place) { k.store("dst", at, k.add(k.load("a", at), k.load("b", at))) })
	k.end()

	k = begin(t, wide, "Scale", "func(dst []float32, a float32)", "dst")
	a = k.scalar("a")
	k.loop(streams, func(at place) { k.store("dst", at, k.multiply(k.load("dst", at), a)) })
	k.end()

	k = begin(t, wide, "Fill", "func(dst []float32, a float32)", "dst")
	a = k.scalar("a")
	k.loop(streams, func(at place) { k.store("dst", at, a) })
	k.end()

	k = begin(t, wide, "Rotate", "func(dst, src, cos, sin []float32, sign float32)", "cos", "sin", "dst", "src")
	sign := k.scalar("sign")
	for _, s := range []string{"dst", "src"} {
		second := GP64()
		LEAQ(Mem{Base: k.pointers[s], Index: k.count, Scale: 4}, second)
		k.pointers[s+"/2"] = second
	}
	k.loop(1, func(at place) {
		x, y := k.load("src", at), k.load("src/2", at)
		cos, sin := k.load("cos", at), k.multiply(k.load("sin", at), sign)
		first, second := k.multiply(x, cos), k.multiply(y, cos)
		VFNMADD231PS(sin, y, first)
		VFMADD231PS(sin, x, second)
		k.store("dst", at, first)
		k.store("dst/2", at, second)
	})
	k.end()
}

func reductions(t *table, wide bool) {
	k := begin(t, wide, "Sum", "func(x []float32) float32", "x")
	acc := k.accumulators(streams, 0)
	k.loop(streams, func(at place) { VADDPS(k.load("x", at), acc[at], acc[at]) })
	k.reduce(acc, VADDPS)

	k = begin(t, wide, "Max", "func(x []float32) float32", "x")
	acc = k.accumulators(streams, -infinity)
	k.loop(streams, func(at place) {
		x := k.load("x", at)
		if k.tail != nil {
			x = k.choose(k.tail, x, k.cr(-infinity))
		}
		VMAXPS(acc[at], x, acc[at]) // a NaN in x leaves the accumulator
	})
	k.reduce(acc, VMAXPS)

	k = begin(t, wide, "Dot", "func(x, y []float32) float32", "x", "y")
	acc = k.accumulators(streams, 0)
	k.loop(streams, func(at place) { VFMADD231PS(k.load("x", at), k.load("y", at), acc[at]) })
	k.reduce(acc, VADDPS)

	k = begin(t, wide, "Dot3", "func(x, y, z []float32) float32", "x", "y", "z")
	acc = k.accumulators(streams, 0)
	k.loop(streams, func(at place) {
		VFMADD231PS(k.multiply(k.load("x", at), k.load("y", at)), k.load("z", at), acc[at])
	})
	k.reduce(acc, VADDPS)

	k = begin(t, wide, "SumSquares", "func(x []float32) float64", "x")
	acc = k.accumulators(2*streams, 0)
	k.loop(streams, func(at place) {
		x := k.load("x", at)
		low, high := k.vector(), k.vector()
		if wide {
			upper := YMM()
			VEXTRACTF64X4(U8(1), x, upper)
			VCVTPS2PD(x.AsY(), low)
			VCVTPS2PD(upper, high)
		} else {
			upper := XMM()
			VEXTRACTF128(U8(1), x, upper)
			VCVTPS2PD(x.AsX(), low)
			VCVTPS2PD(upper, high)
		}
		VFMADD231PD(low, low, acc[2*at])
		VFMADD231PD(high, high, acc[2*at+1])
	})
	x := k.fold(acc, VADDPD)
	upper := XMM()
	VPERMILPD(U8(1), x, upper)
	VADDPD(upper, x, x)
	Store(x, ReturnIndex(0))
	k.end()

	k = begin(t, wide, "ExpSum", "func(dst, x []float32, shift float32) float32", "x", "dst")
	k.expSum(func(at place, e reg.VecVirtual) { k.store("dst", at, e) })

	k = begin(t, wide, "SumExp", "func(x []float32, shift float32) float32", "x")
	k.expSum(func(place, reg.VecVirtual) {})
}

// expSum returns the sum of exp(x - shift) and hands every register of it to visit.
func (k *kernel) expSum(visit func(at place, e reg.VecVirtual)) {
	const registers = 2
	shift := k.scalar("shift")
	k.hold(expConstants)
	acc := k.accumulators(registers, 0)
	k.loop(registers, func(at place) {
		e := k.exp(k.subtract(k.load("x", at), shift))
		visit(at, e)
		VADDPS(k.live(e), acc[at], acc[at])
	})
	k.reduce(acc, VADDPS)
}

func activations(t *table, wide bool) {
	k := begin(t, wide, "SiLU", "func(y, x []float32)", "x", "y")
	k.hold(boundedConstants)
	k.loop(1, func(at place) {
		x := k.load("x", at)
		_, onePlus := k.exponentialOfMinus(x)
		k.store("y", at, k.divide(x, onePlus))
	})
	k.end()

	for _, name := range []string{"SiLUBackward", "SiLUBackwardAdd"} {
		k := begin(t, wide, name, "func(dx, dy, x []float32)", "x", "dx", "dy")
		k.hold(boundedConstants)
		k.loop(1, func(at place) {
			x := k.load("x", at)
			_, slope := k.siluSlope(x)
			d := k.multiply(slope, k.load("dy", at))
			if name == "SiLUBackwardAdd" {
				d = k.add(d, k.load("dx", at))
			}
			k.store("dx", at, d)
		})
		k.end()
	}

	k = begin(t, wide, "SwiGLU", "func(y, gate, up []float32)", "gate", "up", "y")
	k.hold(boundedConstants)
	k.loop(1, func(at place) {
		gate := k.load("gate", at)
		_, onePlus := k.exponentialOfMinus(gate)
		k.store("y", at, k.multiply(k.divide(gate, onePlus), k.load("up", at)))
	})
	k.end()

	k = begin(t, wide, "SwiGLUBackward", "func(dgate, dup, dy, gate, up []float32)", "gate", "up", "dy", "dgate", "dup")
	k.hold(boundedConstants)
	k.loop(1, func(at place) {
		gate := k.load("gate", at)
		sigma, slope := k.siluSlope(gate)
		dy, up := k.load("dy", at), k.load("up", at)
		k.store("dgate", at, k.multiply(k.multiply(dy, up), slope))
		k.store("dup", at, k.multiply(dy, k.multiply(gate, sigma)))
	})
	k.end()
}

// siluSlope is sigma(x) and silu'(x) = sigma (1 + x e sigma).
func (k *kernel) siluSlope(x Op) (sigma, slope reg.VecVirtual) {
	e, onePlus := k.exponentialOfMinus(x)
	sigma = k.divide(k.cr(1), onePlus)
	rest := k.multiply(e, sigma)
	VFMADD213PS(k.c(1), x, rest)
	return sigma, k.multiply(sigma, rest)
}

func norms(t *table, wide bool) {
	k := begin(t, wide, "Norm", "func(y, x, w []float32, r float32)", "y", "x", "w")
	r := k.scalar("r")
	k.loop(2, func(at place) {
		k.store("y", at, k.multiply(k.multiply(k.load("x", at), r), k.load("w", at)))
	})
	k.end()

	for _, name := range []string{"NormBackward", "NormBackwardAdd"} {
		k := begin(t, wide, name, "func(dx, dw, dy, x, w []float32, r, c float32)", "dx", "dw", "dy", "x", "w")
		r, c := k.scalar("r"), k.scalar("c")
		k.loop(2, func(at place) {
			d, x, dw := k.multiply(k.load("dy", at), r), k.load("x", at), k.load("dw", at)
			VFMADD231PS(x, d, dw)
			dx := k.multiply(d, k.load("w", at))
			VFNMADD231PS(x, c, dx)
			if name == "NormBackwardAdd" {
				dx = k.add(dx, k.load("dx", at))
			}
			k.store("dx", at, dx)
			k.store("dw", at, dw)
		})
		k.end()
	}
}

func optimiser(t *table, wide bool) {
	k := begin(t, wide, "AdamW", "func(p, g, m, v []float32, gradientScale, keep, beta1, rest1, beta2, rest2, step, correction, epsilon float32)", "p", "g", "m", "v")
	gradientScale, keep, beta1, rest1 := k.scalar("gradientScale"), k.scalar("keep"), k.scalar("beta1"), k.scalar("rest1")
	beta2, rest2, step := k.scalar("beta2"), k.scalar("rest2"), k.scalar("step")
	correction, epsilon := k.scalar("correction"), k.scalar("epsilon")
	k.loop(1, func(at place) {
		g := k.multiply(k.load("g", at), gradientScale)
		m := k.multiply(k.load("m", at), beta1)
		VFMADD231PS(g, rest1, m)
		v := k.multiply(k.load("v", at), beta2)
		VFMADD231PS(k.multiply(g, g), rest2, v)
		k.store("m", at, m)
		k.store("v", at, v)
		VSQRTPS(v, v)
		VFMADD213PS(epsilon, correction, v)
		p := k.load("p", at)
		VFMSUB213PS(k.divide(k.multiply(m, step), v), keep, p)
		k.store("p", at, p)
	})
	k.end()
}

func gates(t *table, wide bool) {
	k := begin(t, wide, "GateForward", "func(logA, s, z []float32, inverseTau float32)", "z", "logA", "s")
	k.woven = true
	inverseTau := k.scalar("inverseTau")
	k.hold(reduceConstants, logConstants)
	k.loop(2, func(at place) {
		z := k.load("z", at)
		l := k.log1pUnit(k.expNegative(k.minusMagnitude(z)))
		logA := k.multiply(k.subtract(k.atMost(z, k.zero()), l), inverseTau)
		k.store("logA", at, logA)
		k.store("s", at, k.negative(k.expm1Negative(logA)))
	})
	k.end()

	k = begin(t, wide, "GateBackward", "func(dz, dA, logA, z []float32, inverseTau float32)", "z", "dz", "dA", "logA")
	k.woven = true
	inverseTau = k.scalar("inverseTau")
	k.hold(reduceConstants)
	k.loop(2, func(at place) {
		z := k.load("z", at)
		e := k.expNegative(k.minusMagnitude(z))
		numerator := k.choose(k.compare(atLeastEqual, z, k.c(0)), e, k.cr(1))
		// sigmoid(-z) is e/(1+e) for z >= 0 and 1/(1+e) below.
		sigmoid := k.divide(numerator, k.add(e, k.c(1)))
		d := k.multiply(k.load("dA", at), k.expNegative(k.load("logA", at)))
		k.store("dz", at, k.multiply(d, k.multiply(sigmoid, inverseTau)))
	})
	k.end()
}

// minusMagnitude is -|v|.
func (k *kernel) minusMagnitude(v Op) reg.VecVirtual {
	d := k.vector()
	VORPS(k.word(1<<31), v, d)
	return d
}
