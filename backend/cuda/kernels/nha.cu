// The NHA operator (SPEC 1) in bf16 on tensor cores, with float32 accumulation, slots and softmax. One kernel for each PASS:
//
//	CONTRIBUTE  what a segment of tokens adds to empty slots, and how far it makes older ones fade: all segments in parallel
//	SCAN        the slots at the start of every segment (for backward: the adjoints at the end of every one)
//	FORWARD     a segment's outputs, slots and window under one softmax
//	QUERIES     backward: dq, and what a segment adds to the adjoints U, R of the slots
//	SLOTS       backward: dk, dv, dz of tokens in the slots
//	WINDOW      backward: dk, dv of tokens in the window
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
// 8 warps: two share 16 rows; they take halves of the slots and every other 16 keys, and add up through shared memory.

#define CONTRIBUTE 0
#define SCAN 1
#define FORWARD 2
#define QUERIES 3
#define SLOTS_BACKWARD 4
#define WINDOW 5

constexpr int K = KEY_DIM, V = VALUE_DIM, M = SLOTS;
constexpr int Kp = (K + 15) / 16 * 16, Vp = (V + 15) / 16 * 16, Mp = (M + 31) / 32 * 32;
constexpr int KS = Kp + 8, VS = Vp + 8, GS = Mp + 4; // row strides in shared memory, free of bank conflicts
constexpr int MH = Mp / 2;                           // slots of half a warp pair
constexpr int CHUNK = 64, THREADS = 256, WARPS = 8;
constexpr int UNITS = Mp / 8, UNITS_EACH = (UNITS + WARPS - 1) / WARPS; // 16 slots' keys or values, held by one warp
constexpr int DP = Kp > Vp ? Kp : Vp;
constexpr int STATE = Mp * (Kp + Vp);
constexpr float LOG2E = 1.4426950408889634f, LOWEST_LOG_A = -9.0f;
constexpr float NONE = -1e30f; // a logit that takes no part; its exponential is 0 even against another of them, see softmax

// Sequence is a row of the host's table, 8 bytes a field.
struct Sequence {
    i64 at, tokens, held; // first row in the call, rows, tokens that the ring brings
    i64 start, capacity;  // of the ring
    i64 base;             // its first segment's slots in states; it has one set more than segments
    const bf16 *keys, *values; // [H, capacity, K], [H, capacity, V]
    const float* gates;        // [H, capacity, M]
    const float *slot_keys, *slot_values;   // [H, M, K], [H, M, V] to begin with; null: zeros
    float *final_keys, *final_values;       // where the scan's end goes; null: not wanted
    bf16 *ring_dkeys, *ring_dvalues;        // [H, held, K], [H, held, V]
    float* ring_dgates;                     // [H, held, M]
    const float *dslot_keys, *dslot_values; // gradient of the final slots; null: zeros
    float *initial_dkeys, *initial_dvalues; // gradient of the initial slots; null: not wanted

    __device__ __forceinline__ int all() const { return (int)(held + tokens); }
    __device__ __forceinline__ int segments() const { return (int)((tokens + SEGMENT - 1) / SEGMENT); }
    __device__ __forceinline__ i64 ring(int h, int e) const {
        int r = (int)start + e;
        return h * capacity + (r >= capacity ? r - capacity : r);
    }
    __device__ __forceinline__ i64 row(int e) const { return at + e - held; }
    template <typename T> __device__ __forceinline__ const T* token(const T* x, const T* in_ring, int e, int h, int heads, int width) const {
        return e < held ? in_ring + ring(h, e) * width : x + (row(e) * heads + h) * width;
    }
};

extern __shared__ __align__(16) char shared_memory[];

// Tiles are 64 rows of bf16. A row that does not exist is zeros: it is multiplied by 0 and has to be a number.
template <int WIDTH, int PADDED, typename Row> __device__ __forceinline__ void load_tile(bf16* tile, Row row) {
    constexpr int stride = PADDED + 8;
    if constexpr (WIDTH % 8 == 0) {
        constexpr int parts = PADDED / 8;
        for (int i = threadIdx.x; i < CHUNK * parts; i += THREADS) {
            int r = i / parts, c = i % parts * 8;
            const bf16* from = row(r);
            copy_async_16(tile + r * stride + c, from ? from + c : (const bf16*)shared_memory, from && c < WIDTH);
        }
    } else {
        for (int i = threadIdx.x; i < CHUNK * PADDED; i += THREADS) {
            int r = i / PADDED, c = i % PADDED;
            const bf16* from = row(r);
            tile[r * stride + c].bits = from && c < WIDTH ? from[c].bits : 0;
        }
    }
}
__device__ __forceinline__ void tiles_loaded() {
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
}

// load_rotated is load_tile of keys or queries, each row turned to its position (rows of the tables, -1: not at all).
template <typename Row> __device__ __forceinline__ void load_rotated(bf16* tile, const float* cosines, const float* sines, int first, Row row) {
    if (!cosines) {
        load_tile<K, Kp>(tile, row);
        return;
    }
    constexpr int N = K % 16 == 0 ? 8 : 1, half = K / 2, parts = (half + N - 1) / N;
    for (int i = threadIdx.x; i < CHUNK * parts; i += THREADS) {
        int r = i / parts, c = i % parts * N;
        const bf16* from = row(r);
        float x[N] = {}, y[N] = {};
        if (from) {
            float cosine[N], sine[N], a[N], b[N];
            load<N>(from + c, a);
            load<N>(from + half + c, b);
            load<N>(cosines + (i64)(first + r) * half + c, cosine);
            load<N>(sines + (i64)(first + r) * half + c, sine);
#pragma unroll
            for (int n = 0; n < N; n++) x[n] = a[n] * cosine[n] - b[n] * sine[n], y[n] = b[n] * cosine[n] + a[n] * sine[n];
        }
        store<N>(tile + r * KS + c, x);
        store<N>(tile + r * KS + half + c, y);
    }
    if constexpr (Kp > K) {
        for (int i = threadIdx.x; i < CHUNK * (Kp - K); i += THREADS) tile[i / (Kp - K) * KS + K + i % (Kp - K)].bits = 0;
    }
}

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
template <int N> __device__ __forceinline__ void zero(float (&x)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; n++) x[n][0] = x[n][1] = x[n][2] = x[n][3] = 0;
}
template <int N> __device__ __forceinline__ void load_rows(u32 (&a)[N][4], const bf16* tile, int stride, int m) {
#pragma unroll
    for (int k = 0; k < N; k++) load_a(a[k], tile, stride, m, 16 * k);
}
// times_rows is d[16,16] = a x^T for the 16 rows of x from n on.
template <int N> __device__ __forceinline__ void times_rows(float (&d)[2][4], const u32 (&a)[N][4], const bf16* x, int stride, int n) {
    zero(d);
#pragma unroll
    for (int k = 0; k < N; k++) {
        u32 b[4];
        load_b(b, x, stride, n, 16 * k);
        mma_bf16(d[0], a[k], b[0], b[1]);
        mma_bf16(d[1], a[k], b[2], b[3]);
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
__device__ __forceinline__ void as_a(u32 (&a)[4], const float (&p)[2][4]) {
    a[0] = pack_bf16(p[0][0], p[0][1]), a[1] = pack_bf16(p[0][2], p[0][3]);
    a[2] = pack_bf16(p[1][0], p[1][1]), a[3] = pack_bf16(p[1][2], p[1][3]);
}
// Rows of an accumulator are group and group + 8, columns 8n + pair and the next.
__device__ __forceinline__ int group() { return threadIdx.x % 32 / 4; }
__device__ __forceinline__ int pair() { return threadIdx.x % 4 * 2; }

#if SLOTS > 0
// gates fills, for the tokens that enter in the chunk of e0, G [64][Mp] in base 2 and L = G - log2 s. No token: a = 1, s = 0.
struct Gates {
    float *G, *L, *part; // part: [4][Mp]
    __device__ __forceinline__ void load(const Sequence& q, const bf16* z, int h, int heads, int e0, int window, float normalizer) const {
        for (int item = threadIdx.x; item < 4 * Mp; item += THREADS) {
            int i = item % Mp, first = item / Mp * 16;
            float logits[16], sum = 0;
#pragma unroll
            for (int r = 0; r < 16; r++) {
                int e = e0 + first + r, j = e - window;
                logits[r] = 1e30f; // a = 1, s = 0
                if (i < M && j >= 0 && e < q.all()) logits[r] = j < q.held ? q.gates[q.ring(h, j) * M + i] : to_float(z[(q.row(j) * heads + h) * M + i]);
            }
#pragma unroll
            for (int r = 0; r < 16; r++) {
                int j = e0 + first + r - window;
                float x = logits[r], logA;
                if (j >= 0 && j < q.held && x < 1e29f) {
                    logA = x; // the ring keeps log a itself
                } else {
                    float y = exp2_fast(-fabsf(x) * LOG2E);
                    float log1p = y < 0.0078125f ? y * (1 - y * (0.5f - y * 0.33333333f)) : log2_fast(1 + y) * 0.69314718f;
                    logA = (fminf(x, 0.0f) - log1p) * normalizer;
                }
                logA = fmaxf(logA, LOWEST_LOG_A);
                float s = logA > -0.0625f ? -logA * (1 + logA * (0.5f + logA * (0.16666667f + logA * 0.041666667f))) : 1 - exp2_fast(logA * LOG2E);
                sum += logA * LOG2E;
                G[(first + r) * GS + i] = sum;
                L[(first + r) * GS + i] = log2_fast(s);
            }
            part[item] = sum;
        }
        __syncthreads();
        for (int item = threadIdx.x; item < 4 * Mp; item += THREADS) {
            int i = item % Mp, block = item / Mp;
            float before = 0;
            for (int b = 0; b < block; b++) before += part[b * Mp + i];
#pragma unroll
            for (int r = 0; r < 16; r++) {
                int at = (block * 16 + r) * GS + i;
                float g = G[at] + before;
                G[at] = g;
                L[at] = g - L[at];
            }
        }
        __syncthreads();
    }
    __device__ __forceinline__ float end(int i) const { return G[63 * GS + i]; }
};

// State is the slots (or their adjoints) in float32, spread over the warps' registers: unit u of 16 slots' keys (even) or values.
struct State {
    float x[UNITS_EACH][DP / 8][4];
    template <typename F> __device__ __forceinline__ void each(F f) {
#pragma unroll
        for (int n = 0; n < UNITS_EACH; n++) {
            int unit = threadIdx.x / 32 + WARPS * n;
            if (unit < UNITS) f(x[n], unit / 2 * 16, unit % 2 == 0);
        }
    }
    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int n = 0; n < UNITS_EACH; n++) zero(x[n]);
    }
    // Global layout: [Mp, Kp] then [Mp, Vp].
    __device__ __forceinline__ void read(const float* from) {
        each([&](float (&x)[DP / 8][4], int i, bool keys) {
            int width = keys ? Kp : Vp;
            const float* rows = from + (keys ? 0 : Mp * Kp) + (i + group()) * width + pair();
#pragma unroll
            for (int n = 0; n < DP / 8; n++) {
                if (8 * n >= width) continue;
                float2 low = *(const float2*)(rows + 8 * n), high = *(const float2*)(rows + 8 * width + 8 * n);
                x[n][0] = low.x, x[n][1] = low.y, x[n][2] = high.x, x[n][3] = high.y;
            }
        });
    }
    __device__ __forceinline__ void write(float* to) {
        each([&](float (&x)[DP / 8][4], int i, bool keys) {
            int width = keys ? Kp : Vp;
            float* rows = to + (keys ? 0 : Mp * Kp) + (i + group()) * width + pair();
#pragma unroll
            for (int n = 0; n < DP / 8; n++) {
                if (8 * n >= width) continue;
                *(float2*)(rows + 8 * n) = make_float2(x[n][0], x[n][1]);
                *(float2*)(rows + 8 * width + 8 * n) = make_float2(x[n][2], x[n][3]);
            }
        });
    }
    // publish rounds the slots to the tiles that products read.
    __device__ __forceinline__ void publish(bf16* keys_tile, bf16* values_tile) {
        each([&](float (&x)[DP / 8][4], int i, bool keys) {
            int width = keys ? Kp : Vp;
            bf16* rows = (keys ? keys_tile : values_tile) + (i + group()) * (width + 8) + pair();
#pragma unroll
            for (int n = 0; n < DP / 8; n++) {
                if (8 * n >= width) continue;
                *(u32*)(rows + 8 * n) = pack_bf16(x[n][0], x[n][1]);
                *(u32*)(rows + 8 * (width + 8) + 8 * n) = pack_bf16(x[n][2], x[n][3]);
            }
        });
    }
    // fade multiplies by e^{G_end}, as x + expm1(G_end) x: it loses no mass when a is nearly 1.
    __device__ __forceinline__ void fade(const Gates& g) {
        each([&](float (&x)[DP / 8][4], int i, bool) {
            float low = expm1f(g.end(i + group()) * 0.69314718f), high = expm1f(g.end(i + group() + 8) * 0.69314718f);
#pragma unroll
            for (int n = 0; n < DP / 8; n++) {
                x[n][0] = fmaf(low, x[n][0], x[n][0]), x[n][1] = fmaf(low, x[n][1], x[n][1]);
                x[n][2] = fmaf(high, x[n][2], x[n][2]), x[n][3] = fmaf(high, x[n][3], x[n][3]);
            }
        });
    }
    // add is += w^T x over a chunk's rows, w(row, slot) given in float32: its rounding error takes part, as weights that are
    // nearly equal would otherwise all err to the same side.
    template <typename Weight> __device__ __forceinline__ void add(const bf16* keys_tile, const bf16* values_tile, Weight weight) {
        each([&](float (&x)[DP / 8][4], int i, bool keys) {
            const bf16* tile = keys ? keys_tile : values_tile;
            int width = keys ? Kp : Vp;
#pragma unroll
            for (int r = 0; r < CHUNK; r += 16) {
                u32 a[4], rest[4];
#pragma unroll
                for (int q = 0; q < 4; q++) {
                    int row = r + pair() + q / 2 * 8, slot = i + group() + q % 2 * 8;
                    float first = weight(row, slot, keys), second = weight(row + 1, slot, keys);
                    a[q] = pack_bf16(first, second);
                    rest[q] = pack_bf16(first - unpack_low(a[q]), second - unpack_high(a[q]));
                }
#pragma unroll
                for (int n = 0; n < DP / 8; n += 2) {
                    if (8 * n >= width) continue;
                    u32 b[4];
                    load_b_transposed(b, tile, width + 8, r, 8 * n);
                    mma_bf16(x[n], a, b[0], b[1]);
                    mma_bf16(x[n + 1], a, b[2], b[3]);
                    mma_bf16(x[n], rest, b[0], b[1]);
                    mma_bf16(x[n + 1], rest, b[2], b[3]);
                }
            }
        });
    }
    // enter is the chunk's step from its first to its last state.
    __device__ __forceinline__ void enter(const Gates& g, const bf16* keys_tile, const bf16* values_tile) {
        fade(g);
        add(keys_tile, values_tile, [&](int row, int slot, bool) { return exp2_fast(g.end(slot) - g.L[row * GS + slot]); });
    }
};

// read_slots is the product "read" above for a warp's 16 rows from t0 on and its half of the slots. a: x; states: S0; x: x'.
template <int D> __device__ __forceinline__ void read_slots(float (&d)[MH / 8][4], const u32 (&a)[D / 16][4], const bf16* states, const bf16* x, const Gates& g, int t0, int half) {
    const int first = half * MH;
    zero(d);
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
#pragma unroll
        for (int n = 0; n < MH / 8; n += 2) {
            u32 b[4];
            load_b(b, states, D + 8, first + 8 * n, 16 * k);
            mma_bf16(d[n], a[k], b[0], b[1]);
            mma_bf16(d[n + 1], a[k], b[2], b[3]);
        }
    }
    const float* middle = g.G + (t0 + 8) * GS + first;
#pragma unroll
    for (int n = 0; n < MH / 8; n++) {
        float left = exp2_fast(middle[8 * n + pair()]), right = exp2_fast(middle[8 * n + pair() + 1]);
        d[n][0] *= left, d[n][1] *= right, d[n][2] *= left, d[n][3] *= right;
    }
    for (int j0 = 0; j0 <= t0; j0 += 16) {
        float scores[2][4];
        times_rows(scores, a, x, D + 8, j0);
        if (j0 == t0) {
#pragma unroll
            for (int n = 0; n < 2; n++)
#pragma unroll
                for (int c = 0; c < 4; c++)
                    if (8 * n + pair() + c % 2 > group() + c / 2 * 8) scores[n][c] = 0;
        }
        u32 s[4];
        as_a(s, scores);
#pragma unroll
        for (int n = 0; n < MH / 8; n++) {
            float m = middle[8 * n + group()];
            const float* l = g.L + (j0 + pair()) * GS + first + 8 * n + group();
            mma_bf16(d[n], s, pack_bf16(exp2_fast(m - l[0]), exp2_fast(m - l[GS])), pack_bf16(exp2_fast(m - l[8 * GS]), exp2_fast(m - l[9 * GS])));
        }
    }
    const float* rows = g.G + (t0 + group()) * GS + first;
#pragma unroll
    for (int n = 0; n < MH / 8; n++) {
        int i = 8 * n + pair();
        d[n][0] *= exp2_fast(rows[i] - middle[i]), d[n][1] *= exp2_fast(rows[i + 1] - middle[i + 1]);
        d[n][2] *= exp2_fast(rows[8 * GS + i] - middle[i]), d[n][3] *= exp2_fast(rows[8 * GS + i + 1] - middle[i + 1]);
    }
}

// write_slots is the product "write", added to d. w is used up.
template <int D> __device__ __forceinline__ void write_slots(float (&d)[D / 8][4], float (&w)[MH / 8][4], const bf16* states, const bf16* x, const Gates& g, int t0, int half) {
    const int first = half * MH;
    const float *middle = g.G + (t0 + 8) * GS + first, *rows = g.G + (t0 + group()) * GS + first;
    u32 scaled[MH / 16][4];
#pragma unroll
    for (int n = 0; n < MH / 8; n++) {
        int i = 8 * n + pair();
        w[n][0] *= exp2_fast(rows[i] - middle[i]), w[n][1] *= exp2_fast(rows[i + 1] - middle[i + 1]);
        w[n][2] *= exp2_fast(rows[8 * GS + i] - middle[i]), w[n][3] *= exp2_fast(rows[8 * GS + i + 1] - middle[i + 1]);
        scaled[n / 2][n % 2 * 2] = pack_bf16(w[n][0], w[n][1]);
        scaled[n / 2][n % 2 * 2 + 1] = pack_bf16(w[n][2], w[n][3]);
        float left = exp2_fast(middle[i]), right = exp2_fast(middle[i + 1]);
        w[n][0] *= left, w[n][1] *= right, w[n][2] *= left, w[n][3] *= right;
    }
#pragma unroll
    for (int k = 0; k < MH / 16; k++) {
        u32 a[4] = {pack_bf16(w[2 * k][0], w[2 * k][1]), pack_bf16(w[2 * k][2], w[2 * k][3]), pack_bf16(w[2 * k + 1][0], w[2 * k + 1][1]), pack_bf16(w[2 * k + 1][2], w[2 * k + 1][3])};
        add_times(d, a, states, D + 8, first + 16 * k);
    }
    for (int j0 = 0; j0 <= t0; j0 += 16) {
        float mix[2][4];
        zero(mix);
#pragma unroll
        for (int n = 0; n < 2; n++) {
            const float* l = g.L + (j0 + 8 * n + group()) * GS + first + pair();
#pragma unroll
            for (int k = 0; k < MH / 16; k++) {
                const float *at = l + 16 * k, *m = middle + 16 * k + pair();
                mma_bf16(mix[n], scaled[k], pack_bf16(exp2_fast(m[0] - at[0]), exp2_fast(m[1] - at[1])), pack_bf16(exp2_fast(m[8] - at[8]), exp2_fast(m[9] - at[9])));
            }
        }
        if (j0 == t0) {
#pragma unroll
            for (int n = 0; n < 2; n++)
#pragma unroll
                for (int c = 0; c < 4; c++)
                    if (8 * n + pair() + c % 2 > group() + c / 2 * 8) mix[n][c] = 0; // may be infinite
        }
        u32 a[4];
        as_a(a, mix);
        add_times(d, a, x, D + 8, j0);
    }
}
#endif
