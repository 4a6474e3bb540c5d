package kernel

import "math"

// The gate of the slots (SPEC, the operator), from its logit z:
//
//	log a = logsigmoid(z)/tau = (min(z, 0) - log1p(exp(-|z|)))/tau
//	s     = 1 - a = -expm1(log a)
//	dz    = dA a sigmoid(-z)/tau
//
// s is about exp(-z)/tau for a large z: 1 - a would be 0 from z = 17 on, so a is never rounded on the way.

// GateForward writes log a and the write strength s of the logits z, over len(z), both to a relative 1e-6 for every finite z.
// logA or s may be z.
func GateForward(logA, s, z []float32, tau float32) {
	n := len(z)
	vectors.gateForward(logA[:n], s[:n], z, 1/tau)
}

// GateBackward writes to dz the gradient of the logits z given dA, the gradient of a = exp(logA), over len(z). dz may be dA.
func GateBackward(dz, dA, logA, z []float32, tau float32) {
	n := len(z)
	vectors.gateBackward(dz[:n], dA[:n], logA[:n], z, 1/tau)
}

func gateForwardGeneric(logA, s, z []float32, inverseTau float32) {
	logA, s = logA[:len(z)], s[:len(z)]
	for i, v := range z {
		e := exp32(minusMagnitude32(v))
		l := (min(v, 0) - log1pUnit32(e)) * inverseTau
		logA[i] = l
		s[i] = -expm1Negative32(l)
	}
}

func gateBackwardGeneric(dz, dA, logA, z []float32, inverseTau float32) {
	dz, dA, logA = dz[:len(z)], dA[:len(z)], logA[:len(z)]
	for i, v := range z {
		e := exp32(minusMagnitude32(v))
		negative := uint32(int32(math.Float32bits(v)) >> 31)
		sigmoid := choose32(negative, 1, e) / (1 + e)
		dz[i] = dA[i] * exp32(logA[i]) * (sigmoid * inverseTau)
	}
}

// minusMagnitude32 is -|v|: the sign bit set.
func minusMagnitude32(v float32) float32 { return math.Float32frombits(math.Float32bits(v) | 1<<31) }
