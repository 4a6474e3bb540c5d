#include "decode.cuh"

// The beginning of a decoding step: the row of the embedding of every sequence's next token, as the residual stream in float32, times the
// first norm's weight, and its sum of squares. A block a row. The token is noted as seen.

struct Embedding {
    const u64* order; // the rows' seats, 0 where a row is idle
    const bf16* table;
    const bf16* gamma;
    float* x;
    bf16* scaled;
    float* sums;
    int width;
};

extern "C" __global__ void __launch_bounds__(256) decode_embed(const __grid_constant__ Embedding a) {
    release();
    arrive();
    const Seat* seat = (const Seat*)a.order[blockIdx.x];
    float sum = 0.0f;
    if (seat) {
        int token = seat->token;
        const bf16* from = a.table + (i64)token * a.width;
        i64 row = (i64)blockIdx.x * a.width;
        for (int j = threadIdx.x; j < a.width; j += 256) {
            float v = to_float(from[j]);
            a.x[row + j] = v;
            a.scaled[place_of(blockIdx.x, j, a.width)] = round_to<bf16>(v * to_float(a.gamma[j]));
            sum += v * v;
        }
        if (threadIdx.x == 0) ((u32*)seat->seen)[token / 32] |= 1u << token % 32;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) a.sums[blockIdx.x] = sum;
}
