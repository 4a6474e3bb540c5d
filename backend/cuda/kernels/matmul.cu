// C[row,column] = sum over inner of A[row,inner] B[inner,column] (+ bias[column]) (+ addend), for the shapes that cuBLASLt has no
// algorithm for. A block computes a tile of 32 x 32, a thread four of its rows; operands come through shared memory, 32 of the
// inner dimension at a time. REAL is the type of A, B and bias, OUT that of
// C and the addend, which may be C; sums are float32.

extern "C" __global__ void __launch_bounds__(256) matmul(OUT* c, const REAL* a, const REAL* b, const REAL* bias, const OUT* addend, int m, int n, int k,
                                                         int a_row, int a_inner, int b_inner, int b_column) {
    __shared__ float as[32][33], bs[32][33];
    int x = threadIdx.x % 32, y = threadIdx.x / 32;
    int row0 = blockIdx.y * 32, column = blockIdx.x * 32 + x;
    float sum[4] = {};
    for (int inner = 0; inner < k; inner += 32) {
        for (int i = y; i < 32; i += 8) { // lanes run along the dimension that lies side by side
            int ar = a_inner == 1 ? i : x, ai = a_inner == 1 ? x : i;
            int r = row0 + ar, l = inner + ai;
            as[ar][ai] = r < m && l < k ? to_float(a[(i64)r * a_row + (i64)l * a_inner]) : 0.0f;
            int bi = b_column == 1 ? i : x, bc = b_column == 1 ? x : i;
            int q = blockIdx.x * 32 + bc, s = inner + bi;
            bs[bi][bc] = q < n && s < k ? to_float(b[(i64)s * b_inner + (i64)q * b_column]) : 0.0f;
        }
        __syncthreads();
        for (int l = 0; l < 32; l++)
#pragma unroll
            for (int i = 0; i < 4; i++) sum[i] += as[y + 8 * i][l] * bs[l][x];
        __syncthreads();
    }
    if (column >= n) return;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int r = row0 + y + 8 * i;
        if (r >= m) continue;
        float v = sum[i];
        if (bias) v += to_float(bias[column]);
        if (addend) v += to_float(addend[(i64)r * n + column]);
        c[(i64)r * n + column] = round_to<OUT>(v);
    }
}
