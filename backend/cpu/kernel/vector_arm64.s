//go:build arm64 && !purego

// Dot product and axpy in NEON, by hand: sixteen elements a step, then four, then one. The assembler has no vector float add,
// so registers are added as a product by ones.

#include "textflag.h"

// func vectorDotNEON(x, y []float32) float32
TEXT ·vectorDotNEON(SB), NOSPLIT, $0-52
	MOVD  x_base+0(FP), R0
	MOVD  x_len+8(FP), R2
	MOVD  y_base+24(FP), R1
	VEOR  V16.B16, V16.B16, V16.B16
	VEOR  V17.B16, V17.B16, V17.B16
	VEOR  V18.B16, V18.B16, V18.B16
	VEOR  V19.B16, V19.B16, V19.B16
	FMOVS $1.0, F20
	VDUP  V20.S[0], V20.S4

sixteen:
	CMP    $16, R2
	BLT    fold
	VLD1.P 64(R0), [V0.S4, V1.S4, V2.S4, V3.S4]
	VLD1.P 64(R1), [V4.S4, V5.S4, V6.S4, V7.S4]
	VFMLA  V0.S4, V4.S4, V16.S4
	VFMLA  V1.S4, V5.S4, V17.S4
	VFMLA  V2.S4, V6.S4, V18.S4
	VFMLA  V3.S4, V7.S4, V19.S4
	SUB    $16, R2
	B      sixteen

fold:
	VFMLA V20.S4, V17.S4, V16.S4
	VFMLA V20.S4, V19.S4, V18.S4
	VFMLA V20.S4, V18.S4, V16.S4

four:
	CMP    $4, R2
	BLT    lanes
	VLD1.P 16(R0), [V0.S4]
	VLD1.P 16(R1), [V4.S4]
	VFMLA  V0.S4, V4.S4, V16.S4
	SUB    $4, R2
	B      four

lanes:
	VEXT  $8, V16.B16, V16.B16, V17.B16
	VFMLA V20.S4, V17.S4, V16.S4
	VEXT  $4, V16.B16, V16.B16, V17.B16
	VFMLA V20.S4, V17.S4, V16.S4

one:
	CBZ     R2, done
	FMOVS.P 4(R0), F0
	FMOVS.P 4(R1), F4
	FMADDS  F0, F16, F4, F16
	SUB     $1, R2
	B       one

done:
	FMOVS F16, ret+48(FP)
	RET

// func vectorAxpyNEON(y []float32, a float32, x []float32)
TEXT ·vectorAxpyNEON(SB), NOSPLIT, $0-56
	MOVD  y_base+0(FP), R0
	FMOVS a+24(FP), F20
	MOVD  x_base+32(FP), R1
	MOVD  x_len+40(FP), R2
	VDUP  V20.S[0], V21.S4

sixteen:
	CMP    $16, R2
	BLT    four
	VLD1   (R0), [V0.S4, V1.S4, V2.S4, V3.S4]
	VLD1.P 64(R1), [V4.S4, V5.S4, V6.S4, V7.S4]
	VFMLA  V21.S4, V4.S4, V0.S4
	VFMLA  V21.S4, V5.S4, V1.S4
	VFMLA  V21.S4, V6.S4, V2.S4
	VFMLA  V21.S4, V7.S4, V3.S4
	VST1.P [V0.S4, V1.S4, V2.S4, V3.S4], 64(R0)
	SUB    $16, R2
	B      sixteen

four:
	CMP    $4, R2
	BLT    one
	VLD1   (R0), [V0.S4]
	VLD1.P 16(R1), [V4.S4]
	VFMLA  V21.S4, V4.S4, V0.S4
	VST1.P [V0.S4], 16(R0)
	SUB    $4, R2
	B      four

one:
	CBZ     R2, done
	FMOVS   (R0), F0
	FMOVS.P 4(R1), F4
	FMADDS  F20, F0, F4, F0
	FMOVS.P F0, 4(R0)
	SUB     $1, R2
	B       one

done:
	RET
