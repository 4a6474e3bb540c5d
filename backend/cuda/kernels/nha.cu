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

#if PASS == CONTRIBUTE
extern "C" __global__ __launch_bounds__(THREADS) void nha_contribute(const Sequence* sequences, const int* items, const bf16* k, const bf16* v, const bf16* z,
                                                                     float* states, float* decays, int heads, int window, float normalizer) {
    Carve c;
    bf16 *keys = c.take<bf16>(CHUNK * KS), *values = c.take<bf16>(CHUNK * VS);
    Gates g = {c.take<float>(CHUNK * GS), c.take<float>(CHUNK * GS), c.take<float>(4 * Mp)};
    Segment s(sequences, items, heads);
    const Sequence& q = s.q; // in registers
    const int h = s.h, K = q.K(), V = q.V(), M = q.M();
    const Tokens key_rows(q, k, q.keys, h, heads, K), value_rows(q, v, q.values, h, heads, V);
    const Rows<bf16, float> gate_rows(q, z, q.gates, h, heads, M);
    State state;
    state.clear();
    float decay = 0; // of slot threadIdx.x
    for (int e0 = s.first; e0 < s.end; e0 += CHUNK) {
        if (e0 + CHUNK <= window) continue; // nothing enters
        auto entering = [&](const Tokens& x) { return [&](int r) { return e0 + r < s.end ? at(x, e0 + r - window) : nullptr; }; };
        load_tile<Kp>(keys, K, entering(key_rows));
        load_tile<Vp>(values, V, entering(value_rows));
        g.fetch(gate_rows, e0, window);
        tiles_loaded();
        g.compute(gate_rows, e0, window, normalizer);
        state.enter(g, keys, values);
        if (threadIdx.x < Mp) decay += g.end(threadIdx.x);
        __syncthreads();
    }
    state.write(states + s.state * STATE);
    if (threadIdx.x < Mp) decays[s.state * Mp + threadIdx.x] = decay;
}
#endif

#if PASS == SCAN
// A thread has four numbers of the slots and walks the segments, up for the slots, down for their adjoints, some of them read ahead.
extern "C" __global__ __launch_bounds__(THREADS) void nha_scan(const Sequence* sequences, float* states, const float* decays, int heads, int down) {
    constexpr int AHEAD = 4;
    const Sequence q = sequences[blockIdx.z];
    const int at = (blockIdx.x * THREADS + threadIdx.x) * 4, h = blockIdx.y, segments = q.segments();
    if (at >= STATE) return;
    const bool key = at < Mp * Kp;
    const int M = q.M(), width = key ? Kp : Vp, real = key ? q.K() : q.V(), in = key ? at : at - Mp * Kp, slot = in / width, column = in % width;
    const i64 host = ((i64)h * M + slot) * real + column;
    const float* from = down ? (key ? q.dslot_keys : q.dslot_values) : (key ? q.slot_keys : q.slot_values);
    float* to = down ? (key ? q.initial_dkeys : q.initial_dvalues) : (key ? q.final_keys : q.final_values);
    float x[4];
    for (int i = 0; i < 4; i++) x[i] = from && slot < M && column + i < real ? from[host + i] : 0;
    auto set = [&](int n) { return (q.base + (down ? segments - 1 - n : n)) * heads + h; };
    for (int n = 0; n < segments; n += AHEAD) {
        float4 more[AHEAD];
        float decay[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
            if (n + i < segments) more[i] = *(const float4*)(states + set(n + i) * STATE + at), decay[i] = decays[set(n + i) * Mp + slot];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            if (n + i >= segments) break;
            *(float4*)(states + set(n + i) * STATE + at) = make_float4(x[0], x[1], x[2], x[3]);
            float fade = expm1f(decay[i] * 0.69314718f);
            x[0] = fmaf(fade, x[0], x[0]) + more[i].x, x[1] = fmaf(fade, x[1], x[1]) + more[i].y;
            x[2] = fmaf(fade, x[2], x[2]) + more[i].z, x[3] = fmaf(fade, x[3], x[3]) + more[i].w;
        }
    }
    *(float4*)(states + ((q.base + segments) * heads + h) * STATE + at) = make_float4(x[0], x[1], x[2], x[3]);
    for (int i = 0; i < 4; i++)
        if (to && slot < M && column + i < real) to[host + i] = x[i];
}
#endif

#if PASS == FORWARD || PASS == QUERIES
// in_window reports whether a block of 16 keys has any that a block of 16 queries sees.
__device__ __forceinline__ bool in_window(int keys, int queries, int window) { return keys <= queries + 15 && keys + 15 > queries - window; }
#endif

#if PASS == FORWARD
extern "C" __global__ __launch_bounds__(THREADS, BLOCKS) void nha_forward(const Sequence* sequences, const int* items, const bf16* queries, const bf16* k, const bf16* v,
                                                                         const bf16* z, const float* cosines, const float* sines, const float* states,
                                                                         bf16* o, bf16* lse, bf16* share, int query_heads, int heads, int window, float scale, float normalizer,
                                                                         int mask, float sinks) {
    Carve c;
    char* region = c.take<char>(larger(CHUNK * 2 * KS * 2, CHUNK * (Vp + 8) * 4));
    bf16 *query = (bf16*)region, *turned = query + CHUNK * KS;
    float* partial = (float*)region; // [64][Vp + 8] outputs of the second half, once queries have been read,
    float* statistics = c.take<float>(CHUNK * 3); // and its maximum, sum and slots' sum
    bf16 *window_keys = c.take<bf16>(CHUNK * KS), *window_values = c.take<bf16>(CHUNK * VS);
    const int lane_row = group(), warp = threadIdx.x / 32, t0 = warp % 4 * 16, half = warp / 4;
    Segment s(sequences, items, heads);
    const Sequence& q = s.q;
    const int h = s.h, each = query_heads / heads, origin = s.origin(window), K = q.K(), V = q.V(), M = q.M();
    const float scale2 = scale * LOG2E;
    const Tokens key_rows(q, k, q.keys, h, heads, K), value_rows(q, v, q.values, h, heads, V);
#if SLOTS > 0
    const Rows<bf16, float> gate_rows(q, z, q.gates, h, heads, M);
    bf16 *keys = c.take<bf16>(CHUNK * KS), *values = c.take<bf16>(CHUNK * VS), *slot_keys = c.take<bf16>(Mp * KS), *slot_values = c.take<bf16>(Mp * VS);
    Gates g = {c.take<float>(CHUNK * GS), c.take<float>(CHUNK * GS), c.take<float>(4 * Mp)};
    State state;
    state.read(states + s.state * STATE);
#endif
    const Turn turn = {cosines, sines, K, origin, q.all()};
    int resident = -CHUNK; // the tile of the window that is in shared memory
    auto fetch = [&](int u0) {
        load_tile<Kp>(window_keys, K, [&](int r) { return at(key_rows, u0 + r); });
        load_tile<Vp>(window_values, V, [&](int r) { return at(value_rows, u0 + r); });
        resident = u0;
    };
    for (int e0 = s.first; e0 < s.end; e0 += CHUNK) {
        // Older tiles come first, then the slots while the chunk's own tile is on its way; that one is the next chunk's older tile.
        const int older = window > 0 ? (min(window - 1, e0) + CHUNK - 1) / CHUNK : 0;
#if SLOTS > 0
        const bool active = e0 + CHUNK > window || q.slot_keys; // otherwise the slots are empty before, in and after the chunk
        if (active) {
            auto entering = [&](const Tokens& x) { return [&](int r) { return e0 + r < s.end ? at(x, e0 + r - window) : nullptr; }; };
            load_tile<Kp>(keys, K, entering(key_rows));
            load_tile<Vp>(values, V, entering(value_rows));
            g.fetch(gate_rows, e0, window);
            state.publish(slot_keys, slot_values);
        }
#endif
        for (int head = h * each; head < (h + 1) * each; head++) {
            load_tile<Kp>(query, K, [&](int r) { return e0 + r < s.end ? queries + (q.row(e0 + r) * query_heads + head) * K : (const bf16*)nullptr; });
            const bool fetched = older > 0 && resident != e0 - older * CHUNK;
            if (fetched) fetch(e0 - older * CHUNK);
            tiles_loaded();
            turn(turned, query, e0);
            if (fetched) turn(window_keys, window_keys, resident);
#if SLOTS > 0
            if (active && head == h * each) g.compute(gate_rows, e0, window, normalizer);
#endif
            __syncthreads();
            u32 x[Kp / 16][4];
            load_rows(x, turned, KS, t0);
            float out[Vp / 8][4], top[2] = {NONE, NONE}, sum[2] = {}, slots_sum[2] = {};
            zero(out);
            // raise moves the running maximum to cover new logits of a row.
            auto raise = [&](int r, float most) {
                most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
                most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
                if (most <= top[r]) return;
                float f = exp2_fast(top[r] - most);
                top[r] = most, sum[r] *= f, slots_sum[r] *= f;
#pragma unroll
                for (int n = 0; n < Vp / 8; n++) out[n][2 * r] *= f, out[n][2 * r + 1] *= f;
            };
            auto sweep = [&](int u0) {
                for (int n = half * 16; n < CHUNK; n += 32) {
                    if (!in_window(u0 + n, e0 + t0, window)) continue;
                    float p[2][4];
                    times_rows(p, x, window_keys, KS, n);
                    float most[2] = {NONE, NONE};
#pragma unroll
                    for (int m = 0; m < 2; m++)
#pragma unroll
                        for (int i = 0; i < 4; i++) {
                            int u = u0 + n + 8 * m + pair() + i % 2, e = e0 + t0 + lane_row + i / 2 * 8;
                            p[m][i] = u >= 0 && u <= e && u > e - window ? p[m][i] * scale2 : NONE;
                            most[i / 2] = fmaxf(most[i / 2], p[m][i]);
                        }
                    raise(0, most[0]);
                    raise(1, most[1]);
#pragma unroll
                    for (int m = 0; m < 2; m++)
#pragma unroll
                        for (int i = 0; i < 4; i++) {
                            p[m][i] = p[m][i] > NONE ? exp2_fast(p[m][i] - top[i / 2]) : 0;
                            sum[i / 2] += p[m][i];
                        }
                    u32 a[4];
                    as_a(a, p);
                    add_times(out, a, window_values, VS, n);
                }
            };
            for (int u0 = e0 - older * CHUNK; u0 < e0; u0 += CHUNK) {
                if (resident != u0) {
                    __syncthreads();
                    fetch(u0);
                    tiles_loaded();
                    turn(window_keys, window_keys, u0);
                    __syncthreads();
                }
                sweep(u0);
            }
            if (window > 0) {
                __syncthreads();
                fetch(e0);
                copy_async_commit();
            }
#if SLOTS > 0
            float p[MH / 8][4];
            if (active) {
                load_rows(x, query, KS, t0);
                read_slots<Kp>(p, x, slot_keys, keys, g, t0, half, [](int, float (&)[4], auto) {});
            } else {
                zero(p);
            }
            float most[2] = {NONE, NONE};
#pragma unroll
            for (int n = 0; n < MH / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    bool live = half * MH + 8 * n + pair() + i % 2 < M && (!mask || e0 + t0 + lane_row + i / 2 * 8 >= window);
                    p[n][i] = live ? p[n][i] * scale2 : NONE;
                    most[i / 2] = fmaxf(most[i / 2], p[n][i]);
                }
            raise(0, most[0]);
            raise(1, most[1]);
#pragma unroll
            for (int n = 0; n < MH / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    p[n][i] = p[n][i] > NONE ? exp2_fast(p[n][i] - top[i / 2]) : 0;
                    slots_sum[i / 2] += p[n][i];
                }
            sum[0] += slots_sum[0], sum[1] += slots_sum[1];
            if (active) write_slots<Vp>(out, p, slot_values, values, g, t0, half);
#endif
            if (window > 0) {
                tiles_loaded();
                turn(window_keys, window_keys, e0);
                __syncthreads();
                load_rows(x, turned, KS, t0);
                sweep(e0);
            }
#pragma unroll
            for (int r = 0; r < 2; r++)
#pragma unroll
                for (int i = 1; i <= 2; i *= 2) {
                    sum[r] += __shfl_xor_sync(~0u, sum[r], i);
                    slots_sum[r] += __shfl_xor_sync(~0u, slots_sum[r], i);
                }
            __syncthreads();
            if (half == 1) {
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    int row = t0 + lane_row + 8 * r;
                    if (pair() == 0) statistics[3 * row] = top[r], statistics[3 * row + 1] = sum[r], statistics[3 * row + 2] = slots_sum[r];
#pragma unroll
                    for (int n = 0; n < Vp / 8; n++) *(float2*)(partial + row * (Vp + 8) + 8 * n + pair()) = make_float2(out[n][2 * r], out[n][2 * r + 1]);
                }
            }
            __syncthreads();
            if (half == 0) {
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    int row = t0 + lane_row + 8 * r;
                    if (e0 + row >= s.end) continue;
                    i64 at = q.row(e0 + row) * query_heads + head;
                    const float* other = statistics + 3 * row;
                    float most = fmaxf(fmaxf(top[r], other[0]), sinks > 0 ? 0 : NONE);
                    float mine = exp2_fast(top[r] - most), theirs = exp2_fast(other[0] - most), empty = sinks * exp2_fast(-most);
                    float total = sum[r] * mine + other[1] * theirs + empty, inverse = 1 / total;
                    if (pair() == 0) {
                        if (lse) lse[at] = round_to<bf16>((most + log2_fast(total)) * 0.69314718f);
                        if (share) share[at] = round_to<bf16>((slots_sum[r] * mine + other[2] * theirs + empty) * inverse);
                    }
                    mine *= inverse, theirs *= inverse;
#pragma unroll
                    for (int n = 0; n < Vp / 8; n++) {
                        int column = 8 * n + pair();
                        float2 y = *(const float2*)(partial + row * (Vp + 8) + column);
                        float low = out[n][2 * r] * mine + y.x * theirs, high = out[n][2 * r + 1] * mine + y.y * theirs;
                        if (V % 2 == 0 && column < V) *(u32*)(o + at * V + column) = pack_bf16(low, high);
                        if (V % 2 == 1 && column < V) o[at * V + column] = round_to<bf16>(low);
                        if (V % 2 == 1 && column + 1 < V) o[at * V + column + 1] = round_to<bf16>(high);
                    }
                }
            }
            __syncthreads();
        }
#if SLOTS > 0
        if (active) {
            state.enter(g, keys, values);
            __syncthreads();
        }
#endif
    }
}
#endif

#if PASS == QUERIES || PASS == WINDOW
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
#endif
#if PASS >= QUERIES
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
#endif

#if PASS >= QUERIES
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
#endif

#if PASS == QUERIES
// A query's softmax is formed again in two sweeps over the window. The first gives the sum of the probabilities, which are not
// quite 1 as bf16 has rounded lse, and d_t = sum of p times value . dO_t: dO_t . o_t of a rounded o_t would leave dl that do not add
// up to 0. For the other passes: exact is lse in base 2, inner d_t, weights and dlogits the slots' p and dl, and earlier
// l dl + p Vs.dO as far as l and Vs come from before the block of 16: all [N, Hq, Mp].
extern "C" __global__ __launch_bounds__(THREADS, BLOCKS) void nha_backward_queries(
    const Sequence* sequences, const int* items, const bf16* queries, const bf16* k, const bf16* v, const bf16* z, const float* cosines, const float* sines,
    const float* states, float* adjoints, const bf16* lse, const bf16* gradient, bf16* dq, float* exact, float* inner, bf16* weights, bf16* dlogits, bf16* earlier,
    int query_heads, int heads, int window, float scale, float normalizer, int mask, float sinks) {
    Carve c;
    char* region = c.take<char>(larger(CHUNK * (KS + VS) * 2, CHUNK * (Kp + 8) * 4));
    bf16 *query = (bf16*)region, *dout = query + CHUNK * KS;
    float* sums = (float*)region; // [64][Kp + 8], once these have been used
    constexpr int TILE = CHUNK * (KS + VS), WINDOW_TILES = DP <= 64 ? 2 : 1;
    bf16 *window_tiles = c.take<bf16>(WINDOW_TILES * TILE), *turned_query = c.take<bf16>(CHUNK * KS); // tiles of keys and values
    float *logs = c.take<float>(CHUNK), *totals = c.take<float>(4 * CHUNK); // totals: of p and of p times value . dO, by halves
    const int warp = threadIdx.x / 32, t0 = warp % 4 * 16, half = warp / 4, row = t0 + group();
    Segment s(sequences, items, heads);
    const Sequence& q = s.q;
    const int h = s.h, each = query_heads / heads, origin = s.origin(window), K = q.K(), V = q.V(), M = q.M();
    const float scale2 = scale * LOG2E;
    const Tokens key_rows(q, k, q.keys, h, heads, K), value_rows(q, v, q.values, h, heads, V);
#if SLOTS > 0
    const Rows<bf16, float> gate_rows(q, z, q.gates, h, heads, M);
    constexpr int PS = Mp + 8;
    bf16 *keys = c.take<bf16>(CHUNK * KS), *values = c.take<bf16>(CHUNK * VS), *slot_keys = (bf16*)c.take<char>(larger(Mp * (KS + VS) * 2, 2 * CHUNK * PS * 2)), *slot_values = slot_keys + Mp * KS;
    bf16 *p_tile = slot_keys, *dl_tile = p_tile + CHUNK * PS; // once a head's slots have been read
    Gates g = {c.take<float>(CHUNK * GS), c.take<float>(CHUNK * GS), c.take<float>(4 * Mp)};
    float* before = c.take<float>(Mp); // G from the segment's start to the chunk's
    if (threadIdx.x < Mp) before[threadIdx.x] = 0;
    State state, adjoint;
    state.read(states + s.state * STATE);
    adjoint.clear();
#endif
    const Turn turn = {cosines, sines, K, origin, q.all()};
    int resident[WINDOW_TILES]; // the tokens that window_tiles begin with
    for (int& u0 : resident) u0 = -CHUNK;
    auto place = [&](int u0) { return (u0 + CHUNK) / CHUNK % WINDOW_TILES; }; // u0 > -CHUNK
    auto keys_of = [&](int u0) { return window_tiles + place(u0) * TILE; };
    auto fetch = [&](int u0) {
        int i = place(u0);
        if (resident[i] == u0) return false;
        load_tile<Kp>(keys_of(u0), K, [&](int r) { return at(key_rows, u0 + r); });
        load_tile<Vp>(keys_of(u0) + CHUNK * KS, V, [&](int r) { return at(value_rows, u0 + r); });
        resident[i] = u0;
        return true;
    };
    for (int e0 = s.first; e0 < s.end; e0 += CHUNK) {
        const int older = window > 0 ? (min(window - 1, e0) + CHUNK - 1) / CHUNK : -1;
#if SLOTS > 0
        auto entering = [&](const Tokens& x) { return [&](int r) { return e0 + r < s.end ? at(x, e0 + r - window) : nullptr; }; };
        load_tile<Kp>(keys, K, entering(key_rows));
        load_tile<Vp>(values, V, entering(value_rows));
        g.fetch(gate_rows, e0, window);
#endif
        for (int head = h * each; head < (h + 1) * each; head++) {
            auto index = [&](int r) { return q.row(e0 + r) * query_heads + head; };
            auto query_row = [&](int r) { return e0 + r < s.end ? queries + index(r) * K : (const bf16*)nullptr; };
            load_tile<Kp>(query, K, query_row);
            load_tile<Vp>(dout, V, [&](int r) { return e0 + r < s.end ? gradient + index(r) * V : (const bf16*)nullptr; });
            bool fetched[WINDOW_TILES] = {};
#pragma unroll
            for (int i = 0; i < WINDOW_TILES; i++)
                if (i <= older) fetched[i] = fetch(e0 - i * CHUNK);
#if SLOTS > 0
            state.publish(slot_keys, slot_values);
#endif
            if (threadIdx.x < CHUNK) logs[threadIdx.x] = e0 + threadIdx.x < s.end ? to_float(lse[index(threadIdx.x)]) * LOG2E : 1e30f; // no row: p = 0
            tiles_loaded();
            turn(turned_query, query, e0);
#pragma unroll
            for (int i = 0; i < WINDOW_TILES; i++)
                if (fetched[i]) turn(keys_of(e0 - i * CHUNK), keys_of(e0 - i * CHUNK), e0 - i * CHUNK);
#if SLOTS > 0
            if (head == h * each) g.compute(gate_rows, e0, window, normalizer);
#endif
            __syncthreads();
            u32 x[Kp / 16][4], y[Vp / 16][4];
            load_rows(x, turned_query, KS, t0);
            load_rows(y, dout, VS, t0);
            float log[2] = {logs[row], logs[row + 8]}, total[2] = {}, inside[2] = {};
            auto sweep = [&](auto use) { // of logits to probabilities, and of value . dO
                for (int i = 0; i <= older; i++) {
                    const int u0 = e0 - i * CHUNK;
                    const bf16 *window_keys = keys_of(u0), *window_values = window_keys + CHUNK * KS;
                    if (resident[place(u0)] != u0) {
                        __syncthreads();
                        fetch(u0);
                        tiles_loaded();
                        turn(keys_of(u0), keys_of(u0), u0);
                        __syncthreads();
                    }
                    for (int n = half * 16; n < CHUNK; n += 32) {
                        if (!in_window(u0 + n, e0 + t0, window)) continue;
                        float p[2][4], dp[2][4];
                        times_rows(p, x, window_keys, KS, n);
                        times_rows(dp, y, window_values, VS, n);
#pragma unroll
                        for (int m = 0; m < 2; m++)
#pragma unroll
                            for (int i = 0; i < 4; i++) {
                                int u = u0 + n + 8 * m + pair() + i % 2, e = e0 + row + i / 2 * 8;
                                p[m][i] = u >= 0 && u <= e && u > e - window ? exp2_fast(p[m][i] * scale2 - log[i / 2]) : 0;
                            }
                        use(window_keys, n, p, dp);
                    }
                }
            };
            sweep([&](const bf16*, int, float (&p)[2][4], float (&dp)[2][4]) {
#pragma unroll
                for (int m = 0; m < 2; m++)
#pragma unroll
                    for (int i = 0; i < 4; i++) total[i / 2] += p[m][i], inside[i / 2] += p[m][i] * dp[m][i];
            });
#if SLOTS > 0
            float p[MH / 8][4], dl[MH / 8][4];
            u32 straight_x[Kp / 16][4];
            load_rows(straight_x, query, KS, t0);
            u32 p_earlier[MH / 8][2], dl_earlier[MH / 8][2];
            auto keep = [](u32 (&to)[MH / 8][2]) {
                return [&to](int n, float (&d)[4], auto factor) { to[n][0] = pack_bf16(d[0] * factor(0), d[1] * factor(1)), to[n][1] = pack_bf16(d[2] * factor(2), d[3] * factor(3)); };
            };
            read_slots<Kp>(p, straight_x, slot_keys, keys, g, t0, half, keep(p_earlier));
            read_slots<Vp>(dl, y, slot_values, values, g, t0, half, keep(dl_earlier));
#pragma unroll
            for (int n = 0; n < MH / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    bool live = half * MH + 8 * n + pair() + i % 2 < M && (!mask || e0 + row + i / 2 * 8 >= window);
                    p[n][i] = live ? exp2_fast(p[n][i] * scale2 - log[i / 2]) : 0;
                    total[i / 2] += p[n][i], inside[i / 2] += p[n][i] * dl[n][i];
                }
#endif
#pragma unroll
            for (int r = 0; r < 2; r++) {
                total[r] += __shfl_xor_sync(~0u, total[r], 1);
                total[r] += __shfl_xor_sync(~0u, total[r], 2);
                inside[r] += __shfl_xor_sync(~0u, inside[r], 1);
                inside[r] += __shfl_xor_sync(~0u, inside[r], 2);
                if (pair() == 0) totals[half * CHUNK + row + 8 * r] = total[r], totals[(2 + half) * CHUNK + row + 8 * r] = inside[r];
            }
            __syncthreads();
            float inverse[2];
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const float* other = totals + row + 8 * r;
                total[r] = other[0] + other[CHUNK] + sinks * exp2_fast(-log[r]);
                inverse[r] = total[r] > 0 ? 1 / total[r] : 0;
                inside[r] = (other[2 * CHUNK] + other[3 * CHUNK]) * inverse[r];
                if (e0 + row + 8 * r < s.end) log[r] += log2_fast(total[r]);
                if (half == 0 && pair() == 0 && e0 + row + 8 * r < s.end) exact[index(row + 8 * r)] = log[r], inner[index(row + 8 * r)] = inside[r];
            }
#if SLOTS > 0
            u32 p_packed[MH / 8][2], dl_packed[MH / 8][2];
#pragma unroll
            for (int n = 0; n < MH / 8; n++) {
                float terms[4];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    p[n][i] *= inverse[i / 2];
                    dl[n][i] = p[n][i] * (dl[n][i] - inside[i / 2]);
                    u32 l = p_earlier[n][i / 2], read = dl_earlier[n][i / 2];
                    terms[i] = dl[n][i] * scale * (i % 2 ? unpack_high(l) : unpack_low(l)) + p[n][i] * (i % 2 ? unpack_high(read) : unpack_low(read));
                }
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    p_packed[n][r] = pack_bf16(p[n][2 * r], p[n][2 * r + 1]);
                    dl_packed[n][r] = pack_bf16(dl[n][2 * r], dl[n][2 * r + 1]);
                    if (e0 + row + 8 * r < s.end) *(u32*)(earlier + index(row + 8 * r) * Mp + half * MH + 8 * n + pair()) = pack_bf16(terms[2 * r], terms[2 * r + 1]);
                }
            }
            float straight[Kp / 8][4];
            zero(straight);
            write_slots<Kp>(straight, dl, slot_keys, keys, g, t0, half);
            __syncthreads();
#pragma unroll
            for (int n = 0; n < MH / 8; n++)
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    int at = (row + 8 * r) * PS + half * MH + 8 * n + pair();
                    *(u32*)(p_tile + at) = p_packed[n][r], *(u32*)(dl_tile + at) = dl_packed[n][r];
                }
            __syncthreads();
#endif
            float turned[Kp / 8][4];
            zero(turned);
            sweep([&](const bf16* window_keys, int n, float (&p)[2][4], float (&dp)[2][4]) {
#pragma unroll
                for (int m = 0; m < 2; m++)
#pragma unroll
                    for (int i = 0; i < 4; i++) p[m][i] *= dp[m][i] - inside[i / 2];
                u32 a[4];
                as_a(a, p);
                add_times(turned, a, window_keys, KS, n);
            });
#if SLOTS > 0
            adjoint.add<false>(query, dout, [&](int r, int slot, bool key) {
                float f = exp2_fast(before[slot] + g.G[r * GS + slot]);
                return key ? f * scale * to_float(dl_tile[r * PS + slot]) : f * to_float(p_tile[r * PS + slot]);
            });
#endif
            __syncthreads();
            if (half == 1) store_rows(sums, turned, t0);
            __syncthreads();
            if (half == 0) add_rows(sums, turned, t0);
            __syncthreads();
            if (cosines) turn_back(sums, K, cosines, sines, e0 - origin, min(CHUNK, s.end - e0));
#if SLOTS > 0
            __syncthreads();
            if (half == 0) add_rows(sums, straight, t0);
            __syncthreads();
            if (half == 1) add_rows(sums, straight, t0);
            for (int i = threadIdx.x; i < CHUNK * (Mp / 8); i += THREADS) {
                int r = i / (Mp / 8), column = i % (Mp / 8) * 8;
                if (e0 + r >= s.end) continue;
                *(uint4*)(weights + index(r) * Mp + column) = *(const uint4*)(p_tile + r * PS + column);
                *(uint4*)(dlogits + index(r) * Mp + column) = *(const uint4*)(dl_tile + r * PS + column);
            }
#endif
            __syncthreads();
            write_rows(sums, Kp, K, scale, [&](int r) { return e0 + r < s.end ? dq + index(r) * K : (bf16*)nullptr; }, [](int) { return false; });
            __syncthreads();
        }
#if SLOTS > 0
        if (threadIdx.x < Mp) before[threadIdx.x] += g.end(threadIdx.x);
        state.enter(g, keys, values);
        __syncthreads();
#endif
    }
#if SLOTS > 0
    adjoint.write(adjoints + s.state * STATE);
#endif
}
#endif

#if PASS == SLOTS_BACKWARD
__device__ __forceinline__ u32 transpose_8x8(u32 x) {
    u32 y;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
    return y;
}
__device__ __forceinline__ float rounded(float x) { return to_float(round_to<bf16>(x)); }

// Walks a segment's chunks down with the adjoints U, R on the chip (SPEC 1.3); two warps share 16 tokens j and take halves of the
// slots. With D_j,i = U_j,i.k'_j + R_j,i.v'_j, the gradient of log a is
//
//	a_j da_j = Y_j - a_j D_j        Y_j = a_j (U_j.Ks_{j-1} + R_j.Vs_{j-1}) = sum of c_t,u over t >= j > u
//
// c_t,u being what token u gives to query t's l dl + p Vs.dO through the slot (and the first state, the last adjoint alike). Every
// term is of order a_j, but the sum is formed from sums over t and over u, where terms without a_j have to cancel. Inside a
// block of 16 they do so exactly: both sums are of the same rounded factors. Outside, sums over whole blocks serve, and where a
// block fades to nothing what passes over it is 0.
extern "C" __global__ __launch_bounds__(THREADS, BLOCKS) void nha_backward_slots(
    const Sequence* sequences, const int* items, const bf16* queries, const bf16* k, const bf16* v, const bf16* z, const float* states, const float* adjoints,
    const bf16* gradient, const bf16* weights, const bf16* dlogits, const bf16* earlier, bf16* dk, bf16* dv, bf16* dz,
    int query_heads, int heads, int window, float scale, float normalizer) {
    constexpr int PS = Mp + 8;
    Carve c;
    char* front = c.take<char>(larger((CHUNK + Mp) * (KS + VS) * 2, 2 * CHUNK * GS * 4));
    bf16 *keys = (bf16*)front, *values = keys + CHUNK * KS, *u_tile = values + CHUNK * VS, *r_tile = u_tile + Mp * KS;
    float *later = (float*)front, *inside = later + CHUNK * GS; // D of queries behind and in the block, once the heads are done
    char* region = c.take<char>(larger(CHUNK * (KS + VS + 2 * PS) * 2, CHUNK * (DP + 8) * 4));
    bf16 *query = (bf16*)region, *dout = query + CHUNK * KS, *p_tile = dout + CHUNK * VS, *dl_tile = p_tile + CHUNK * PS;
    float* sums = (float*)region; // of gradients, once the heads are done
    Gates g = {c.take<float>(CHUNK * GS), c.take<float>(CHUNK * GS), c.take<float>(4 * Mp)};
    float *crossing = c.take<float>(CHUNK * GS), *up = c.take<float>(4 * Mp), *through = c.take<float>(Mp); // crossing: c_t,. - c_.,t inside blocks
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, j0 = warp % 4 * 16, half = warp / 4, first = half * MH, row = j0 + group();
    Segment s(sequences, items, heads);
    const Sequence& q = s.q;
    const int h = s.h, each = query_heads / heads, K = q.K(), V = q.V(), M = q.M();
    const Tokens key_rows(q, k, q.keys, h, heads, K), value_rows(q, v, q.values, h, heads, V);
    const Rows<bf16, float> gate_rows(q, z, q.gates, h, heads, M);
    State adjoint;
    adjoint.read(adjoints + s.state * STATE);
    {
        const float *end = states + (s.state + heads) * STATE, *u = adjoints + s.state * STATE;
        for (int i = warp; i < Mp; i += WARPS) {
            float sum = 0;
            for (int n = lane; n < Kp; n += 32) sum += end[i * Kp + n] * u[i * Kp + n];
            for (int n = lane; n < Vp; n += 32) sum += end[Mp * Kp + i * Vp + n] * u[Mp * Kp + i * Vp + n];
            sum = warp_sum(sum);
            if (lane == 0) through[i] = sum;
        }
    }
    for (int e0 = s.first + (s.end - s.first - 1) / CHUNK * CHUNK; e0 >= s.first; e0 -= CHUNK) {
        __syncthreads();
        auto entering = [&](const Tokens& x) { return [&](int r) { return e0 + r < s.end ? at(x, e0 + r - window) : nullptr; }; };
        load_tile<Kp>(keys, K, entering(key_rows));
        load_tile<Vp>(values, V, entering(value_rows));
        g.fetch(gate_rows, e0, window);
        adjoint.publish(u_tile, r_tile);
        for (int i = threadIdx.x; i < CHUNK * GS; i += THREADS) crossing[i] = 0;
        tiles_loaded();
        g.compute(gate_rows, e0, window, normalizer);
        const float *middle = g.G + (j0 + 8) * GS + first, *end = g.G + 63 * GS + first;
        float dkeys[Kp / 8][4], dvalues[Vp / 8][4], d[MH / 8][4], d_inside[MH / 8][4];
        zero(dkeys), zero(dvalues), zero(d), zero(d_inside);
        u32 x[Kp / 16][4], y[Vp / 16][4], write[MH / 16][4]; // write: e^{G_m - G_j} s_j
        load_rows(x, keys, KS, j0);
        load_rows(y, values, VS, j0);
#pragma unroll
        for (int n = 0; n < MH / 16; n++) {
            u32 a[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int slot = 16 * n + pair() + i / 2 * 8;
                const float* l = g.L + (row + i % 2 * 8) * GS + first + slot;
                write[n][i] = pack_bf16(exp2_fast(middle[slot] - l[0]), exp2_fast(middle[slot + 1] - l[1]));
                a[i] = pack_bf16(exp2_fast(end[slot] - l[0]), exp2_fast(end[slot + 1] - l[1]));
            }
            add_times(dkeys, a, u_tile, KS, first + 16 * n);
            add_times(dvalues, a, r_tile, VS, first + 16 * n);
        }
#pragma unroll
        for (int n = 0; n < MH / 8; n += 2) {
#pragma unroll
            for (int m = 0; m < Kp / 16; m++) {
                u32 b[4];
                load_b(b, u_tile, KS, first + 8 * n, 16 * m);
                mma_bf16(d[n], x[m], b[0], b[1]);
                mma_bf16(d[n + 1], x[m], b[2], b[3]);
            }
#pragma unroll
            for (int m = 0; m < Vp / 16; m++) {
                u32 b[4];
                load_b(b, r_tile, VS, first + 8 * n, 16 * m);
                mma_bf16(d[n], y[m], b[0], b[1]);
                mma_bf16(d[n + 1], y[m], b[2], b[3]);
            }
        }
#pragma unroll
        for (int n = 0; n < MH / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int slot = 8 * n + pair() + i % 2;
                d[n][i] *= exp2_fast(end[slot] - middle[slot]);
            }
        adjoint.fade(g);
        for (int head = h * each; head < (h + 1) * each; head++) {
            auto index = [&](int r) { return q.row(e0 + r) * query_heads + head; };
            __syncthreads();
            load_tile<Kp>(query, K, [&](int r) { return e0 + r < s.end ? queries + index(r) * K : (const bf16*)nullptr; });
            load_tile<Vp>(dout, V, [&](int r) { return e0 + r < s.end ? gradient + index(r) * V : (const bf16*)nullptr; });
            load_tile<Mp>(p_tile, Mp, [&](int r) { return e0 + r < s.end ? weights + index(r) * Mp : (const bf16*)nullptr; });
            load_tile<Mp>(dl_tile, Mp, [&](int r) { return e0 + r < s.end ? dlogits + index(r) * Mp : (const bf16*)nullptr; });
            tiles_loaded();
            for (int t0 = j0; t0 < CHUNK; t0 += 16) {
                float scores[2][4], values_scores[2][4], key_mix[2][4], value_mix[2][4];
                times_rows(scores, x, query, KS, t0);
                times_rows(values_scores, y, dout, VS, t0);
                zero(key_mix), zero(value_mix);
#pragma unroll
                for (int n = 0; n < 2; n++) {
                    int t = t0 + 8 * n + group();
#pragma unroll
                    for (int m = 0; m < MH / 16; m++) {
                        int slot = 16 * m + pair();
                        u32 bk[2], bv[2];
#pragma unroll
                        for (int i = 0; i < 2; i++) {
                            float f = exp2_fast(g.G[t * GS + first + slot + 8 * i] - middle[slot + 8 * i]), f1 = exp2_fast(g.G[t * GS + first + slot + 8 * i + 1] - middle[slot + 8 * i + 1]);
                            u32 dl = *(const u32*)(dl_tile + t * PS + first + slot + 8 * i), p = *(const u32*)(p_tile + t * PS + first + slot + 8 * i);
                            bk[i] = pack_bf16(unpack_low(dl) * f, unpack_high(dl) * f1);
                            bv[i] = pack_bf16(unpack_low(p) * f, unpack_high(p) * f1);
                        }
                        mma_bf16(key_mix[n], write[m], bk[0], bk[1]);
                        mma_bf16(value_mix[n], write[m], bv[0], bv[1]);
                    }
                }
#pragma unroll
                for (int n = 0; n < 2; n++)
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        bool past = t0 + 8 * n + pair() + i % 2 < row + i / 2 * 8;
                        scores[n][i] = past ? 0 : scores[n][i] * scale;
                        values_scores[n][i] = past ? 0 : values_scores[n][i];
                        key_mix[n][i] = past ? 0 : key_mix[n][i] * scale;
                        value_mix[n][i] = past ? 0 : value_mix[n][i];
                    }
                u32 a[4], b[4];
                as_a(a, key_mix);
                add_times(dkeys, a, query, KS, t0);
                as_a(a, value_mix);
                add_times(dvalues, a, dout, VS, t0);
                as_a(a, scores);
                as_a(b, values_scores);
                auto add_products = [&](float (&d)[MH / 8][4]) {
#pragma unroll
                    for (int n = 0; n < MH / 8; n++) {
                        int slot = first + 8 * n + group();
                        float m = middle[8 * n + group()], f[4];
#pragma unroll
                        for (int i = 0; i < 4; i++) f[i] = exp2_fast(g.G[(t0 + pair() + i % 2 + i / 2 * 8) * GS + slot] - m);
                        const bf16 *dl = dl_tile + (t0 + pair()) * PS + slot, *p = p_tile + (t0 + pair()) * PS + slot;
                        mma_bf16(d[n], a, pack_bf16(to_float(dl[0]) * f[0], to_float(dl[PS]) * f[1]), pack_bf16(to_float(dl[8 * PS]) * f[2], to_float(dl[9 * PS]) * f[3]));
                        mma_bf16(d[n], b, pack_bf16(to_float(p[0]) * f[0], to_float(p[PS]) * f[1]), pack_bf16(to_float(p[8 * PS]) * f[2], to_float(p[9 * PS]) * f[3]));
                    }
                };
                if (t0 > j0) {
                    add_products(d);
                    continue;
                }
                add_products(d_inside);
                u32 a_turned[4] = {transpose_8x8(a[0]), transpose_8x8(a[2]), transpose_8x8(a[1]), transpose_8x8(a[3])};
                u32 b_turned[4] = {transpose_8x8(b[0]), transpose_8x8(b[2]), transpose_8x8(b[1]), transpose_8x8(b[3])};
#pragma unroll
                for (int n = 0; n < MH / 8; n++) { // the same products summed over the block's tokens
                    float m = middle[8 * n + group()], l_sum[4] = {}, read_sum[4] = {};
                    const float* l = g.L + (j0 + pair()) * GS + first + 8 * n + group();
                    u32 b0 = pack_bf16(exp2_fast(m - l[0]), exp2_fast(m - l[GS])), b1 = pack_bf16(exp2_fast(m - l[8 * GS]), exp2_fast(m - l[9 * GS]));
                    mma_bf16(l_sum, a_turned, b0, b1);
                    mma_bf16(read_sum, b_turned, b0, b1);
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        int r = row + i / 2 * 8, slot = 8 * n + pair() + i % 2;
                        float f = exp2_fast(g.G[r * GS + first + slot] - middle[slot]);
                        crossing[r * GS + first + slot] += rounded(to_float(dl_tile[r * PS + first + slot]) * f) * l_sum[i] + rounded(to_float(p_tile[r * PS + first + slot]) * f) * read_sum[i];
                    }
                }
            }
            adjoint.add<false>(query, dout, [&](int r, int slot, bool key) {
                float f = exp2_fast(g.G[r * GS + slot]);
                return key ? f * scale * to_float(dl_tile[r * PS + slot]) : f * to_float(p_tile[r * PS + slot]);
            });
        }
        __syncthreads();
        if (half == 1) store_rows(sums, dkeys, j0);
#pragma unroll
        for (int n = 0; n < MH / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int slot = 8 * n + pair() + i % 2, at = (row + i / 2 * 8) * GS + first + slot;
                float f = exp2_fast(middle[slot] - g.G[at]);
                later[at] = d[n][i] * f, inside[at] = d_inside[n][i] * f;
                crossing[at] -= rounded(exp2_fast(middle[slot] - g.L[at])) * d_inside[n][i];
            }
        __syncthreads();
        if (half == 0) add_rows(sums, dkeys, j0);
        // up: what a block's queries have from before it, part: what its tokens give to queries behind it.
        auto strength = [&](int at) { return exp2_fast(g.G[at] - g.L[at]); };
        auto from_earlier = [&](int r, int i) {
            float sum = 0;
            for (int head = h * each; e0 + r < s.end && head < (h + 1) * each; head++) sum += to_float(earlier[(q.row(e0 + r) * query_heads + head) * Mp + i]);
            return sum;
        };
        for (int item = threadIdx.x; item < 4 * Mp; item += THREADS) {
            int i = item % Mp, start = item / Mp * 16;
            float gives = 0, has = 0;
#pragma unroll
            for (int r = 0; r < 16; r++) has += from_earlier(start + r, i);
            for (int r = start; r < start + 16; r++) gives += strength(r * GS + i) * later[r * GS + i];
            g.part[item] = gives, up[item] = has;
        }
        __syncthreads();
        for (int item = threadIdx.x; item < 4 * Mp; item += THREADS) {
            int i = item % Mp, block = item / Mp;
            auto fades = [&](int b) { return g.G[(16 * b + 15) * GS + i] - (b ? g.G[(16 * b - 1) * GS + i] : 0) < -8; };
            float over = through[i]; // at the end of the block, then what passes over it
            for (int b = 3; b > block; b--) over = (fades(b) ? 0 : over - g.part[b * Mp + i]) + up[b * Mp + i];
            over = fades(block) ? 0 : over - g.part[item];
            float below = g.part[item], above = 0; // of tokens before j to later queries, of queries from j on from before; and inside the block
            float crosses[16];
#pragma unroll
            for (int r = 0; r < 16; r++) crosses[r] = from_earlier(16 * block + r, i) + crossing[(16 * block + r) * GS + i];
#pragma unroll
            for (int n = 15; n >= 0; n--) {
                int r = 16 * block + n, at = r * GS + i, e = e0 + r, j = e - window;
                below -= strength(at) * later[at];
                above += crosses[n];
                if (i >= M || j < 0 || e >= s.end) continue;
                float a = exp2_fast(g.G[at] - (r ? g.G[at - GS] : 0)), dg = over + below + above - a * (later[at] + inside[at]);
                if (j < q.held) {
                    q.ring_dgates[((i64)h * q.held + j) * M + i] = dg;
                } else {
                    i64 to = (q.row(j) * heads + h) * M + i;
                    dz[to] = round_to<bf16>(dg * normalizer / (1 + exp2_fast(to_float(z[to]) * LOG2E)));
                }
            }
            if (block == 0) up[i] += over; // Y at the chunk's start
        }
        // put writes the gradients of the tokens' keys or values.
        auto put = [&](bf16* fresh, bf16* ring, int width, int padded) {
            auto row = [&](int r) -> bf16* {
                int e = e0 + r, j = e - window;
                if (j < 0 || e >= s.end) return nullptr;
                return j < q.held ? ring + ((i64)h * q.held + j) * width : fresh + (q.row(j) * heads + h) * width;
            };
            write_rows(sums, padded, width, 1, row, [](int) { return false; });
            __syncthreads();
        };
        put(dk, q.ring_dkeys, K, Kp);
        if (half == 1) store_rows(sums, dvalues, j0);
        __syncthreads();
        if (half == 0) add_rows(sums, dvalues, j0);
        __syncthreads();
        put(dv, q.ring_dvalues, V, Vp);
        if (threadIdx.x < Mp) through[threadIdx.x] = up[threadIdx.x];
    }
}
#endif

#if PASS == WINDOW
// dk and dv of 64 tokens from the queries that see them in their window, added to what the slots gave. items: sequence and block.
extern "C" __global__ __launch_bounds__(THREADS, BLOCKS) void nha_backward_window(
    const Sequence* sequences, const int* items, const bf16* queries, const bf16* k, const bf16* v, const float* cosines, const float* sines,
    const bf16* gradient, const float* exact, const float* inner, bf16* dk, bf16* dv, int query_heads, int heads, int window, float scale, int has_slots) {
    Carve c;
    bf16 *keys = c.take<bf16>(CHUNK * KS), *values = c.take<bf16>(CHUNK * VS);
    char* region = c.take<char>(larger(CHUNK * (KS + VS) * 2, CHUNK * (Kp + Vp + 16) * 4));
    bf16 *query = (bf16*)region, *dout = query + CHUNK * KS;
    float *key_sums = (float*)region, *value_sums = key_sums + CHUNK * (Kp + 8);
    float *logs = c.take<float>(CHUNK), *inners = c.take<float>(CHUNK);
    const int warp = threadIdx.x / 32, u0 = warp % 4 * 16, half = warp / 4, row = u0 + group();
    const Sequence q = sequences[items[2 * blockIdx.x]];
    const int h = blockIdx.y, each = query_heads / heads, K = q.K(), V = q.V(), begin = items[2 * blockIdx.x + 1] * CHUNK, all = q.all();
    const int origin = window < all ? begin : 0;
    const Tokens key_rows(q, k, q.keys, h, heads, K), value_rows(q, v, q.values, h, heads, V);
    const float scale2 = scale * LOG2E;
    auto token_row = [&](const Tokens& x) { return [&](int r) { return at(x, begin + r); }; };
    const Turn turn = {cosines, sines, K, origin, all};
    load_tile<Kp>(keys, K, token_row(key_rows));
    load_tile<Vp>(values, V, token_row(value_rows));
    tiles_loaded();
    turn(keys, keys, begin);
    __syncthreads();
    u32 x[Kp / 16][4], y[Vp / 16][4];
    load_rows(x, keys, KS, u0);
    load_rows(y, values, VS, u0);
    float dkeys[Kp / 8][4], dvalues[Vp / 8][4];
    zero(dkeys), zero(dvalues);
    const int last = window < all - begin - CHUNK ? begin + CHUNK - 1 + window : all; // queries end here
    for (int head = h * each; head < (h + 1) * each; head++) {
        for (int e0 = begin; e0 < last; e0 += CHUNK) {
            if (e0 + CHUNK <= q.held) continue;
            auto exists = [&](int r) { return e0 + r >= q.held && e0 + r < all; };
            auto index = [&](int r) { return q.row(e0 + r) * query_heads + head; };
            __syncthreads();
            load_tile<Kp>(query, K, [&](int r) { return exists(r) ? queries + index(r) * K : (const bf16*)nullptr; });
            load_tile<Vp>(dout, V, [&](int r) { return exists(r) ? gradient + index(r) * V : (const bf16*)nullptr; });
            if (threadIdx.x < CHUNK) {
                logs[threadIdx.x] = exists(threadIdx.x) ? exact[index(threadIdx.x)] : 1e30f;
                inners[threadIdx.x] = exists(threadIdx.x) ? inner[index(threadIdx.x)] : 0;
            }
            tiles_loaded();
            turn(query, query, e0);
            __syncthreads();
            for (int t0 = half * 16; t0 < CHUNK; t0 += 32) {
                if (e0 + t0 + 15 < begin + u0 || e0 + t0 - window >= begin + u0 + 15) continue;
                float p[2][4], dp[2][4];
                times_rows(p, x, query, KS, t0);
                times_rows(dp, y, dout, VS, t0);
#pragma unroll
                for (int n = 0; n < 2; n++)
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        int t = t0 + 8 * n + pair() + i % 2, e = e0 + t, u = begin + row + i / 2 * 8;
                        p[n][i] = u <= e && u > e - window ? exp2_fast(p[n][i] * scale2 - logs[t]) : 0;
                        dp[n][i] = p[n][i] * (dp[n][i] - inners[t]) * scale;
                    }
                u32 a[4];
                as_a(a, p);
                add_times(dvalues, a, dout, VS, t0);
                as_a(a, dp);
                add_times(dkeys, a, query, KS, t0);
            }
        }
    }
    __syncthreads();
    if (half == 1) store_rows(key_sums, dkeys, u0), store_rows(value_sums, dvalues, u0);
    __syncthreads();
    if (half == 0) add_rows(key_sums, dkeys, u0), add_rows(value_sums, dvalues, u0);
    __syncthreads();
    if (cosines) turn_back(key_sums, K, cosines, sines, begin - origin, min(CHUNK, all - begin));
    __syncthreads();
    auto put = [&](const float* sums, bf16* fresh, bf16* ring, int width, int padded) {
        auto row = [&](int r) -> bf16* {
            int j = begin + r;
            if (j >= all) return nullptr;
            return j < q.held ? ring + ((i64)h * q.held + j) * width : fresh + (q.row(j) * heads + h) * width;
        };
        write_rows(sums, padded, width, 1, row, [&](int r) { return has_slots && begin + r < all - window; });
    };
    put(key_sums, dk, q.ring_dkeys, K, Kp);
    put(value_sums, dv, q.ring_dvalues, V, Vp);
}
#endif
