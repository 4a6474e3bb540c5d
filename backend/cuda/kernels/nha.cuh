// The NHA operator (SPEC 1) in bf16 on tensor cores, with float32 accumulation, slots and softmax: what its kernels share. One
// kernel for each PASS, in nha_forward.cu, nha_backward.cu and (the window alone) nha_full.cu:
//
//	CONTRIBUTE  what a segment of tokens adds to empty slots, and how far it makes older ones fade: all segments in parallel
//	SCAN        the slots at the start of every segment (for backward: the adjoints at the end of every one)
//	FORWARD     a segment's outputs, slots and window under one softmax
//	QUERIES     backward: dq, and what a segment adds to the adjoints U, R of the slots
//	SLOTS       backward: dk, dv, dz of tokens in the slots
//
// Tokens are counted as in package attention: e = held + t, the ring's tokens in front; token e-W enters the slots at e. A
// segment is SEGMENT tokens, walked in chunks of 64 whose slots stay on the chip. Inside a chunk the parallel form of SPEC 1.2
// holds, with G the inclusive sum of log2 a, and two products that everything is made of:
//
//	read   x_t . S_t,i          = e^{G_t,i} x_t.S0_i + sum_{j<=t} (x_t.x'_j) e^{G_t,i - G_j,i} s_j,i
//	write  sum_i w_t,i S_t,i    = sum_i w_t,i e^{G_t,i} S0_i + sum_{j<=t} (sum_i w_t,i e^{G_t,i - G_j,i} s_j,i) x'_j
//
// (x, S, x') being (q, Ks, k') or (dO, Vs, v'). e^{G_t - G_j} is factored through the middle m of the rows t of a warp's block
// of 16: e^{G_m - G_j} <= 1 for earlier blocks, and in the block itself |G_m - G_j| is at most 8 steps. log a is kept above
// -9 (a = 1.2e-4, far below bf16's rounding), so no factor leaves e^{+-72}; log s is folded into the exponent.
//
// 8 warps: two share 16 rows; they take halves of the slots and every other 16 keys, and add up through shared memory. In SLOTS
// they take keys or values.

#define CONTRIBUTE 0
#define SCAN 1
#define FORWARD 2
#define QUERIES 3
#define SLOTS_BACKWARD 4

constexpr int Kp = KEY_DIM, Vp = VALUE_DIM, Mp = SLOTS; // K and V in steps of 16, M of 32; where EXACT they are K, V and M
constexpr int KS = Kp + 8, VS = Vp + 8, GS = Mp + 4; // row strides in shared memory, free of bank conflicts
constexpr int DP = Kp > Vp ? Kp : Vp;
constexpr int MH = Mp / 2; // slots of half a warp pair
constexpr int CHUNK = 64, THREADS = 256, WARPS = THREADS / 32;
constexpr int STATE = Mp * (Kp + Vp);
constexpr float LOG2E = 1.4426950408889634f, LOWEST_LOG_A = -9.0f;
constexpr float NONE = -1e30f; // a logit that takes no part; its exponential is 0 even against another of them, see softmax

// Sequence is a row of the host's table, 8 bytes a field.
struct Sequence {
    i64 at, tokens, held; // first row in the call, rows, tokens that the ring brings
    i64 start, capacity;  // of the ring
    i64 base;             // its first segment's slots in states; it has one set more than segments
    i64 base_token;       // tokens of the sequences before, their rings' among them
    i64 key_dim, value_dim, slots; // K, V, M
    const bf16 *keys, *values; // [H, capacity, K], [H, capacity, V]
    const float* gates;        // [H, capacity, M]
    const float *slot_keys, *slot_values;   // [H, M, K], [H, M, V] to begin with; null: zeros
    float *final_keys, *final_values;       // where the scan's end goes; null: not wanted
    bf16 *ring_dkeys, *ring_dvalues;        // [H, held, K], [H, held, V]
    float* ring_dgates;                     // [H, held, M]
    const float *dslot_keys, *dslot_values; // gradient of the final slots; null: zeros
    float *initial_dkeys, *initial_dvalues; // gradient of the initial slots; null: not wanted

    __device__ __forceinline__ int K() const { return EXACT ? Kp : (int)key_dim; }
    __device__ __forceinline__ int V() const { return EXACT ? Vp : (int)value_dim; }
    __device__ __forceinline__ int M() const { return EXACT ? Mp : (int)slots; }
    __device__ __forceinline__ int all() const { return (int)(held + tokens); }
    __device__ __forceinline__ int segments() const { return (int)((tokens + SEGMENT - 1) / SEGMENT); }
    __device__ __forceinline__ i64 ring(int h, int e) const {
        int r = (int)start + e;
        return h * capacity + (r >= capacity ? r - capacity : r);
    }
    __device__ __forceinline__ i64 row(int e) const { return at + e - held; }
};

// Rows are one kv head's keys, values or gates: token e's is fresh + e stride, or in the ring.
template <typename Fresh, typename Ring> struct Rows {
    const Fresh* fresh;
    const Ring* ring;
    int held, stride, width, start, capacity, all;
    __device__ __forceinline__ Rows(const Sequence& q, const Fresh* x, const Ring* in_ring, int h, int heads, int width)
        : fresh(x + ((q.at - q.held) * heads + h) * width), ring(in_ring + h * q.capacity * width), held((int)q.held), stride(heads * width), width(width), start((int)q.start),
          capacity((int)q.capacity), all(q.all()) {}
    __device__ __forceinline__ const Ring* in_ring(int e) const {
        int r = start + e;
        return ring + (i64)(r >= capacity ? r - capacity : r) * width;
    }
    __device__ __forceinline__ const Fresh* operator[](int e) const { return fresh + (i64)e * stride; }
};
// at is the row of token e, null where there is none.
typedef Rows<bf16, bf16> Tokens;
__device__ __forceinline__ const bf16* at(const Tokens& x, int e) { return e < 0 || e >= x.all ? nullptr : e < x.held ? x.in_ring(e) : x[e]; }

extern __shared__ __align__(16) char shared_memory[];
__device__ uint4 nothing; // a valid address for copies of no bytes

// Carve hands out shared memory.
struct Carve {
    char* at = shared_memory;
    template <typename T> __device__ __forceinline__ T* take(int n) {
        T* p = (T*)at;
        at += ((size_t)n * sizeof(T) + 15) / 16 * 16;
        return p;
    }
};
__device__ constexpr int larger(int a, int b) { return a > b ? a : b; }

// Tiles are rows of bf16, or of float16 as bits. A row that does not exist is zeros: it is multiplied by 0 and has to be a number.
template <int PADDED, int ROWS = CHUNK, int BLOCK_THREADS = THREADS, typename Row> __device__ __forceinline__ void load_tile(bf16* tile, int width, Row row) {
    constexpr int stride = PADDED + 8, parts = PADDED / 8;
    if (width % 8 == 0) {
#pragma unroll 4
        for (int i = threadIdx.x; i < ROWS * parts; i += BLOCK_THREADS) {
            int r = i / parts, c = i % parts * 8;
            const bf16* from = row(r);
            bool exists = from && c < width;
            copy_async_16(tile + r * stride + c, exists ? (const void*)(from + c) : (const void*)&nothing, exists);
        }
    } else {
        for (int i = threadIdx.x; i < ROWS * PADDED; i += BLOCK_THREADS) {
            int r = i / PADDED, c = i % PADDED;
            const bf16* from = row(r);
            tile[r * stride + c].bits = from && c < width ? from[c].bits : 0;
        }
    }
}
// load_span is load_tile of rows that lie stride apart, of which [least, end) exist and are PADDED wide.
template <int PADDED, int ROWS = CHUNK, int BLOCK_THREADS = THREADS> __device__ __forceinline__ void load_span(bf16* tile, const bf16* from, int stride, int least, int end) {
    constexpr int parts = PADDED / 8, together = BLOCK_THREADS / parts;
    if constexpr (BLOCK_THREADS % parts == 0 && ROWS % together == 0) {
        const int first = threadIdx.x / parts, c = threadIdx.x % parts * 8;
        const bf16* p = from + (i64)first * stride + c;
        tile += first * (PADDED + 8) + c;
#pragma unroll
        for (int n = 0; n < ROWS / together; n++, p += (i64)together * stride) {
            int r = first + n * together;
            copy_async_16(tile + n * together * (PADDED + 8), p, r >= least && r < end);
        }
    } else {
        load_tile<PADDED, ROWS, BLOCK_THREADS>(tile, PADDED, [&](int r) { return r >= least && r < end ? from + (i64)r * stride : nullptr; });
    }
}
__device__ __forceinline__ void tiles_loaded() {
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
}

// Rotated keys and queries are float16 where they make logits: rounded to bf16 they would move a logit of 100 by .1.
__device__ __forceinline__ u32 pack_f16(float low, float high) {
    u32 y;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(fminf(fmaxf(high, -65504.0f), 65504.0f)), "f"(fminf(fmaxf(low, -65504.0f), 65504.0f)));
    return y;
}
__device__ __forceinline__ uint4 pack_f16(const float (&x)[8], float factor) {
    return make_uint4(pack_f16(x[0] * factor, x[1] * factor), pack_f16(x[2] * factor, x[3] * factor), pack_f16(x[4] * factor, x[5] * factor), pack_f16(x[6] * factor, x[7] * factor));
}
// rest_f16 is what pack_f16's rounding leaves.
__device__ __forceinline__ uint4 rest_f16(const float (&x)[8], float factor, uint4 rounded) {
    const u32 words[4] = {rounded.x, rounded.y, rounded.z, rounded.w};
    float rest[8];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        f16 low = {(u16)words[i]}, high = {(u16)(words[i] >> 16)};
        rest[2 * i] = x[2 * i] * factor - to_float(low), rest[2 * i + 1] = x[2 * i + 1] * factor - to_float(high);
    }
    return pack_f16(rest, 1);
}
__device__ __forceinline__ void mma_f16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// load_tokens loads the rows of tokens [e0, e0 + 64) and up to end.
template <int PADDED, int BLOCK_THREADS = THREADS> __device__ __forceinline__ void load_tokens(bf16* tile, const Tokens& x, int e0, int end) {
    if (EXACT && e0 >= x.held) load_span<PADDED, CHUNK, BLOCK_THREADS>(tile, x[e0], x.stride, 0, end - e0);
    else load_tile<PADDED, CHUNK, BLOCK_THREADS>(tile, x.width, [&](int r) { return e0 + r < end ? at(x, e0 + r) : nullptr; });
}

// load_queries loads rows of queries or their gradients, the first end of them.
template <int PADDED, int BLOCK_THREADS = THREADS> __device__ __forceinline__ void load_queries(bf16* tile, const bf16* from, int stride, int width, int end) {
    if (EXACT) load_span<PADDED, CHUNK, BLOCK_THREADS>(tile, from, stride, 0, end);
    else load_tile<PADDED, CHUNK, BLOCK_THREADS>(tile, width, [&](int r) { return r < end ? from + (i64)r * stride : nullptr; });
}
// prefetch brings 64 rows, the first end of them, to the second-level cache while others are worked at; prefetch_near to the first.
template <int PADDED> __device__ __forceinline__ void prefetch(const bf16* from, int stride, int end) {
    constexpr int lines = (PADDED + 63) / 64;
    for (int i = threadIdx.x; i < CHUNK * lines; i += blockDim.x)
        if (i / lines < end) asm volatile("prefetch.global.L2 [%0];" ::"l"(from + (i64)(i / lines) * stride + i % lines * 64));
}
template <int WIDTH, typename T> __device__ __forceinline__ void prefetch_near(const T* from, int stride, int end) {
    constexpr int each = 128 / sizeof(T), lines = (WIDTH + each - 1) / each;
    for (int i = threadIdx.x; i < CHUNK * lines; i += blockDim.x)
        if (i / lines < end) asm volatile("prefetch.global.L1 [%0];" ::"l"(from + (i64)(i / lines) * stride + i % lines * each));
}
template <int PADDED> __device__ __forceinline__ void prefetch(const Tokens& x, int e0, int end) {
    if (e0 >= x.held) prefetch<PADDED>(x[e0], x.stride, end - e0);
}
template <int N> struct Width { static constexpr int value = N; };

// Operands from tiles: A from rows m or (transposed) rows k, B from rows n or (transposed) rows k; B for 16 columns.
__device__ __forceinline__ void load_a(u32 (&a)[4], const bf16* tile, int stride, int m, int k) {
    int lane = threadIdx.x % 32;
    ldmatrix_x4(a, tile + (m + lane % 16) * stride + k + lane / 16 * 8);
}
__device__ __forceinline__ void load_b(u32 (&b)[4], const bf16* tile, int stride, int n, int k) {
    int lane = threadIdx.x % 32;
    ldmatrix_x4(b, tile + (n + lane % 8 + lane / 16 * 8) * stride + k + lane / 8 % 2 * 8);
}
__device__ __forceinline__ void load_b_transposed(u32 (&b)[4], const bf16* tile, int stride, int k, int n) {
    int lane = threadIdx.x % 32;
    ldmatrix_x4_transposed(b, tile + (k + lane % 16) * stride + n + lane / 16 * 8);
}
// load_a_transposed is A from rows k of which m are columns.
__device__ __forceinline__ void load_a_transposed(u32 (&a)[4], const bf16* tile, int stride, int m, int k) {
    int lane = threadIdx.x % 32;
    ldmatrix_x4_transposed(a, tile + (k + lane % 8 + lane / 16 * 8) * stride + m + lane / 8 % 2 * 8);
}
template <int N> __device__ __forceinline__ void zero(float (&x)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; n++) x[n][0] = x[n][1] = x[n][2] = x[n][3] = 0;
}
template <int N> __device__ __forceinline__ void load_rows(u32 (&a)[N][4], const bf16* tile, int stride, int m) {
#pragma unroll
    for (int k = 0; k < N; k++) load_a(a[k], tile, stride, m, 16 * k);
}
// times_rows is d[16,16] = a x^T for the 16 rows of x from n on, times_rows_f16 the same in float16.
template <int N, typename Mma> __device__ __forceinline__ void times_rows(float (&d)[2][4], const u32 (&a)[N][4], const bf16* x, int stride, int n, Mma mma) {
    zero(d);
#pragma unroll
    for (int k = 0; k < N; k++) {
        u32 b[4];
        load_b(b, x, stride, n, 16 * k);
        mma(d[0], a[k], b[0], b[1]);
        mma(d[1], a[k], b[2], b[3]);
    }
}
template <int N> __device__ __forceinline__ void times_rows(float (&d)[2][4], const u32 (&a)[N][4], const bf16* x, int stride, int n) {
    times_rows(d, a, x, stride, n, [](float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) { mma_bf16(d, a, b0, b1); });
}
template <int N> __device__ __forceinline__ void times_rows_f16(float (&d)[2][4], const u32 (&a)[N][4], const bf16* x, int stride, int n) {
    times_rows(d, a, x, stride, n, [](float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) { mma_f16(d, a, b0, b1); });
}
// and of a in two parts, the smaller of them in rest.
template <int N> __device__ __forceinline__ void times_rows_f16(float (&d)[2][4], const u32 (&a)[N][4], const u32 (&rest)[N][4], const bf16* x, int stride, int n) {
    zero(d);
#pragma unroll
    for (int k = 0; k < N; k++) {
        u32 b[4];
        load_b(b, x, stride, n, 16 * k);
        mma_f16(d[0], rest[k], b[0], b[1]);
        mma_f16(d[1], rest[k], b[2], b[3]);
        mma_f16(d[0], a[k], b[0], b[1]);
        mma_f16(d[1], a[k], b[2], b[3]);
    }
}
// add_times is d += a x for the 16 rows of x from k on, d as wide as x.
template <int N> __device__ __forceinline__ void add_times(float (&d)[N][4], const u32 (&a)[4], const bf16* x, int stride, int k) {
#pragma unroll
    for (int n = 0; n < N; n += 2) {
        u32 b[4];
        load_b_transposed(b, x, stride, k, 8 * n);
        mma_bf16(d[n], a, b[0], b[1]);
        mma_bf16(d[n + 1], a, b[2], b[3]);
    }
}
// as_a turns a product of 16 columns into the operand of the next.
__device__ __forceinline__ void as_a(u32 (&a)[4], const float (&left)[4], const float (&right)[4]) {
    a[0] = pack_bf16(left[0], left[1]), a[1] = pack_bf16(left[2], left[3]);
    a[2] = pack_bf16(right[0], right[1]), a[3] = pack_bf16(right[2], right[3]);
}
__device__ __forceinline__ void as_a(u32 (&a)[4], const float (&p)[2][4]) { as_a(a, p[0], p[1]); }
// rest_as_a is what as_a's rounding leaves.
__device__ __forceinline__ void rest_as_a(u32 (&a)[4], const float (&left)[4], const float (&right)[4]) {
    as_a(a, left, right);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float(&x)[4] = i < 2 ? left : right;
        a[i] = pack_bf16(x[i % 2 * 2] - unpack_low(a[i]), x[i % 2 * 2 + 1] - unpack_high(a[i]));
    }
}
// Rows of an accumulator are group and group + 8, columns 8n + pair and the next.
__device__ __forceinline__ int group() { return threadIdx.x % 32 / 4; }
__device__ __forceinline__ int pair() { return threadIdx.x % 4 * 2; }

// turn_back undoes the rotation of gradients: rows of float32 in shared memory, the row's position counted from first.
__device__ __forceinline__ void turn_back(float* rows, int width, const float* cosines, const float* sines, int first, int valid) {
    const int half = width / 2;
    for (int i = threadIdx.x; i < valid * half; i += blockDim.x) {
        int r = i / half, c = i % half;
        float cosine = cosines[(i64)(first + r) * half + c], sine = sines[(i64)(first + r) * half + c];
        float &x = rows[r * (Kp + 8) + c], &y = rows[r * (Kp + 8) + half + c], a = x, b = y;
        x = a * cosine + b * sine, y = b * cosine - a * sine;
    }
}
template <int N> __device__ __forceinline__ void store_rows(float* rows, const float (&x)[N][4], int t0) {
    float* at = rows + (t0 + group()) * (8 * N + 8) + pair();
#pragma unroll
    for (int n = 0; n < N; n++) {
        *(float2*)(at + 8 * n) = make_float2(x[n][0], x[n][1]);
        *(float2*)(at + 8 * (8 * N + 8) + 8 * n) = make_float2(x[n][2], x[n][3]);
    }
}
template <int N> __device__ __forceinline__ void add_rows(float* rows, const float (&x)[N][4], int t0) {
    float* at = rows + (t0 + group()) * (8 * N + 8) + pair();
#pragma unroll
    for (int n = 0; n < N; n++) {
        float2 &low = *(float2*)(at + 8 * n), &high = *(float2*)(at + 8 * (8 * N + 8) + 8 * n);
        low = make_float2(low.x + x[n][0], low.y + x[n][1]);
        high = make_float2(high.x + x[n][2], high.y + x[n][3]);
    }
}

// write_rows writes sums in bf16 to the rows that row(r) gives, null for none; added(r): to what is there.
template <int N, int ROWS, typename Row, typename Added> __device__ __forceinline__ void write_parts(const float* sums, int padded, int width, float scale, Row row, Added added) {
    const int parts = width / N;
    for (int i = threadIdx.x; i < ROWS * parts; i += blockDim.x) {
        int r = i / parts, c = i % parts * N;
        bf16* to = row(r);
        if (!to) continue;
        float x[N], y[N] = {};
        load<N>(sums + r * (padded + 8) + c, x);
        if (added(r)) load<N>(to + c, y);
#pragma unroll
        for (int n = 0; n < N; n++) x[n] = x[n] * scale + y[n];
        store<N>(to + c, x);
    }
}
template <int ROWS = CHUNK, typename Row, typename Added> __device__ __forceinline__ void write_rows(const float* sums, int padded, int width, float scale, Row row, Added added) {
    if (width % 8 == 0) write_parts<8, ROWS>(sums, padded, width, scale, row, added);
    else write_parts<1, ROWS>(sums, padded, width, scale, row, added);
}
