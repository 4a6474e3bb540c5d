package kernel

import "math"

// AdamW with decoupled weight decay, as PyTorch's, one fused pass over a parameter tensor:
//
//	g <- GradientScale g
//	m <- beta1 m + (1 - beta1) g,   v <- beta2 v + (1 - beta2) g^2
//	p <- (1 - lr decay) p - (lr/bc1) m / (sqrt(v/bc2) + epsilon),   bc = 1 - beta^t

// AdamWStep holds the scalars of one optimiser step. BiasCorrection1 and BiasCorrection2 are 1 - Beta1^t and 1 - Beta2^t
// for the step t = 1, 2, ..., taken of the float32 Beta, so that they cancel the 1 - Beta of the moments (float32(0.999) is off
// by 1e-5 of 1 - 0.999); GradientScale multiplies every gradient (1 without clipping).
type AdamWStep struct {
	LearningRate, Beta1, Beta2, Epsilon, WeightDecay float32
	BiasCorrection1, BiasCorrection2, GradientScale  float32
}

// AdamW updates the parameters p and the moments m and v from the gradients g, over len(p).
func AdamW(p, g, m, v []float32, a AdamWStep) {
	n := len(p)
	vectors.adamW(p, g[:n], m[:n], v[:n], a.GradientScale, 1-a.LearningRate*a.WeightDecay,
		a.Beta1, 1-a.Beta1, a.Beta2, 1-a.Beta2,
		a.LearningRate/a.BiasCorrection1, float32(1/math.Sqrt(float64(a.BiasCorrection2))), a.Epsilon)
}

func adamWGeneric(p, g, m, v []float32, gradientScale, keep, beta1, rest1, beta2, rest2, step, correction, epsilon float32) {
	g, m, v = g[:len(p)], m[:len(p)], v[:len(p)]
	for i := range p {
		d := g[i] * gradientScale
		first := beta1*m[i] + rest1*d
		second := beta2*v[i] + rest2*(d*d)
		m[i], v[i] = first, second
		denominator := float32(math.Sqrt(float64(second)))*correction + epsilon
		p[i] = p[i]*keep - step*first/denominator
	}
}
