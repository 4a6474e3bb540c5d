// RMS norm over rows of COLUMNS numbers, a warp a row, and its gradient:
//
//     y = x rstd weight,  rstd = (mean(x^2) + epsilon)^-1/2
//     dx = rstd (g - x rstd^2 mean(g x)), g = dy weight;  dweight = sum over rows of dy x rstd
//
// REAL is the element type, STATISTIC that of rstd (float32 keeps dx where a row is one number repeated), VEC the numbers a lane moves at a
// time; COLUMNS is a multiple of it. A lane has the same columns of every row.

const int steps = (COLUMNS + 32 * VEC - 1) / (32 * VEC); // vectors of a row that a lane holds
const int warps = 4;
const bool kept = steps * VEC <= 40; // backward holds its rows in registers; longer ones it reads twice

// reciprocal_root is x^-1/2 to the last bit but rarely: one Newton step whose residual 1 - x s^2 is exact.
__device__ __forceinline__ float reciprocal_root(float x) {
    float s = rsqrtf(x), h = x * s;
    return fmaf(0.5f * s, fmaf(-h, s, 1.0f) - fmaf(x, s, -h) * s, s);
}

extern "C" __global__ void __launch_bounds__(32 * warps) rms_norm(REAL* y, STATISTIC* rstd, const REAL* x, const REAL* weight, i64 rows, float epsilon) {
    i64 row = (i64)blockIdx.x * warps + threadIdx.x / 32;
    int lane = threadIdx.x % 32;
    if (row >= rows) return;
    float v[steps][VEC], sum = 0.0f;
#pragma unroll
    for (int s = 0; s < steps; s++) {
        int j = (s * 32 + lane) * VEC;
        if (j < COLUMNS) {
            load<VEC>(x + row * COLUMNS + j, v[s]);
#pragma unroll
            for (int i = 0; i < VEC; i++) sum += v[s][i] * v[s][i];
        }
    }
    float scale = reciprocal_root(warp_sum(sum) / COLUMNS + epsilon);
    if (lane == 0) rstd[row] = round_to<STATISTIC>(scale);
#pragma unroll
    for (int s = 0; s < steps; s++) {
        int j = (s * 32 + lane) * VEC;
        if (j < COLUMNS) {
            float w[VEC];
            load<VEC>(weight + j, w);
#pragma unroll
            for (int i = 0; i < VEC; i++) v[s][i] *= scale * w[i];
            store<VEC>(y + row * COLUMNS + j, v[s]);
        }
    }
}

// rms_norm_backward takes rows in turn, so that a lane can keep the sums of its columns; each block leaves its own in a row of
// partial. dx and partial may be null.
extern "C" __global__ void __launch_bounds__(32 * warps) rms_norm_backward(REAL* dx, float* partial, const REAL* dy, const REAL* x, const REAL* weight,
                                                                            const STATISTIC* rstd, i64 rows, int add) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float sums[steps][VEC] = {};
    for (i64 row = (i64)blockIdx.x * warps + warp; row < rows; row += (i64)gridDim.x * warps) {
        float scale = to_float(rstd[row]), mean = 0.0f;
        float xs[kept ? steps : 1][VEC], gradients[kept ? steps : 1][VEC];
#pragma unroll
        for (int s = 0; s < steps; s++) {
            int j = (s * 32 + lane) * VEC;
            if (j < COLUMNS) {
                float(&v)[VEC] = xs[kept ? s : 0], (&g)[VEC] = gradients[kept ? s : 0], w[VEC];
                load<VEC>(x + row * COLUMNS + j, v);
                load<VEC>(dy + row * COLUMNS + j, g);
                load<VEC>(weight + j, w);
#pragma unroll
                for (int i = 0; i < VEC; i++) {
                    sums[s][i] += g[i] * v[i] * scale;
                    mean += g[i] * w[i] * v[i];
                }
            }
        }
        if (!dx) continue;
        mean = warp_sum(mean) / COLUMNS;
        // rstd^2 mean with its rounding error: where x is nearly one number, g and x rstd^2 mean(g x) nearly cancel.
        float square = scale * scale, high = square * mean, low = fmaf(square, mean, -high) + fmaf(scale, scale, -square) * mean;
#pragma unroll
        for (int s = 0; s < steps; s++) {
            int j = (s * 32 + lane) * VEC;
            if (j < COLUMNS) {
                float(&v)[VEC] = xs[kept ? s : 0], (&g)[VEC] = gradients[kept ? s : 0], w[VEC];
                if (!kept) {
                    load<VEC>(x + row * COLUMNS + j, v);
                    load<VEC>(dy + row * COLUMNS + j, g);
                }
                load<VEC>(weight + j, w);
#pragma unroll
                for (int i = 0; i < VEC; i++) g[i] = scale * (fmaf(-v[i], high, g[i] * w[i]) - v[i] * low);
                if (add) {
                    load<VEC>(dx + row * COLUMNS + j, v);
#pragma unroll
                    for (int i = 0; i < VEC; i++) g[i] += v[i];
                }
                store<VEC>(dx + row * COLUMNS + j, g);
            }
        }
    }
    if (!partial) return;
    __shared__ float shared[warps][32 * VEC];
#pragma unroll
    for (int s = 0; s < steps; s++) {
        __syncthreads();
#pragma unroll
        for (int i = 0; i < VEC; i++) shared[warp][lane * VEC + i] = sums[s][i];
        __syncthreads();
        for (int c = threadIdx.x; c < 32 * VEC; c += 32 * warps) {
            int j = s * 32 * VEC + c;
            if (j < COLUMNS) {
                float sum = 0.0f;
                for (int w = 0; w < warps; w++) sum += shared[w][c];
                partial[(i64)blockIdx.x * COLUMNS + j] = sum;
            }
        }
    }
}
