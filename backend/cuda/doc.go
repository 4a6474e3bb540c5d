// Package cuda is the op table on an NVIDIA GPU: "cuda" computes and stores in bfloat16 with float32 accumulation, "cuda-f32"
// in float32 without TF32.
//
// It needs the driver (libcuda), NVRTC and cuBLASLt as shared libraries and nothing else: no toolkit, no headers, no cgo. The
// libraries are opened at run time (library.go) and their functions called by address. Kernels are the .cu files under
// kernels/, embedded here, specialised by -D constants, compiled by NVRTC for the card found and cached on disk (compile.go).
//
// One locked operating-system thread owns the card (device.go). Ops are queued to it and return at once; everything runs in
// the order of one stream. Only Read, Sum and SumSquares wait. The ops of the table cannot fail, so what does go wrong on a
// card (memory runs out, a kernel faults) is a panic whose value is an *Error: it names CUDA's code, the op and its shapes.
// A fault is noticed after the op that caused it; NHA_CUDA_SYNC=1 waits after every launch, so that the op named is the one.
//
// Results are the same bits every time on the same card: no floating-point atomics, sums are cut by index.
package cuda
