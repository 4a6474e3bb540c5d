// The slots of the NHA operator in the chunk form of nha.cuh: gates, states, and the two products.
#include "nha.cuh"

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
};

// rows_of is the first of a warp's 16 rows. The further on in the chunk, the more tokens they meet, so that of the two warps of a scheduler
// one has rows at the front and one at the back.
__device__ __forceinline__ int rows_of(int warp) { return (warp < 4 ? warp : 7 - warp) * 16; }

// in_window reports whether a block of 16 keys has any that a block of 16 queries sees.
__device__ __forceinline__ bool in_window(int keys, int queries, int window) { return keys <= queries + 15 && keys + 15 > queries - window; }

// Gates are, for the tokens that enter in the chunk of e0, G [64][Mp] in base 2 and e^{G_m - G_j} s_j, m being the middle of j's
// block of 16: rounded to bf16, and what rounding leaves. No token: a = 1, s = 0.
struct Gates {
    static constexpr int ES = Mp + 8;
    float *G, *part; // part: [4][Mp]
    bf16 *E, *rest;  // [64][ES]
    static __device__ __forceinline__ Gates take(Carve& c) {
        Gates g;
        g.G = c.take<float>(CHUNK * GS), g.part = c.take<float>(4 * Mp), g.E = c.take<bf16>(CHUNK * ES), g.rest = c.take<bf16>(CHUNK * ES);
        return g;
    }
    __device__ __forceinline__ float middle(int j, int i) const { return G[(j / 16 * 16 + 8) * GS + i]; }
    // entry is e^{G_m - G_j} s_j to 16 bits.
    __device__ __forceinline__ float entry(int j, int i) const { return to_float(E[j * ES + i]) + to_float(rest[j * ES + i]); }
    // fetch starts to copy the logits of new tokens to where E will be; the ring's tokens have log a itself, read by compute.
    __device__ __forceinline__ void fetch(const Rows<bf16, float>& z, int e0, int window) const {
        if (EXACT) {
            load_span<Mp>(E, z[e0 - window], z.stride, z.held - (e0 - window), z.all - e0);
            return;
        }
        load_tile<Mp>(E, z.width, [&](int r) {
            int e = e0 + r, j = e - window;
            return j >= z.held && e < z.all ? z[j] : nullptr;
        });
    }
    __device__ __forceinline__ void compute(const Rows<bf16, float>& z, int e0, int window, float normalizer) const {
        constexpr int EACH = (4 * Mp + THREADS - 1) / THREADS;
        const bool fresh = e0 - window >= z.held && e0 + CHUNK <= z.all && (EXACT || z.width == Mp); // all from the copied logits
        float logits[EACH][16];
        if (fresh) {
#pragma unroll
            for (int n = 0; n < EACH; n++) {
                int item = threadIdx.x + n * THREADS;
                if (item >= 4 * Mp) break;
                const bf16* from = E + item / Mp * 16 * ES + item % Mp;
#pragma unroll
                for (int r = 0; r < 16; r++) logits[n][r] = to_float(from[r * ES]);
            }
        } else {
#pragma unroll 1
            for (int r = 0; r < 16; r++)
#pragma unroll
                for (int n = 0; n < EACH; n++) {
                    int item = threadIdx.x + n * THREADS, i = item % Mp, first = item / Mp * 16;
                    if (item >= 4 * Mp) break;
                    int e = e0 + first + r, j = e - window;
                    float x = 1e30f; // a = 1, s = 0
                    if (i < z.width && j >= 0 && e < z.all) x = j < z.held ? z.in_ring(j)[i] : to_float(E[(first + r) * ES + i]);
                    G[(first + r) * GS + i] = x; // its own, read again below
                }
#pragma unroll
            for (int n = 0; n < EACH; n++) {
                int item = threadIdx.x + n * THREADS;
                if (item >= 4 * Mp) break;
#pragma unroll
                for (int r = 0; r < 16; r++) logits[n][r] = G[(item / Mp * 16 + r) * GS + item % Mp];
            }
        }
        float sums[EACH][16];
#pragma unroll
        for (int n = 0; n < EACH; n++) {
            int item = threadIdx.x + n * THREADS, first = item / Mp * 16;
            if (item >= 4 * Mp) break;
            float sum = 0;
            const int in_ring = fresh ? 0 : z.held - (e0 + first - window); // the ring's tokens keep log a itself
#pragma unroll
            for (int r = 0; r < 16; r++) {
                float x = logits[n][r];
                float y = exp2_fast(-fabsf(x) * LOG2E);
                float log1p = y < 0.0078125f ? y * (1 - y * (0.5f - y * 0.33333333f)) : log2_fast(1 + y) * 0.69314718f;
                float logA = (fminf(x, 0.0f) - log1p) * normalizer;
                if (r < in_ring && x < 1e29f) logA = x;
                logA = fmaxf(logA, LOWEST_LOG_A);
                logits[n][r] = logA > -0.0625f ? -logA * (1 + logA * (0.5f + logA * (0.16666667f + logA * 0.041666667f))) : 1 - exp2_fast(logA * LOG2E); // s
                sum += logA * LOG2E;
                sums[n][r] = sum;
            }
            part[item] = sum;
        }
        __syncthreads();
#pragma unroll
        for (int n = 0; n < EACH; n++) {
            int item = threadIdx.x + n * THREADS, i = item % Mp, block = item / Mp;
            if (item >= 4 * Mp) break;
            float before = 0;
#pragma unroll
            for (int b = 0; b < 3; b++) before += b < block ? part[b * Mp + i] : 0;
            float* g = G + block * 16 * GS + i;
            bf16 *e = E + block * 16 * ES + i, *l = rest + block * 16 * ES + i;
#pragma unroll
            for (int r = 0; r < 16; r++) {
                float x = logits[n][r] * exp2_fast(sums[n][8] - sums[n][r]);
                bf16 rounded = round_to<bf16>(x);
                g[r * GS] = sums[n][r] + before;
                e[r * ES] = rounded;
                l[r * ES] = round_to<bf16>(x - to_float(rounded));
            }
        }
        __syncthreads();
    }
    __device__ __forceinline__ float end(int i) const { return G[63 * GS + i]; }
};

// State is the slots (or their adjoints) in float32, spread over the warps' registers: unit u is 16 slots' keys (even) or values.
struct State {
    static constexpr int UNITS = Mp / 8, EACH = (UNITS + WARPS - 1) / WARPS, N = DP / 8;
    float x[EACH][N][4];
    // each calls f(numbers, first slot, keys).
    template <typename F> __device__ __forceinline__ void each(F f) {
#pragma unroll
        for (int n = 0; n < EACH; n++) {
            int unit = threadIdx.x / 32 + WARPS * n;
            if (unit < UNITS) f(x[n], unit / 2 * 16, unit % 2 == 0);
        }
    }
    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int n = 0; n < EACH; n++) zero(x[n]);
    }
    // rows is where f(numbers, address, width) finds them in the global layout: [Mp, Kp] then [Mp, Vp].
    template <typename T, typename F> __device__ __forceinline__ void rows(T* all, F f) {
        each([&](float (&x)[N][4], int i, bool keys) {
            int width = keys ? Kp : Vp;
            T* at = all + (keys ? 0 : Mp * Kp) + (i + group()) * width + pair();
#pragma unroll
            for (int n = 0; n < N; n++)
                if (8 * n < width) f(x[n], at + 8 * n, width);
        });
    }
    __device__ __forceinline__ void read(const float* from) {
        rows(from, [](float (&x)[4], const float* at, int width) {
            float2 low = *(const float2*)at, high = *(const float2*)(at + 8 * width);
            x[0] = low.x, x[1] = low.y, x[2] = high.x, x[3] = high.y;
        });
    }
    __device__ __forceinline__ void write(float* to) {
        rows(to, [](float (&x)[4], float* at, int width) {
            *(float2*)at = make_float2(x[0], x[1]);
            *(float2*)(at + 8 * width) = make_float2(x[2], x[3]);
        });
    }
    // publish rounds the slots to the tiles that products read; keys_rest and values_rest, where given: what that leaves.
    __device__ __forceinline__ void publish(bf16* keys_tile, bf16* values_tile, bf16* keys_rest = nullptr, bf16* values_rest = nullptr) {
        each([&](float (&x)[N][4], int i, bool keys) {
            int width = keys ? Kp : Vp, first = (i + group()) * (width + 8) + pair();
            bf16 *rows = (keys ? keys_tile : values_tile) + first, *rest = keys ? keys_rest : values_rest;
#pragma unroll
            for (int n = 0; n < N; n++) {
                if (8 * n >= width) continue;
                u32 low = pack_bf16(x[n][0], x[n][1]), high = pack_bf16(x[n][2], x[n][3]);
                *(u32*)(rows + 8 * n) = low, *(u32*)(rows + 8 * (width + 8) + 8 * n) = high;
                if (!rest) continue;
                *(u32*)(rest + first + 8 * n) = pack_bf16(x[n][0] - unpack_low(low), x[n][1] - unpack_high(low));
                *(u32*)(rest + first + 8 * (width + 8) + 8 * n) = pack_bf16(x[n][2] - unpack_low(high), x[n][3] - unpack_high(high));
            }
        });
    }
    // fade multiplies by e^{G_end}, as x + expm1(G_end) x: it loses no mass when a is nearly 1.
    __device__ __forceinline__ void fade(const Gates& g) {
        each([&](float (&x)[N][4], int i, bool) {
            float low = expm1f(g.end(i + group()) * 0.69314718f), high = expm1f(g.end(i + group() + 8) * 0.69314718f);
#pragma unroll
            for (int n = 0; n < N; n++) {
                x[n][0] = fmaf(low, x[n][0], x[n][0]), x[n][1] = fmaf(low, x[n][1], x[n][1]);
                x[n][2] = fmaf(high, x[n][2], x[n][2]), x[n][3] = fmaf(high, x[n][3], x[n][3]);
            }
        });
    }
    // add is += w^T x over a chunk's rows: weights(a, rest, r, slot, keys) are the operands of rows from r on and 16 slots. SPLIT: there
    // are two, the rounding error of the first being the other.
    template <bool SPLIT, typename Weights> __device__ __forceinline__ void add(const bf16* keys_tile, const bf16* values_tile, Weights weights) {
        each([&](float (&x)[N][4], int i, bool keys) {
            const bf16* tile = keys ? keys_tile : values_tile;
            int width = keys ? Kp : Vp;
#pragma unroll
            for (int r = 0; r < CHUNK; r += 16) {
                u32 a[4], rest[4];
                weights(a, rest, r, i, keys);
#pragma unroll
                for (int n = 0; n < N; n += 2) {
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
    // add_queries is += w^T x for tiles of dl and p that hold e^{G_t - G_m}, m being the middle of t's block; factor(m, slot) is the rest.
    template <typename Factor> __device__ __forceinline__ void add_queries(const bf16* query, const bf16* dout, const bf16* dl_tile, const bf16* p_tile, Factor factor) {
        add<false>(query, dout, [&](u32 (&a)[4], u32 (&)[4], int r, int slot, bool keys) {
            load_a_transposed(a, keys ? dl_tile : p_tile, Mp + 8, slot, r);
            const float f[2] = {factor(r + 8, slot + group()), factor(r + 8, slot + group() + 8)};
#pragma unroll
            for (int i = 0; i < 4; i++) a[i] = pack_bf16(unpack_low(a[i]) * f[i % 2], unpack_high(a[i]) * f[i % 2]);
        });
    }
    // enter is the chunk's step from its first to its last state. Roundings take part: weights that are nearly equal would all err to
    // the same side.
    __device__ __forceinline__ void enter(const Gates& g, const bf16* keys_tile, const bf16* values_tile) {
        fade(g);
        add<true>(keys_tile, values_tile, [&](u32 (&a)[4], u32 (&rest)[4], int r, int slot, bool) {
            u32 e[4], l[4];
            load_a_transposed(e, g.E, Gates::ES, slot, r);
            load_a_transposed(l, g.rest, Gates::ES, slot, r);
            float f[2];
#pragma unroll
            for (int i = 0; i < 2; i++) f[i] = exp2_fast(g.end(slot + group() + 8 * i) - g.middle(r, slot + group() + 8 * i));
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float x = (unpack_low(e[i]) + unpack_low(l[i])) * f[i % 2], y = (unpack_high(e[i]) + unpack_high(l[i])) * f[i % 2];
                a[i] = pack_bf16(x, y), rest[i] = pack_bf16(x - unpack_low(a[i]), y - unpack_high(a[i]));
            }
        });
    }
};

// read_slots is the product "read" above for a warp's 16 rows from t0 on and its half of the slots. a: x; states: S0; x: x'.
// earlier is told the part that tokens before t0 have in it. SPLIT: roundings of factors take part,
// those of the states where states_rest is given.
template <int D, bool SPLIT = false, typename Earlier> __device__ __forceinline__ void read_slots(float (&d)[MH / 8][4], const u32 (&a)[D / 16][4], const bf16* states, const bf16* states_rest, const bf16* x, const Gates& g, int t0, int half, Earlier earlier) {
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
            if (!SPLIT || !states_rest) continue;
            load_b(b, states_rest, D + 8, first + 8 * n, 16 * k);
            mma_bf16(d[n], a[k], b[0], b[1]);
            mma_bf16(d[n + 1], a[k], b[2], b[3]);
        }
    }
    const float* middle = g.G + 8 * GS + first; // of the block of keys in hand; d is relative to it
    auto fade = [&](const float* before) {
#pragma unroll
        for (int n = 0; n < MH / 8; n++) {
            int i = 8 * n + pair();
            float left = exp2_fast(middle[i] - (before ? before[i] : 0)), right = exp2_fast(middle[i + 1] - (before ? before[i + 1] : 0));
            d[n][0] *= left, d[n][1] *= right, d[n][2] *= left, d[n][3] *= right;
        }
    };
    fade(nullptr);
    for (int j0 = 0; j0 <= t0; j0 += 16) {
        if (j0 > 0) middle += 16 * GS, fade(middle - 16 * GS);
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
        add_times(d, s, g.E + first, Gates::ES, j0);
        if (SPLIT) {
            add_times(d, s, g.rest + first, Gates::ES, j0);
            rest_as_a(s, scores[0], scores[1]);
            add_times(d, s, g.E + first, Gates::ES, j0);
        }
    }
#pragma unroll
    for (int n = 0; n < MH / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) d[n][i] *= to_row(middle, n, i);
}

// write_slots is the product "write", added to d. w is used up.
template <int D, bool SPLIT = false> __device__ __forceinline__ void write_slots(float (&d)[D / 8][4], float (&w)[MH / 8][4], const bf16* states, const bf16* states_rest, const bf16* x, const Gates& g, int t0, int half) {
    const int first = half * MH;
    const float *middle = g.G + (t0 + 8) * GS + first, *rows = g.G + (t0 + group()) * GS + first;
#pragma unroll
    for (int n = 0; n < MH / 8; n++) {
        int i = 8 * n + pair();
        w[n][0] *= exp2_fast(rows[i] - middle[i]), w[n][1] *= exp2_fast(rows[i + 1] - middle[i + 1]);
        w[n][2] *= exp2_fast(rows[8 * GS + i] - middle[i]), w[n][3] *= exp2_fast(rows[8 * GS + i + 1] - middle[i + 1]);
    }
    for (int j0 = t0; j0 >= 0; j0 -= 16) {
        float mix[2][4];
        zero(mix);
#pragma unroll
        for (int k = 0; k < MH / 16; k++) {
            u32 a[4], b[4];
            as_a(a, w[2 * k], w[2 * k + 1]);
            load_b(b, g.E, Gates::ES, j0, first + 16 * k);
            mma_bf16(mix[0], a, b[0], b[1]);
            mma_bf16(mix[1], a, b[2], b[3]);
            if (!SPLIT) continue;
            u32 rest[4];
            load_b(rest, g.rest, Gates::ES, j0, first + 16 * k);
            mma_bf16(mix[0], a, rest[0], rest[1]);
            mma_bf16(mix[1], a, rest[2], rest[3]);
            rest_as_a(a, w[2 * k], w[2 * k + 1]);
            mma_bf16(mix[0], a, b[0], b[1]);
            mma_bf16(mix[1], a, b[2], b[3]);
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
        const float* before = middle - 16 * GS; // w goes on to the block before, in the end to the chunk's start
#pragma unroll
        for (int n = 0; n < MH / 8; n++) {
            int i = 8 * n + pair();
            float left = exp2_fast(middle[i] - (j0 > 0 ? before[i] : 0)), right = exp2_fast(middle[i + 1] - (j0 > 0 ? before[i + 1] : 0));
            w[n][0] *= left, w[n][1] *= right, w[n][2] *= left, w[n][3] *= right;
        }
        middle = before;
    }
#pragma unroll
    for (int k = 0; k < MH / 16; k++) {
        u32 a[4];
        as_a(a, w[2 * k], w[2 * k + 1]);
        add_times(d, a, states, D + 8, first + 16 * k);
        if (!SPLIT) continue;
        add_times(d, a, states_rest, D + 8, first + 16 * k);
        rest_as_a(a, w[2 * k], w[2 * k + 1]);
        add_times(d, a, states, D + 8, first + 16 * k);
    }
}
