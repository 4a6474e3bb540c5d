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

// The gradient adds the rows of an id in their order, without atomics on numbers: the first row of an id (embed_first finds it;
// the smallest row is the same whoever comes first) gathers all its rows.
extern "C" __global__ void embed_first(int* first, const int* ids, int rows) {
    int r = blockIdx.x * blockDim.x + threadIdx.x;
    if (r < rows) atomicMin(first + ids[r], r);
}

// A block is one row and blockDim.x * VEC columns; blocks of rows that are not an id's first have nothing to do. It looks
// through the later ids blockDim.x at a time and keeps those that match, in order.
extern "C" __global__ void __launch_bounds__(128) embed_backward(REAL* dtable, const REAL* dy, const int* ids, const int* first, int rows, int columns, int add) {
    __shared__ int list[128], counts[4];
    int row = blockIdx.x, id = ids[row];
    if (first[id] != row) return;
    int column = (blockIdx.y * blockDim.x + threadIdx.x) * VEC, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    bool mine = column < columns;
    float sum[VEC] = {};
    REAL* to = dtable + (i64)id * columns + column;
    if (add && mine) load<VEC>(to, sum);
    for (int base = row; base < rows; base += blockDim.x) {
        int r = base + threadIdx.x;
        bool match = r < rows && ids[r] == id;
        u32 votes = __ballot_sync(0xffffffffu, match);
        if (lane == 0) counts[warp] = __popc(votes);
        __syncthreads();
        int before = 0, total = 0;
        for (int w = 0; w < 4; w++) {
            if (w < warp) before += counts[w];
            total += counts[w];
        }
        if (match) list[before + __popc(votes & ((1u << lane) - 1))] = r;
        __syncthreads();
        if (mine)
            for (int i = 0; i < total; i++) {
                float g[VEC];
                load<VEC>(dy + (i64)list[i] * columns + column, g);
#pragma unroll
                for (int j = 0; j < VEC; j++) sum[j] += g[j];
            }
        __syncthreads();
    }
    if (mine) store<VEC>(to, sum);
}
