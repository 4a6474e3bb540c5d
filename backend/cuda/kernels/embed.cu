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

// The gradient adds the rows of an id in their order, without atomics on numbers. embed_count counts the rows of every id and finds
// the first, embed_list gives every first row a line in list and its id a stretch of places, embed_place puts the rows there. In
// what order lines, stretches and places are given out changes from run to run, and nothing in the result depends on it: a block
// of embed_backward takes one line after the other, sorts the rows of its id and adds them.
extern "C" __global__ void embed_count(int* first, int* counts, const int* ids, int rows) {
    int r = blockIdx.x * blockDim.x + threadIdx.x;
    if (r < rows) {
        atomicMin(first + ids[r], r);
        atomicAdd(counts + ids[r], 1);
    }
}

extern "C" __global__ void embed_list(int* list, int* offsets, int* used, const int* first, const int* counts, const int* ids, int rows) {
    int r = blockIdx.x * blockDim.x + threadIdx.x;
    if (r >= rows || first[ids[r]] != r) return;
    list[atomicAdd(used, 1)] = r;
    offsets[ids[r]] = atomicAdd(used + 1, counts[ids[r]]);
}

// embed_place moves an id's offset to the end of its stretch.
extern "C" __global__ void embed_place(int* places, int* offsets, const int* ids, int rows) {
    int r = blockIdx.x * blockDim.x + threadIdx.x;
    if (r < rows) places[atomicAdd(offsets + ids[r], 1)] = r;
}

const int groups = 4, threads = 32 * groups; // a group, one warp, takes every fourth row of an id; its lanes, 32 * VEC columns
const int looks = 8;                         // rows that a thread has on their way at a time
const int capacity = threads * looks;        // rows that a block sorts; an id with more looks through all ids instead

extern "C" __global__ void __launch_bounds__(threads) embed_backward(TABLE* dtable, const REAL* dy, const int* ids, const int* counts, const int* list,
                                                                      const int* offsets, const int* places, const int* used, int rows, int columns, int add) {
    __shared__ int unsorted[capacity], sorted[capacity], found[looks * groups];
    __shared__ float shared[groups][32 * VEC];
    int group = threadIdx.x / 32, lane = threadIdx.x % 32, column = (blockIdx.y * 32 + lane) * VEC;
    bool mine = column < columns;
    for (int item = blockIdx.x; item < used[0]; item += gridDim.x) {
        int row = list[item], id = ids[row], left = counts[id];
        float sum[VEC] = {};
        auto gather = [&](int n) {
            for (int i = group; mine && i < n; i += groups * looks) {
                float g[looks][VEC];
#pragma unroll
                for (int k = 0; k < looks; k++)
                    if (i + k * groups < n) load<VEC>(dy + (i64)sorted[i + k * groups] * columns + column, g[k]);
#pragma unroll
                for (int k = 0; k < looks; k++)
                    if (i + k * groups < n) {
#pragma unroll
                        for (int j = 0; j < VEC; j++) sum[j] += g[k][j];
                    }
            }
        };
        if (left <= capacity) {
            int from = offsets[id] - left;
            for (int i = threadIdx.x; i < left; i += threads) unsorted[i] = places[from + i];
            __syncthreads();
            for (int i = threadIdx.x; i < left; i += threads) {
                int before = 0;
                for (int j = 0; j < left; j++) before += unsorted[j] < unsorted[i];
                sorted[before] = unsorted[i];
            }
            __syncthreads();
            gather(left);
        } else {
            for (int base = row; left > 0; base += capacity) {
                u32 votes[looks];
#pragma unroll
                for (int k = 0; k < looks; k++) {
                    int r = base + k * threads + threadIdx.x;
                    votes[k] = __ballot_sync(0xffffffffu, r < rows && ids[r] == id);
                    if (lane == k) found[k * groups + group] = __popc(votes[k]);
                }
                __syncthreads();
                int total = 0, before = 0;
#pragma unroll
                for (int k = 0; k < looks; k++) {
                    for (int w = 0; w < groups; w++) {
                        if (w == group) before = total;
                        total += found[k * groups + w];
                    }
                    if (votes[k] >> lane & 1) sorted[before + __popc(votes[k] & ((1u << lane) - 1))] = base + k * threads + threadIdx.x;
                }
                __syncthreads();
                gather(total);
                left -= total;
            }
        }
#pragma unroll
        for (int j = 0; j < VEC; j++) shared[group][lane * VEC + j] = sum[j];
        __syncthreads();
        if (group == 0 && mine) {
            TABLE* to = dtable + (i64)id * columns + column;
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
