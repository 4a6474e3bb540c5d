//go:build amd64 && !purego

package kernel

func init() {
	register("avx2", func() { vectors = vectorAVX2 })
	register("avx512", func() { vectors = vectorAVX512 })
}

var vectorAVX2 = vectorSet{
	exp: vectorExpAVX2, log: vectorLogAVX2,
	sum: vectorSumAVX2, max: vectorMaxAVX2, sumSquares: vectorSumSquaresAVX2, dot: vectorDotAVX2,
	axpy: vectorAxpyAVX2, add: vectorAddAVX2, scale: vectorScaleAVX2, fill: vectorFillAVX2,
	silu: vectorSiLUAVX2, siluBackward: vectorSiLUBackwardAVX2, siluBackwardAdd: vectorSiLUBackwardAddAVX2,
	swiglu: vectorSwiGLUAVX2, swigluBackward: vectorSwiGLUBackwardAVX2,
	norm: vectorNormAVX2, dot3: vectorDot3AVX2, normBackward: vectorNormBackwardAVX2, normBackwardAdd: vectorNormBackwardAddAVX2,
	expSum: vectorExpSumAVX2, sumExp: vectorSumExpAVX2,
	rotate: vectorRotateAVX2, adamW: vectorAdamWAVX2,
	gateForward: vectorGateForwardAVX2, gateBackward: vectorGateBackwardAVX2,
}

var vectorAVX512 = vectorSet{
	exp: vectorExpAVX512, log: vectorLogAVX512,
	sum: vectorSumAVX512, max: vectorMaxAVX512, sumSquares: vectorSumSquaresAVX512, dot: vectorDotAVX512,
	axpy: vectorAxpyAVX512, add: vectorAddAVX512, scale: vectorScaleAVX512, fill: vectorFillAVX512,
	silu: vectorSiLUAVX512, siluBackward: vectorSiLUBackwardAVX512, siluBackwardAdd: vectorSiLUBackwardAddAVX512,
	swiglu: vectorSwiGLUAVX512, swigluBackward: vectorSwiGLUBackwardAVX512,
	norm: vectorNormAVX512, dot3: vectorDot3AVX512, normBackward: vectorNormBackwardAVX512, normBackwardAdd: vectorNormBackwardAddAVX512,
	expSum: vectorExpSumAVX512, sumExp: vectorSumExpAVX512,
	rotate: vectorRotateAVX512, adamW: vectorAdamWAVX512,
	gateForward: vectorGateForwardAVX512, gateBackward: vectorGateBackwardAVX512,
}
