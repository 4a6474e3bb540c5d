package kernel

// SiLU and SwiGLU, with sigma(x) = 1/(1+e), e = exp(-x), so that 1 - sigma = e sigma without cancellation:
//
//	silu(x)  = x sigma(x)
//	silu'(x) = sigma (1 + x e sigma)
//	swiglu   = silu(gate) up
//
// e is clamped to exp(+-87): below -87 the activation is off by less than 1e-37 |x|, and is never NaN for a finite x.

// SiLU writes silu(x) to y, over len(x).
func SiLU(y, x []float32) { vectors.silu(y[:len(x)], x) }

// SiLUBackward writes dy silu'(x) to dx, or adds it, over len(x).
func SiLUBackward(dx, dy, x []float32, add bool) {
	if add {
		vectors.siluBackwardAdd(dx[:len(x)], dy[:len(x)], x)
		return
	}
	vectors.siluBackward(dx[:len(x)], dy[:len(x)], x)
}

// SwiGLU writes silu(gate) up to y, over len(gate).
func SwiGLU(y, gate, up []float32) {
	n := len(gate)
	vectors.swiglu(y[:n], gate, up[:n])
}

// SwiGLUBackward writes the gradients dgate = dy up silu'(gate) and dup = dy silu(gate), over len(gate). Either may be one of
// the inputs.
func SwiGLUBackward(dgate, dup, dy, gate, up []float32) {
	n := len(gate)
	vectors.swigluBackward(dgate[:n], dup[:n], dy[:n], gate, up[:n])
}

// sigmoid32 is sigma(x) and e sigma(x) = 1 - sigma(x).
func sigmoid32(x float32) (sigma, rest float32) {
	e := expBounded32(-x)
	sigma = 1 / (1 + e)
	return sigma, e * sigma
}

func siluGeneric(y, x []float32) {
	y = y[:len(x)]
	for i, v := range x {
		sigma, _ := sigmoid32(v)
		y[i] = v * sigma
	}
}

func siluBackwardGeneric(dx, dy, x []float32) {
	dx, dy = dx[:len(x)], dy[:len(x)]
	for i, v := range x {
		sigma, rest := sigmoid32(v)
		dx[i] = dy[i] * (sigma * (1 + v*rest))
	}
}

func siluBackwardAddGeneric(dx, dy, x []float32) {
	dx, dy = dx[:len(x)], dy[:len(x)]
	for i, v := range x {
		sigma, rest := sigmoid32(v)
		dx[i] += dy[i] * (sigma * (1 + v*rest))
	}
}

func swigluGeneric(y, gate, up []float32) {
	y, up = y[:len(gate)], up[:len(gate)]
	for i, v := range gate {
		sigma, _ := sigmoid32(v)
		y[i] = v * sigma * up[i]
	}
}

func swigluBackwardGeneric(dgate, dup, dy, gate, up []float32) {
	n := len(gate)
	dgate, dup, dy, up = dgate[:n], dup[:n], dy[:n], up[:n]
	for i, v := range gate {
		sigma, rest := sigmoid32(v)
		d, u := dy[i], up[i]
		dgate[i] = d * u * (sigma * (1 + v*rest))
		dup[i] = d * (v * sigma)
	}
}
