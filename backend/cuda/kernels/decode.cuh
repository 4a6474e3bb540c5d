// What the kernels of a decoding step share. A step is one CUDA graph, recorded once for a number of rows; which sequence a row
// reads is a table on the card, so sequences come and go without another recording.
//
// Norms are folded into the products around them: with x' = x * gamma (elementwise, by the kernel that writes x) and
// rstd = (mean x^2 + epsilon)^-1/2 (a number of the row), W RMSNorm(x) = rstd W x'. So whoever writes x also leaves sums of squares, a
// few for every row, and whoever multiplies scales its results.

// Seat is a sequence on the card: where its state lies, its position, and how it samples. The host writes it when the sequence
// comes; a step moves it on.
struct Seat {
    u64 base;     // the state of all layers
    u64 seen;     // bits of the tokens that occurred, one for each of the vocabulary
    i64 position; // tokens read
    i64 capacity; // tokens that a full window has room for
    int token;    // the one to read next
    int top_k;    // 0: off
    u64 seed;
    u64 sample;
    float temperature; // 0: the likeliest token
    float top_p, min_p, penalty;
};

// Kernels of a step follow one another; each may begin while the one before ends, and what it reads of that one's results it
// reads after arrive(). What no kernel of the step writes before (weights, states, the table) may be read earlier.
__device__ __forceinline__ void arrive() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void release() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// The rows that products read lie in squares of 8 rows and 32 numbers, one after the other along a row, so that a warp reads the fragments
// of an instruction as 512 bytes in one piece. place_of is where number k of row b lies; width is that of a row.
__device__ __forceinline__ i64 place_of(int b, int k, int width) {
    return ((i64)(b / 8) * ((width + 31) / 32) + k / 32) * 256 + b % 8 * 32 + k % 32;
}

// stream reads 16 bytes that nobody reads again.
__device__ __forceinline__ uint4 stream(const void* p) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
}

__device__ __forceinline__ float silu(float x) { return x / (1.0f + __expf(-x)); }

__device__ __forceinline__ float rounded(float x) { return to_float(round_to<bf16>(x)); }
