//go:build !purego

#include "textflag.h"

// The assembler knows one vector operation on floats, VFMLA, so sums and scalings are written as it too.

#define FMLA4(a, c0, c1, c2, c3) \
	VFMLA V24.S4, a.S4, c0.S4; \
	VFMLA V25.S4, a.S4, c1.S4; \
	VFMLA V26.S4, a.S4, c2.S4; \
	VFMLA V27.S4, a.S4, c3.S4

#define ZERO4(c0, c1, c2, c3) \
	VEOR c0.B16, c0.B16, c0.B16; \
	VEOR c1.B16, c1.B16, c1.B16; \
	VEOR c2.B16, c2.B16, c2.B16; \
	VEOR c3.B16, c3.B16, c3.B16

#define MOVE4(c0, c1, c2, c3) \
	VMOV c0.B16, V0.B16; \
	VMOV c1.B16, V1.B16; \
	VMOV c2.B16, V2.B16; \
	VMOV c3.B16, V3.B16

// SUM4 leaves in c0 the four sums of c0, c1, c2, c3. V31 holds ones.
#define SUM4(c0, c1, c2, c3) \
	VZIP1 c1.S4, c0.S4, V24.S4; \
	VZIP2 c1.S4, c0.S4, V25.S4; \
	VFMLA V31.S4, V25.S4, V24.S4; \
	VZIP1 c3.S4, c2.S4, V26.S4; \
	VZIP2 c3.S4, c2.S4, V27.S4; \
	VFMLA V31.S4, V27.S4, V26.S4; \
	VZIP1 V26.D2, V24.D2, c0.D2; \
	VZIP2 V26.D2, V24.D2, c1.D2; \
	VFMLA V31.S4, c1.S4, c0.S4

// DOTS multiplies four steps of the rows of x, in V24 to V26, with those of w, in V27 to V30.
#define DOTS \
	VFMLA V27.S4, V24.S4, V0.S4; \
	VFMLA V28.S4, V24.S4, V1.S4; \
	VFMLA V29.S4, V24.S4, V2.S4; \
	VFMLA V30.S4, V24.S4, V3.S4; \
	VFMLA V27.S4, V25.S4, V4.S4; \
	VFMLA V28.S4, V25.S4, V5.S4; \
	VFMLA V29.S4, V25.S4, V6.S4; \
	VFMLA V30.S4, V25.S4, V7.S4; \
	VFMLA V27.S4, V26.S4, V8.S4; \
	VFMLA V28.S4, V26.S4, V9.S4; \
	VFMLA V29.S4, V26.S4, V10.S4; \
	VFMLA V30.S4, V26.S4, V11.S4

// DOTSTART points R2 to R4 at the rows of x, missing ones at the first, and R5 to R8 at those of w, size 1<<shift; R1 is
// k, R10 out, R11 its stride.
#define DOTSTART(shift) \
	MOVD rows+0(FP), R0; \
	MOVD k+8(FP), R1; \
	MOVD x_base+16(FP), R2; \
	MOVD xRow+40(FP), R9; \
	MOVD w_base+48(FP), R5; \
	MOVD wRow+72(FP), R12; \
	MOVD out_base+80(FP), R10; \
	MOVD outRow+104(FP), R11; \
	ADD  R9<<2, R2, R3; \
	ADD  R9<<2, R3, R4; \
	CMP  $2, R0; \
	CSEL LT, R2, R3, R3; \
	CMP  $3, R0; \
	CSEL LT, R2, R4, R4; \
	ADD  R12<<shift, R5, R6; \
	ADD  R12<<shift, R6, R7; \
	ADD  R12<<shift, R7, R8; \
	LSL  $2, R11; \
	ZERO4(V0, V1, V2, V3); \
	ZERO4(V4, V5, V6, V7); \
	ZERO4(V8, V9, V10, V11); \
	VEOR V16.B16, V16.B16, V16.B16; \
	FMOVS $1.0, F31; \
	VDUP V31.S[0], V31.S4

// DOTX loads the next four of each row of x.
#define DOTX \
	VLD1.P 16(R2), [V24.S4]; \
	VLD1.P 16(R3), [V25.S4]; \
	VLD1.P 16(R4), [V26.S4]

// func gemmTileNEON(rows, k int, a []float32, aRow, aCol int, b []float32, bRow int, c []float32, cRow int, alpha float32, bias []float32, add int)
//
// Six rows of A are always multiplied: where the tile has fewer, the others repeat its first and are not stored.
TEXT ·gemmTileNEON(SB), NOSPLIT, $0-160
	MOVD rows+0(FP), R0
	MOVD k+8(FP), R1
	MOVD a_base+16(FP), R2
	MOVD aRow+40(FP), R8
	MOVD aCol+48(FP), R9
	MOVD b_base+56(FP), R10
	MOVD bRow+80(FP), R11
	MOVD c_base+88(FP), R12
	MOVD cRow+112(FP), R13
	MOVD bias_base+128(FP), R14
	MOVD add+152(FP), R15
	LSL  $2, R8
	LSL  $2, R9
	LSL  $2, R11
	LSL  $2, R13

	ADD  R8, R2, R3
	ADD  R8, R3, R4
	ADD  R8, R4, R5
	ADD  R8, R5, R6
	ADD  R8, R6, R7
	CMP  $2, R0
	CSEL LT, R2, R3, R3
	CMP  $3, R0
	CSEL LT, R2, R4, R4
	CMP  $4, R0
	CSEL LT, R2, R5, R5
	CMP  $5, R0
	CSEL LT, R2, R6, R6
	CMP  $6, R0
	CSEL LT, R2, R7, R7

	ZERO4(V0, V1, V2, V3)
	ZERO4(V4, V5, V6, V7)
	ZERO4(V8, V9, V10, V11)
	ZERO4(V12, V13, V14, V15)
	ZERO4(V16, V17, V18, V19)
	ZERO4(V20, V21, V22, V23)
	CBZ R1, scale

loop:
	VLD1.P  (R10)(R11), [V24.S4, V25.S4, V26.S4, V27.S4]
	VLD1R.P (R2)(R9), [V28.S4]
	VLD1R.P (R3)(R9), [V29.S4]
	VLD1R.P (R4)(R9), [V30.S4]
	FMLA4(V28, V0, V1, V2, V3)
	VLD1R.P (R5)(R9), [V28.S4]
	FMLA4(V29, V4, V5, V6, V7)
	VLD1R.P (R6)(R9), [V29.S4]
	FMLA4(V30, V8, V9, V10, V11)
	VLD1R.P (R7)(R9), [V30.S4]
	FMLA4(V28, V12, V13, V14, V15)
	FMLA4(V29, V16, V17, V18, V19)
	FMLA4(V30, V20, V21, V22, V23)
	SUB     $1, R1
	CBNZ    R1, loop

scale:
	FMOVS alpha+120(FP), F28
	VDUP  V28.S[0], V28.S4
	FMOVS $1.0, F29
	VDUP  V29.S[0], V29.S4
	MOVD  $6, R2             // rows in registers, the next of them in V0 to V3

store:
	// V24 to V27 gather the sum.
	ZERO4(V24, V25, V26, V27)
	CBZ  R15, noAdd
	VLD1 (R12), [V24.S4, V25.S4, V26.S4, V27.S4]

noAdd:
	VFMLA V28.S4, V0.S4, V24.S4
	VFMLA V28.S4, V1.S4, V25.S4
	VFMLA V28.S4, V2.S4, V26.S4
	VFMLA V28.S4, V3.S4, V27.S4
	CBZ   R14, noBias
	VLD1  (R14), [V0.S4, V1.S4, V2.S4, V3.S4]
	VFMLA V29.S4, V0.S4, V24.S4
	VFMLA V29.S4, V1.S4, V25.S4
	VFMLA V29.S4, V2.S4, V26.S4
	VFMLA V29.S4, V3.S4, V27.S4

noBias:
	VST1.P [V24.S4, V25.S4, V26.S4, V27.S4], (R12)(R13)
	SUB    $1, R0
	CBZ    R0, done
	SUB    $1, R2
	CMP    $5, R2
	BEQ    row1
	CMP    $4, R2
	BEQ    row2
	CMP    $3, R2
	BEQ    row3
	CMP    $2, R2
	BEQ    row4
	MOVE4(V20, V21, V22, V23)
	B      store

row1:
	MOVE4(V4, V5, V6, V7)
	B store

row2:
	MOVE4(V8, V9, V10, V11)
	B store

row3:
	MOVE4(V12, V13, V14, V15)
	B store

row4:
	MOVE4(V16, V17, V18, V19)
	B store

done:
	RET

// func gemvDotF32NEON(rows, k int, x []float32, xRow int, w []float32, wRow int, out []float32, outRow int)
//
// As in the tile, three rows of x are always multiplied.
TEXT ·gemvDotF32NEON(SB), NOSPLIT, $0-112
	DOTSTART(2)
	CBZ R1, reduce

loop:
	DOTX
	VLD1.P 16(R5), [V27.S4]
	VLD1.P 16(R6), [V28.S4]
	VLD1.P 16(R7), [V29.S4]
	VLD1.P 16(R8), [V30.S4]
	DOTS
	SUB    $4, R1
	CBNZ   R1, loop

reduce:
	SUM4(V0, V1, V2, V3)
	SUM4(V4, V5, V6, V7)
	SUM4(V8, V9, V10, V11)
	VST1.P [V0.S4], (R10)(R11)
	SUB    $1, R0
	CBZ    R0, done
	VST1.P [V4.S4], (R10)(R11)
	SUB    $1, R0
	CBZ    R0, done
	VST1   [V8.S4], (R10)

done:
	RET

// func gemvDotBF16NEON(rows, k int, x []float32, xRow int, w []uint16, wRow int, out []float32, outRow int)
//
// A bfloat16 above 16 zero bits, which interleaving with zeros makes, is a float32.
TEXT ·gemvDotBF16NEON(SB), NOSPLIT, $0-112
	DOTSTART(1)
	CBZ R1, reduce

loop:
	DOTX
	VLD1.P 8(R5), [V20.H4]
	VLD1.P 8(R6), [V21.H4]
	VLD1.P 8(R7), [V22.H4]
	VLD1.P 8(R8), [V23.H4]
	VZIP1  V20.H8, V16.H8, V27.H8
	VZIP1  V21.H8, V16.H8, V28.H8
	VZIP1  V22.H8, V16.H8, V29.H8
	VZIP1  V23.H8, V16.H8, V30.H8
	DOTS
	SUB    $4, R1
	CBNZ   R1, loop

reduce:
	SUM4(V0, V1, V2, V3)
	SUM4(V4, V5, V6, V7)
	SUM4(V8, V9, V10, V11)
	VST1.P [V0.S4], (R10)(R11)
	SUB    $1, R0
	CBZ    R0, done
	VST1.P [V4.S4], (R10)(R11)
	SUB    $1, R0
	CBZ    R0, done
	VST1   [V8.S4], (R10)

done:
	RET
