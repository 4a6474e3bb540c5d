// Table look-up and its gradient: y[r] = table[ids[r]], dtable[ids[r]] += dy[r]. REAL is the op's type, TABLE the table's, VEC
// the numbers a thread moves at a time; columns is a multiple of it.

extern "C" __global__ void embed(REAL* y, const TABLE* table, const int* ids, int columns) {
    i64 row = blockIdx.x;
    const TABLE* from = table + (i64)ids[row] * columns;
    for (int j = threadIdx.x * VEC; j < columns; j += blockDim.x * VEC) {
        float v[VEC];
        load<VEC>(from + j, v);
        store<VEC>(y + row * columns + j, v);
    }
}

// The gradient adds the rows of an id in an order that is fixed, without atomics on numbers. embed_first finds the first row of
// every id and how many there are (integers, the same whoever comes first); the block of that row then gathers all of them.
extern "C" __global__ void embed_first(int* first, int* counts, const int* ids, int rows) {
    int r = blockIdx.x * blockDim.x + threadIdx.x;
    if (r < rows) {
        atomicMin(first + ids[r], r);
        atomicAdd(counts + ids[r], 1);
    }
}

const int lanes = 128, groups = 4, threads = lanes * groups; // a group takes every fourth row of the list; its lanes, lanes * VEC columns
const int looks = 4;                                         // ids that a thread compares at a time

extern "C" __global__ void __launch_bounds__(threads) embed_backward(REAL* dtable, const REAL* dy, const int* ids, const int* first, const int* counts,
                                                                      int rows, int columns, int add) {
    __shared__ int list[threads * looks], found[looks * threads / 32];
    __shared__ float shared[groups - 1][lanes * VEC];
    int row = blockIdx.x, id = ids[row];
    if (first[id] != row) return;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = threadIdx.x / lanes;
    int column = (blockIdx.y * lanes + threadIdx.x % lanes) * VEC;
    bool mine = column < columns;
    float sum[VEC] = {};
    int left = counts[id];
    for (int base = row; left > 0; base += threads * looks) {
        u32 votes[looks], any = 0;
#pragma unroll
        for (int k = 0; k < looks; k++) {
            int r = base + k * threads + threadIdx.x;
            votes[k] = __ballot_sync(0xffffffffu, r < rows && ids[r] == id);
            any |= votes[k];
        }
        if (!__syncthreads_or(any)) continue;
        if (lane < looks) {
#pragma unroll
            for (int k = 0; k < looks; k++)
                if (lane == k) found[k * threads / 32 + warp] = __popc(votes[k]);
        }
        __syncthreads();
        int total = 0, before = 0;
#pragma unroll
        for (int k = 0; k < looks; k++) {
            for (int w = 0; w < threads / 32; w++) {
                if (w == warp) before = total;
                total += found[k * threads / 32 + w];
            }
            if (votes[k] >> lane & 1) list[before + __popc(votes[k] & ((1u << lane) - 1))] = base + k * threads + threadIdx.x;
        }
        __syncthreads();
        if (mine) {
            for (int i = group; i < total; i += groups * looks) { // several loads on their way at a time, added in order
                float g[looks][VEC];
#pragma unroll
                for (int k = 0; k < looks; k++)
                    if (i + k * groups < total) load<VEC>(dy + (i64)list[i + k * groups] * columns + column, g[k]);
#pragma unroll
                for (int k = 0; k < looks; k++)
                    if (i + k * groups < total) {
#pragma unroll
                        for (int j = 0; j < VEC; j++) sum[j] += g[k][j];
                    }
            }
        }
        left -= total;
    }
    float* part = shared[group > 0 ? group - 1 : 0] + threadIdx.x % lanes * VEC;
    if (group > 0) {
#pragma unroll
        for (int j = 0; j < VEC; j++) part[j] = sum[j];
    }
    __syncthreads();
    if (group > 0 || !mine) return;
    REAL* to = dtable + (i64)id * columns + column;
    float old[VEC] = {};
    if (add) load<VEC>(to, old);
#pragma unroll
    for (int j = 0; j < VEC; j++) {
        for (int g = 0; g < groups - 1; g++) sum[j] += part[g * lanes * VEC + j];
        sum[j] += old[j];
    }
    store<VEC>(to, sum);
}
