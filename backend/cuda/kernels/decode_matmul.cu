#include "decode.cuh"

// Products of a decoding step: y[b, r] = rstd[b] sum_k W[r, k] x[b, k] + bias[r] for a few rows b of x, bound by reading W once.
// The tensor core takes 16 rows of W as its A and 8 rows of x as its B. Since the order of k does not matter, a lane reads 8 numbers that
// lie side by side and they serve as the fragments of two instructions; so W goes from memory to registers without a stop.
//
// A warp has ROW_TILES tiles of 16 rows and COLUMN_TILES of 8 columns (rows of x); WARPS_K warps share the sum over k, WARPS_ROWS
// take other rows. The first DEPTH loads of W are on their way before the kernel waits for x.
//
// KIND: 0 the projections of attention, up to four matrices one after the other, their rows side by side in y; 1 gate and up, y = silu(gate) up;
// 2 added to the residual stream x, for which it leaves x gamma and sums of squares; 3 the head.

struct Matmul {
    const bf16* weight[4];
    const bf16* bias[4]; // may be null
    int rows[4];
    const bf16* x;        // [batch, INNER]
    const float* squares; // [batch, parts] of the norm before; null: none
    void* y;
    const bf16* gamma; // KIND 2: of the norm that follows
    bf16* scaled;
    float* sums; // [batch, blocks in x]
    int parts, batch, stride, silu;
    float inverse, epsilon; // rstd = (inverse sum + epsilon)^-1/2
};

const int steps = (INNER + 31) / 32, turns = (steps + WARPS_K - 1) / WARPS_K; // of 32 numbers along k, and a warp's share
const int depth = turns < DEPTH ? turns : DEPTH;
const int columns = 8 * COLUMN_TILES, warps = WARPS_K * WARPS_ROWS;

// value is one result of a tile: its row of W and of y.
struct Tile {
    const bf16* low;  // rows g and g + 8
    const bf16* high;
    const bf16* bias;
    int first, rows, matrix, offset;
};

__device__ __forceinline__ Tile tile_of(const Matmul& a, int index, int lane) {
    Tile t;
    t.matrix = 0, t.offset = 0;
    if (KIND == 0) {
        while (t.matrix < 3 && index >= (a.rows[t.matrix] + 15) / 16) {
            index -= (a.rows[t.matrix] + 15) / 16;
            t.offset += a.rows[t.matrix++];
        }
    }
    t.first = index * 16, t.rows = a.rows[t.matrix], t.bias = a.bias[t.matrix];
    int low = min(t.first + lane / 4, t.rows - 1), high = min(t.first + lane / 4 + 8, t.rows - 1);
    t.low = a.weight[t.matrix] + (i64)max(low, 0) * INNER;
    t.high = a.weight[t.matrix] + (i64)max(high, 0) * INNER;
    return t;
}

extern "C" __global__ void __launch_bounds__(32 * warps) decode_matmul(const __grid_constant__ Matmul a) {
    __shared__ float4 parts[WARPS_K > 1 ? WARPS_K / 2 * WARPS_ROWS * ROW_TILES * COLUMN_TILES * 32 : 1];
    __shared__ float rstd[columns], sums[KIND == 2 ? WARPS_ROWS * columns : 1];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, of_k = warp % WARPS_K, of_rows = warp / WARPS_K;
    int column = blockIdx.y * columns;
    Tile tiles[ROW_TILES];
#pragma unroll
    for (int r = 0; r < ROW_TILES; r++) {
        int group = blockIdx.x * WARPS_ROWS + of_rows;
        if (KIND == 1) {
            tiles[r] = tile_of(a, group, lane);
            if (r == 1) { // the same rows of up
                tiles[1].bias = a.bias[1];
                tiles[1].low = a.weight[1] + (tiles[0].low - a.weight[0]);
                tiles[1].high = a.weight[1] + (tiles[0].high - a.weight[0]);
            }
        } else {
            tiles[r] = tile_of(a, group * ROW_TILES + r, lane);
        }
    }
    int from = lane % 4 * 8;
    uint4 w[depth][ROW_TILES][2];
    auto fetch = [&](uint4 (&to)[ROW_TILES][2], int turn) {
        int k = (turn * WARPS_K + of_k) * 32 + from;
#pragma unroll
        for (int r = 0; r < ROW_TILES; r++) {
            to[r][0] = to[r][1] = make_uint4(0, 0, 0, 0);
            if (k < INNER) to[r][0] = stream(tiles[r].low + k), to[r][1] = stream(tiles[r].high + k);
        }
    };
#pragma unroll
    for (int i = 0; i < depth; i++) fetch(w[i], i);
    release();
    arrive();

    float sum[ROW_TILES][COLUMN_TILES][4] = {};
    const bf16* x = a.x + (i64)(column + lane / 4) * INNER;
#pragma unroll 1
    for (int base = 0; base < turns; base += depth) {
#pragma unroll
        for (int i = 0; i < depth; i++) {
            int turn = base + i, k = (turn * WARPS_K + of_k) * 32 + from;
            if (turns % depth == 0 || turn < turns) {
                uint4 v[COLUMN_TILES];
#pragma unroll
                for (int j = 0; j < COLUMN_TILES; j++) {
                    v[j] = make_uint4(0, 0, 0, 0);
                    if (k < INNER) v[j] = *(const uint4*)(x + (i64)j * 8 * INNER + k);
                }
#pragma unroll
                for (int r = 0; r < ROW_TILES; r++) {
                    u32 first[4] = {w[i][r][0].x, w[i][r][1].x, w[i][r][0].y, w[i][r][1].y};
                    u32 second[4] = {w[i][r][0].z, w[i][r][1].z, w[i][r][0].w, w[i][r][1].w};
#pragma unroll
                    for (int j = 0; j < COLUMN_TILES; j++) {
                        mma_bf16(sum[r][j], first, v[j].x, v[j].y);
                        mma_bf16(sum[r][j], second, v[j].z, v[j].w);
                    }
                }
                if (turn + depth < turns) fetch(w[i], turn + depth);
            }
        }
    }

    if (a.squares) { // rstd, a warp a row
        for (int c = warp; c < columns; c += warps) {
            float s = 0.0f;
            if (column + c < a.batch)
                for (int p = lane; p < a.parts; p += 32) s += a.squares[(i64)(column + c) * a.parts + p];
            s = warp_sum(s);
            if (lane == 0) rstd[c] = rsqrtf(s * a.inverse + a.epsilon);
        }
    } else {
        for (int c = threadIdx.x; c < columns; c += 32 * warps) rstd[c] = 1.0f;
    }
    // The warps of a sum add up in halves.
    auto slot = [&](int half, int r, int j) -> float4& { return parts[(((of_k % half) * WARPS_ROWS + of_rows) * ROW_TILES * COLUMN_TILES + r * COLUMN_TILES + j) * 32 + lane]; };
#pragma unroll
    for (int half = WARPS_K / 2; half > 0; half /= 2) {
        if (of_k >= half && of_k < 2 * half) {
#pragma unroll
            for (int r = 0; r < ROW_TILES; r++)
#pragma unroll
                for (int j = 0; j < COLUMN_TILES; j++) slot(half, r, j) = make_float4(sum[r][j][0], sum[r][j][1], sum[r][j][2], sum[r][j][3]);
        }
        __syncthreads();
        if (of_k < half) {
#pragma unroll
            for (int r = 0; r < ROW_TILES; r++)
#pragma unroll
                for (int j = 0; j < COLUMN_TILES; j++) {
                    float4 o = slot(half, r, j);
                    sum[r][j][0] += o.x, sum[r][j][1] += o.y, sum[r][j][2] += o.z, sum[r][j][3] += o.w;
                }
        }
        __syncthreads();
    }
    if (WARPS_K == 1) __syncthreads();
    if (of_k == 0) {
#pragma unroll
        for (int j = 0; j < COLUMN_TILES; j++) {
#pragma unroll
            for (int odd = 0; odd < 2; odd++) {
                int c = j * 8 + lane % 4 * 2 + odd, b = column + c;
                float scale = rstd[c], square = 0.0f;
                bool here = b < a.batch;
#pragma unroll
                for (int r = 0; r < (KIND == 1 ? 1 : ROW_TILES); r++) {
#pragma unroll
                    for (int h = 0; h < 2; h++) {
                        const Tile& t = tiles[r];
                        int row = t.first + lane / 4 + 8 * h;
                        if (!here || row >= t.rows) continue;
                        float y = sum[r][j][2 * h + odd] * scale;
                        if (t.bias) y += to_float(t.bias[row]);
                        if constexpr (KIND == 0) {
                            ((float*)a.y)[(i64)b * a.stride + t.offset + row] = t.matrix == a.silu ? silu(y) : y;
                        } else if constexpr (KIND == 1) {
                            float up = sum[ROW_TILES - 1][j][2 * h + odd] * scale;
                            if (tiles[ROW_TILES - 1].bias) up += to_float(tiles[ROW_TILES - 1].bias[row]);
                            ((bf16*)a.y)[(i64)b * a.stride + row] = round_to<bf16>(silu(y) * up);
                        } else if constexpr (KIND == 2) {
                            float* to = (float*)a.y + (i64)b * a.stride + row;
                            y += *to;
                            *to = y;
                            a.scaled[(i64)b * a.stride + row] = round_to<bf16>(y * to_float(a.gamma[row]));
                            square += y * y;
                        } else {
                            ((float*)a.y)[(i64)b * a.stride + row] = y;
                        }
                    }
                }
                if constexpr (KIND == 2) {
#pragma unroll
                    for (int i = 4; i < 32; i *= 2) square += __shfl_xor_sync(0xffffffffu, square, i);
                    if (lane < 4) sums[of_rows * columns + c] = square;
                }
            }
        }
    }
    if constexpr (KIND == 2) {
        __syncthreads();
        for (int c = threadIdx.x; c < columns && column + c < a.batch; c += 32 * warps) {
            float s = 0.0f;
            for (int i = 0; i < WARPS_ROWS; i++) s += sums[i * columns + c];
            a.sums[(i64)(column + c) * gridDim.x + blockIdx.x] = s;
        }
    }
}
