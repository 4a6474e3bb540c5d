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
// every id and how many there are (integers, the same whoever comes first), embed_list lists the first rows, in any order, and a
// block of embed_backward takes one after the other and gathers the rows of its id.
extern "C" __global__ void embed_first(int* first, int* counts, const int* ids, int rows) {
    int r = blockIdx.x * blockDim.x + threadIdx.x;
    if (r < rows) {
        atomicMin(first + ids[r], r);
        atomicAdd(counts + ids[r], 1);
    }
}

extern "C" __global__ void embed_list(int* list, int* listed, const int* first, const int* ids, int rows) {
    int r = blockIdx.x * blockDim.x + threadIdx.x;
    if (r < rows && first[ids[r]] == r) list[atomicAdd(listed, 1)] = r;
}

const int groups = 16, threads = 32 * groups; // a group, one warp, takes every 16th row of an id; its lanes, 32 * VEC columns
const int looks = 4;                          // ids that a thread compares, and rows that it has on their way, at a time

extern "C" __global__ void __launch_bounds__(threads) embed_backward(REAL* dtable, const REAL* dy, const int* ids, const int* counts, const int* list,
                                                                      const int* listed, int rows, int columns, int add) {
    __shared__ int matches[threads * looks], found[looks * groups];
    __shared__ float shared[groups][32 * VEC];
    int group = threadIdx.x / 32, lane = threadIdx.x % 32, column = (blockIdx.y * 32 + lane) * VEC;
    bool mine = column < columns;
    for (int item = blockIdx.x; item < *listed; item += gridDim.x) {
        int row = list[item], id = ids[row], left = counts[id];
        float sum[VEC] = {};
        for (int base = row; left > 0; base += threads * looks) {
            u32 votes[looks], any = 0;
#pragma unroll
            for (int k = 0; k < looks; k++) {
                int r = base + k * threads + threadIdx.x;
                votes[k] = __ballot_sync(0xffffffffu, r < rows && ids[r] == id);
                any |= votes[k];
            }
            if (!__syncthreads_or(any)) continue;
#pragma unroll
            for (int k = 0; k < looks; k++)
                if (lane == k) found[k * groups + group] = __popc(votes[k]);
            __syncthreads();
            int total = 0, before = 0;
#pragma unroll
            for (int k = 0; k < looks; k++) {
                for (int w = 0; w < groups; w++) {
                    if (w == group) before = total;
                    total += found[k * groups + w];
                }
                if (votes[k] >> lane & 1) matches[before + __popc(votes[k] & ((1u << lane) - 1))] = base + k * threads + threadIdx.x;
            }
            __syncthreads();
            if (mine) {
                for (int i = group; i < total; i += groups * looks) {
                    float g[looks][VEC];
#pragma unroll
                    for (int k = 0; k < looks; k++)
                        if (i + k * groups < total) load<VEC>(dy + (i64)matches[i + k * groups] * columns + column, g[k]);
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
#pragma unroll
        for (int j = 0; j < VEC; j++) shared[group][lane * VEC + j] = sum[j];
        __syncthreads();
        if (group == 0 && mine) {
            REAL* to = dtable + (i64)id * columns + column;
            float old[VEC] = {};
            if (add) load<VEC>(to, old);
#pragma unroll
            for (int j = 0; j < VEC; j++) {
                for (int g = 1; g < groups; g++) sum[j] += shared[g][lane * VEC + j];
                sum[j] += old[j];
            }
            store<VEC>(to, sum);
        }
        __syncthreads();
    }
}
