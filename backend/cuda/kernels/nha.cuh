// The NHA operator (SPEC 1) in bf16 on tensor cores, with float32 accumulation, slots and softmax: what its kernels share. One
// kernel for each PASS, in nha_forward.cu, nha_backward.cu and nha_window.cu:
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

constexpr int Kp = KEY_DIM, Vp = VALUE_DIM, Mp = SLOTS; // K and V in steps of 16, M of 32; where EXACT they are K, V and M
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

// Tiles are 64 rows of bf16. A row that does not exist is zeros: it is multiplied by 0 and has to be a number.
template <int PADDED, typename Row> __device__ __forceinline__ void load_tile(bf16* tile, int width, Row row) {
    constexpr int stride = PADDED + 8, parts = PADDED / 8;
    if (width % 8 == 0) {
        for (int i = threadIdx.x; i < CHUNK * parts; i += THREADS) {
            int r = i / parts, c = i % parts * 8;
            const bf16* from = row(r);
            bool exists = from && c < width;
            copy_async_16(tile + r * stride + c, exists ? (const void*)(from + c) : (const void*)&nothing, exists);
        }
    } else {
        for (int i = threadIdx.x; i < CHUNK * PADDED; i += THREADS) {
            int r = i / PADDED, c = i % PADDED;
            const bf16* from = row(r);
            tile[r * stride + c].bits = from && c < width ? from[c].bits : 0;
        }
    }
}
__device__ __forceinline__ void tiles_loaded() {
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
}

// rotate turns the rows of a tile of keys or queries, in place or to another, row r to position first + r; rows with a position below
// least do not exist. Without tables it is a copy.
template <int N> __device__ __forceinline__ void rotate_parts(bf16* to, const bf16* tile, int width, const float* cosines, const float* sines, int first, int least, int end) {
    const int half = width / 2, parts = half / N;
    for (int i = threadIdx.x; i < CHUNK * parts; i += THREADS) {
        int r = i / parts, c = i % parts * N;
        float cosine[N] = {}, sine[N] = {}, a[N], b[N], x[N], y[N];
        if (first + r >= least && first + r < end) {
            load<N>(cosines + (i64)(first + r) * half + c, cosine);
            load<N>(sines + (i64)(first + r) * half + c, sine);
        }
        load<N>(tile + r * KS + c, a);
        load<N>(tile + r * KS + half + c, b);
#pragma unroll
        for (int n = 0; n < N; n++) x[n] = a[n] * cosine[n] - b[n] * sine[n], y[n] = b[n] * cosine[n] + a[n] * sine[n];
        store<N>(to + r * KS + c, x);
        store<N>(to + r * KS + half + c, y);
    }
}
struct Turn {
    const float *cosines, *sines;
    int width, origin, all; // K; the token at position 0; tokens
    __device__ __forceinline__ void operator()(bf16* to, const bf16* tile, int e0) const {
        if (cosines) {
            if (width % 16 == 0) rotate_parts<8>(to, tile, width, cosines, sines, e0 - origin, max(0, -origin), all - origin);
            else rotate_parts<1>(to, tile, width, cosines, sines, e0 - origin, max(0, -origin), all - origin);
        }
        if (to != tile) // what has not been turned: padding, or everything
            for (int i = threadIdx.x; i < CHUNK * Kp; i += THREADS)
                if (!cosines || i % Kp >= width) to[i / Kp * KS + i % Kp] = tile[i / Kp * KS + i % Kp];
    }
};

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
    // fetch starts to copy the logits of new tokens to where L will be; the ring's tokens have log a itself, read by compute.
    __device__ __forceinline__ void fetch(const Rows<bf16, float>& z, int e0, int window) const {
        load_tile<Mp>((bf16*)L, z.width, [&](int r) {
            int e = e0 + r, j = e - window;
            return j >= z.held && e < z.all ? z[j] : nullptr;
        });
    }
    __device__ __forceinline__ void compute(const Rows<bf16, float>& z, int e0, int window, float normalizer) const {
        constexpr int EACH = (4 * Mp + THREADS - 1) / THREADS;
        float logits[EACH][16];
#pragma unroll
        for (int n = 0; n < EACH; n++) {
            int item = threadIdx.x + n * THREADS, i = item % Mp, first = item / Mp * 16;
            if (item >= 4 * Mp) break;
#pragma unroll
            for (int r = 0; r < 16; r++) {
                int e = e0 + first + r, j = e - window;
                logits[n][r] = 1e30f; // a = 1, s = 0
                if (i < z.width && j >= 0 && e < z.all) logits[n][r] = j < z.held ? z.in_ring(j)[i] : to_float(((const bf16*)L)[(first + r) * (Mp + 8) + i]);
            }
        }
        __syncthreads();
#pragma unroll
        for (int n = 0; n < EACH; n++) {
            int item = threadIdx.x + n * THREADS, i = item % Mp, first = item / Mp * 16;
            if (item >= 4 * Mp) break;
            float sum = 0;
#pragma unroll
            for (int r = 0; r < 16; r++) {
                int j = e0 + first + r - window;
                float x = logits[n][r], logA;
                if (j >= 0 && j < z.held && x < 1e29f) {
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
    // add is += w^T x over a chunk's rows, w(row, slot) given in float32. SPLIT: its rounding error takes part, as weights that
    // are nearly equal would otherwise all err to the same side.
    template <bool SPLIT, typename Weight> __device__ __forceinline__ void add(const bf16* keys_tile, const bf16* values_tile, Weight weight) {
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
                    if (SPLIT) rest[q] = pack_bf16(first - unpack_low(a[q]), second - unpack_high(a[q]));
                }
#pragma unroll
                for (int n = 0; n < DP / 8; n += 2) {
                    if (8 * n >= width) continue;
                    u32 b[4];
                    load_b_transposed(b, tile, width + 8, r, 8 * n);
                    mma_bf16(x[n], a, b[0], b[1]);
                    mma_bf16(x[n + 1], a, b[2], b[3]);
                    if (!SPLIT) continue;
                    mma_bf16(x[n], rest, b[0], b[1]);
                    mma_bf16(x[n + 1], rest, b[2], b[3]);
                }
            }
        });
    }
    // enter is the chunk's step from its first to its last state.
    __device__ __forceinline__ void enter(const Gates& g, const bf16* keys_tile, const bf16* values_tile) {
        fade(g);
        add<true>(keys_tile, values_tile, [&](int row, int slot, bool) { return exp2_fast(g.end(slot) - g.L[row * GS + slot]); });
    }
};

// read_slots is the product "read" above for a warp's 16 rows from t0 on and its half of the slots. a: x; states: S0; x: x'.
// earlier is told the part that tokens before t0 have in it.
template <int D, typename Earlier> __device__ __forceinline__ void read_slots(float (&d)[MH / 8][4], const u32 (&a)[D / 16][4], const bf16* states, const bf16* x, const Gates& g, int t0, int half, Earlier earlier) {
    const int first = half * MH;
    const float* rows = g.G + (t0 + group()) * GS + first;
    auto to_row = [&](const float* middle, int n, int i) {
        int column = 8 * n + pair() + i % 2;
        return exp2_fast(rows[i / 2 * 8 * GS + column] - middle[column]);
    };
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
#pragma unroll
            for (int n = 0; n < MH / 8; n++) earlier(n, d[n], [&](int i) { return to_row(middle, n, i); });
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
#pragma unroll
    for (int n = 0; n < MH / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) d[n][i] *= to_row(middle, n, i);
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

// segment_of is what a block works at: a segment of a sequence, and a kv head.
struct Segment {
    const Sequence q;
    int h, first, end; // kv head, tokens
    i64 state;         // its index in states, heads counted in
    __device__ __forceinline__ Segment(const Sequence* sequences, const int* items, int heads)
        : q(sequences[items[2 * blockIdx.x]]), h(blockIdx.y) {
        int segment = items[2 * blockIdx.x + 1];
        first = (int)q.held + segment * SEGMENT;
        end = min(first + SEGMENT, q.all());
        state = (q.base + segment) * heads + h;
    }
    // origin is the token whose position counts as 0: logits depend on differences alone, and short tables stay in the cache.
    __device__ __forceinline__ int origin(int window) const { return window < first - CHUNK ? first - CHUNK - window : 0; }
};

// in_window reports whether a block of 16 keys has any that a block of 16 queries sees.
__device__ __forceinline__ bool in_window(int keys, int queries, int window) { return keys <= queries + 15 && keys + 15 > queries - window; }

// turn_back undoes the rotation of gradients: rows of float32 in shared memory, the row's position counted from first.
__device__ __forceinline__ void turn_back(float* rows, int width, const float* cosines, const float* sines, int first, int valid) {
    const int half = width / 2;
    for (int i = threadIdx.x; i < valid * half; i += THREADS) {
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
template <int N, typename Row, typename Added> __device__ __forceinline__ void write_parts(const float* sums, int padded, int width, float scale, Row row, Added added) {
    const int parts = width / N;
    for (int i = threadIdx.x; i < CHUNK * parts; i += THREADS) {
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
template <typename Row, typename Added> __device__ __forceinline__ void write_rows(const float* sums, int padded, int width, float scale, Row row, Added added) {
    if (width % 8 == 0) write_parts<8>(sums, padded, width, scale, row, added);
    else write_parts<1>(sums, padded, width, scale, row, added);
}
