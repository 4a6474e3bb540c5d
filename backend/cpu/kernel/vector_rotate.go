package kernel

// Rotary positions in the rotate-half form: with h = K/2, element i and i+h are one plane, turned by the angle of the tables:
//
//	y[i]   = x[i] cos[i] - x[i+h] sin[i]
//	y[i+h] = x[i+h] cos[i] + x[i] sin[i]

// Rotate writes src [K] turned by the tables cos and sin [K/2] to dst [K]; inverse turns it back, which is also the
// gradient. K = len(src) is even. dst may be src.
func Rotate(dst, src []float32, cos, sin []float32, inverse bool) {
	sign := float32(1)
	if inverse {
		sign = -1
	}
	h := len(src) / 2
	vectors.rotate(dst[:len(src)], src, cos[:h], sin[:h], sign)
}

func rotateGeneric(dst, src, cos, sin []float32, sign float32) {
	h := len(cos)
	a, b := src[:h], src[h:2*h]
	c, d := dst[:h], dst[h:2*h]
	sin = sin[:h]
	for i := range cos {
		x, y, k, s := a[i], b[i], cos[i], sin[i]*sign
		c[i] = x*k - y*s
		d[i] = y*k + x*s
	}
}
