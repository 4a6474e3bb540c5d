#include "decode.cuh"

// Products of a decoding step: y[b, r] = rstd[b] sum_k W[r, k] x[b, k] + bias[r] for a few rows b of x, bound by reading W once.
// The tensor core takes 16 rows of W as its A and 8 rows of x as its B. Since the order of k does not matter, a lane reads 8 numbers that
// lie side by side and they serve as the fragments of two instructions; so W goes from memory to registers without a stop.
//
// A warp has ROW_TILES tiles of 16 rows and COLUMN_TILES of 8 columns (rows of x); WARPS_K warps share the sum over k, WARPS_ROWS
// take other rows; where they add to the residual stream (KIND 2), a block has 16 or 32 rows. The first DEPTH loads of W are on their way
// before the kernel waits for x.
//
// KIND: 0 the projections of attention, up to four matrices one after the other, their rows side by side in y; 1 gate and up, y = silu(gate) up;
// 2 added to the residual stream x, for which it leaves x gamma and sums of squares; 3 the head.

struct Matmul {
    const bf16* weight[4];
    const bf16* bias[4]; // may be null
    int rows[4];
    const bf16* x;        // [batch, INNER] in squares, zeros where those reach beyond
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
const int ahead = COLUMN_TILES > 2 ? (turns < 2 ? turns : 2) : turns < 4 ? turns : 4; // turns of x on their way
constexpr int multiple(int a, int b) {
    int n = a;
    while (n % b != 0) n += a;
    return n;
}
const int columns = 8 * COLUMN_TILES, warps = WARPS_K * WARPS_ROWS, threads = 32 * warps;
const int rows_of_block = 16 * ROW_TILES * WARPS_ROWS, line = rows_of_block + 4; // a column of sums in shared memory, free of bank conflicts
const int results = (KIND == 1 ? rows_of_block / 2 : rows_of_block) * columns, share = (results + threads - 1) / threads;
const int shares = (columns + warps - 1) / warps; // columns whose rstd a warp computes

// Tile is 16 rows of a matrix, and where they come in y.
struct Tile {
    int first, matrix, offset;
};

__device__ __forceinline__ Tile tile_of(const Matmul& a, int index) {
    Tile t = {0, 0, 0};
    if (KIND == 0) {
        while (t.matrix < 3 && index >= (a.rows[t.matrix] + 15) / 16) {
            index -= (a.rows[t.matrix] + 15) / 16;
            t.offset += a.rows[t.matrix++];
        }
    }
    t.first = index * 16;
    return t;
}

// block_tile is a block's n-th tile; those of gate and up go in pairs.
__device__ __forceinline__ Tile block_tile(const Matmul& a, int n) {
    if (KIND != 1) return tile_of(a, blockIdx.x * WARPS_ROWS * ROW_TILES + n);
    Tile t = tile_of(a, blockIdx.x * WARPS_ROWS + n / 2);
    t.matrix = n % 2;
    return t;
}

extern "C" __global__ void __launch_bounds__(threads) decode_matmul(const __grid_constant__ Matmul a) {
    extern __shared__ __align__(16) float sums[]; // [WARPS_K][columns][line]
    __shared__ float rstd[columns];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, of_k = warp % WARPS_K, of_rows = warp / WARPS_K;
    int column = blockIdx.y * columns;
    const bf16* low[ROW_TILES]; // rows g and g + 8 of a tile; what lies beyond the matrix is the last row again, and not stored
    const bf16* high[ROW_TILES];
#pragma unroll
    for (int r = 0; r < ROW_TILES; r++) {
        Tile t = block_tile(a, of_rows * ROW_TILES + r);
        int last = a.rows[t.matrix] - 1;
        low[r] = a.weight[t.matrix] + (i64)min(t.first + lane / 4, last) * INNER;
        high[r] = a.weight[t.matrix] + (i64)min(t.first + lane / 4 + 8, last) * INNER;
    }
    int from = lane % 4 * 8;
    auto place = [&](int turn) { return (turn * WARPS_K + of_k) * 32 + from; };
    uint4 w[depth][ROW_TILES][2];
    auto fetch = [&](uint4 (&to)[ROW_TILES][2], int k) {
#pragma unroll
        for (int r = 0; r < ROW_TILES; r++) {
            to[r][0] = to[r][1] = make_uint4(0, 0, 0, 0);
            if (k < INNER) to[r][0] = stream(low[r] + k), to[r][1] = stream(high[r] + k);
        }
    };
#pragma unroll
    for (int i = 0; i < depth; i++) fetch(w[i], place(i));
    release();
    arrive();

    const bf16* x = a.x + (i64)(column / 8) * steps * 256 + lane * 8;
    uint4 v[ahead][COLUMN_TILES];
    auto read = [&](uint4 (&to)[COLUMN_TILES], int turn) {
        int at = turn * WARPS_K + of_k;
#pragma unroll
        for (int j = 0; j < COLUMN_TILES; j++) {
            to[j] = make_uint4(0, 0, 0, 0);
            if (at < steps) to[j] = *(const uint4*)(x + ((i64)j * steps + at) * 256);
        }
    };
#pragma unroll
    for (int i = 0; i < ahead; i++) read(v[i], i);
    // The residual stream and the sums of squares come meanwhile.
    float old[share] = {};
    if constexpr (KIND == 2) {
#pragma unroll
        for (int n = 0; n < share; n++) {
            int i = n * threads + threadIdx.x, row = blockIdx.x * rows_of_block + i % rows_of_block, b = column + i / rows_of_block;
            if (i < results && row < a.rows[0] && b < a.batch) old[n] = ((const float*)a.y)[(i64)b * a.stride + row];
        }
    }
    float square[shares] = {};
    if (a.squares) {
#pragma unroll 4
        for (int p = lane; p < a.parts; p += 32) {
#pragma unroll
            for (int n = 0; n < shares; n++) {
                int b = column + n * warps + warp;
                if (b < a.batch && n * warps + warp < columns) square[n] += a.squares[(i64)b * a.parts + p];
            }
        }
    }

    float sum[ROW_TILES][COLUMN_TILES][4] = {};
    const int step = multiple(depth, ahead); // so that w and v are registers with numbers
#pragma unroll 1
    for (int base = 0; base < turns; base += step) {
#pragma unroll
        for (int i = 0; i < step; i++) {
            int turn = base + i;
            if (turn < turns) {
#pragma unroll
                for (int r = 0; r < ROW_TILES; r++) {
                    uint4 g = w[i % depth][r][0], h = w[i % depth][r][1];
                    u32 first[4] = {g.x, h.x, g.y, h.y}, second[4] = {g.z, h.z, g.w, h.w};
#pragma unroll
                    for (int j = 0; j < COLUMN_TILES; j++) {
                        mma_bf16(sum[r][j], first, v[i % ahead][j].x, v[i % ahead][j].y);
                        mma_bf16(sum[r][j], second, v[i % ahead][j].z, v[i % ahead][j].w);
                    }
                }
                if (turn + ahead < turns) read(v[i % ahead], turn + ahead);
                if (turn + depth < turns) fetch(w[i % depth], place(turn + depth));
            }
        }
    }

#pragma unroll
    for (int n = 0; n < shares; n++) {
        float s = warp_sum(square[n]);
        if (lane == 0 && n * warps + warp < columns) rstd[n * warps + warp] = a.squares ? rsqrtf(s * a.inverse + a.epsilon) : 1.0f;
    }
#pragma unroll
    for (int r = 0; r < ROW_TILES; r++)
#pragma unroll
        for (int j = 0; j < COLUMN_TILES; j++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                sums[(of_k * columns + j * 8 + lane % 4 * 2 + i % 2) * line + (of_rows * ROW_TILES + r) * 16 + lane / 4 + i / 2 * 8] = sum[r][j][i];
    __syncthreads();
    auto total = [&](int row, int c) {
        float s = 0.0f;
#pragma unroll
        for (int k = 0; k < WARPS_K; k++) s += sums[(k * columns + c) * line + row];
        return s * rstd[c];
    };
    // Every thread has some results, neighbours in memory.
#pragma unroll
    for (int n = 0; n < share; n++) {
        int i = n * threads + threadIdx.x;
        if (results % threads != 0 && i >= results) break;
        if constexpr (KIND == 1) {
            const int half = rows_of_block / 2;
            int r = i % half, c = i / half, b = column + c, row = blockIdx.x * half + r, local = r / 16 * 32 + r % 16;
            if (row >= a.rows[0] || b >= a.batch) continue;
            float gate = total(local, c), up = total(local + 16, c);
            if (a.bias[0]) gate += to_float(a.bias[0][row]);
            if (a.bias[1]) up += to_float(a.bias[1][row]);
            ((bf16*)a.y)[place_of(b, row, a.stride)] = round_to<bf16>(silu(gate) * up);
        } else {
            int r = i % rows_of_block, c = i / rows_of_block, b = column + c;
            Tile t = block_tile(a, r / 16);
            int row = t.first + r % 16;
            bool here = row < a.rows[t.matrix] && b < a.batch;
            float y = here ? total(r, c) : 0.0f;
            if (here && a.bias[t.matrix]) y += to_float(a.bias[t.matrix][row]);
            i64 at = (i64)b * a.stride + t.offset + row;
            if constexpr (KIND == 2) {
                y += old[n];
                if (here) {
                    ((float*)a.y)[at] = y;
                    a.scaled[place_of(b, row, a.stride)] = round_to<bf16>(y * to_float(a.gamma[row]));
                }
                float s = here ? y * y : 0.0f; // over the block's rows of a column, 16 or 32 neighbouring threads
#pragma unroll
                for (int k = rows_of_block / 2; k > 0; k /= 2) s += __shfl_xor_sync(0xffffffffu, s, k);
                if (r == 0 && b < a.batch) a.sums[(i64)b * gridDim.x + blockIdx.x] = s;
            } else if (here) {
                ((float*)a.y)[at] = KIND == 0 && t.matrix == a.silu ? silu(y) : y;
            }
        }
    }
}
