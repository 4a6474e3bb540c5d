// Sums in two stages, cut by index so that the bits do not depend on which block comes first: over rows (column_sums, then
// add_partials) and over everything (sum_blocks, then sum_all, in float64). REAL is the element type, TOTAL that of
// the sums over rows, VEC the numbers that sum_blocks moves at a time.

// column_sums: blocks of 32 columns by 8 threads take chunk rows; partial[blockIdx.y] gets their sums.
extern "C" __global__ void __launch_bounds__(256) column_sums(float* partial, const REAL* x, i64 rows, int columns, int chunk) {
    __shared__ float shared[8][33];
    int lane = threadIdx.x % 32, y = threadIdx.x / 32, column = blockIdx.x * 32 + lane;
    i64 from = (i64)blockIdx.y * chunk, to = min(from + chunk, rows);
    float sum = 0.0f;
    if (column < columns)
        for (i64 r = from + y; r < to; r += 8) sum += to_float(x[r * columns + column]);
    shared[y][lane] = sum;
    __syncthreads();
    if (y == 0 && column < columns) {
        sum = 0.0f;
        for (int i = 0; i < 8; i++) sum += shared[i][lane];
        partial[(i64)blockIdx.y * columns + column] = sum;
    }
}

// add_partials: y[column] (+)= sum of the rows of partial. The 8 threads of a column take every eighth row.
extern "C" __global__ void __launch_bounds__(256) add_partials(TOTAL* y, const float* partial, int rows, int columns, int add) {
    __shared__ float shared[8][33];
    int lane = threadIdx.x % 32, part = threadIdx.x / 32, column = blockIdx.x * 32 + lane;
    float sum = 0.0f;
    if (column < columns)
        for (int r = part; r < rows; r += 8) sum += partial[(i64)r * columns + column];
    shared[part][lane] = sum;
    __syncthreads();
    if (part == 0 && column < columns) {
        sum = add ? to_float(y[column]) : 0.0f;
        for (int i = 0; i < 8; i++) sum += shared[i][lane];
        y[column] = round_to<TOTAL>(sum);
    }
}

// sum_blocks: partial[block] is the sum of chunk numbers, a multiple of VEC, or of their squares.
extern "C" __global__ void __launch_bounds__(256) sum_blocks(double* partial, const REAL* x, i64 n, i64 chunk, int squares) {
    i64 from = blockIdx.x * chunk, to = min(from + chunk, n), i = from + threadIdx.x * VEC;
    double sum = 0.0;
#pragma unroll 4
    for (; i + VEC <= to; i += 256 * VEC) {
        float v[VEC], part = 0.0f;
        load<VEC>(x + i, v);
#pragma unroll
        for (int j = 0; j < VEC; j++) part += squares ? v[j] * v[j] : v[j];
        sum += part;
    }
    for (; i < to; i++) { // the one vector that crosses the end
        float v = to_float(x[i]);
        sum += squares ? v * v : v;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

extern "C" __global__ void __launch_bounds__(256) sum_all(double* y, const double* partial, int n) {
    double sum = 0.0;
    for (int i = threadIdx.x; i < n; i += 256) sum += partial[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) *y = sum;
}
