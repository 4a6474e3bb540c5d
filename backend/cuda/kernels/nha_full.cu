// The window of the NHA operator in the manner of flash attention. One kernel for each PASS:
//
//	TURN          keys and queries rotated once, in float16 for logits (a rotated number rounded to bf16 would move a logit of
//	              100 by .1), and for backward in bf16 too, whose range products with gradients need; where slots compete with the
//	              window, what float16 leaves of queries as well: an error of logits that slots do not share is their gates' gradient
//	FULL_FORWARD  outputs of 128 queries and a query head, where no slot takes part (M = 0, or a window that no token leaves)
//	FULL_QUERIES  backward: the window's part of dq; without slots that is dq, and exact and inner are ready for FULL_KEYS
//	FULL_KEYS     backward: dk, dv of 64 tokens of a kv head, added to what the slots gave
//
// Tiles of 64 tokens are loaded two ahead of each other; a warp has 16 or 32 rows, and only tiles at an edge of the window are masked.
// Turned queries carry c log2 e. A turned token's row is base_token + e.
#include "nha.cuh"

#define TURN 5
#define FULL_FORWARD 6
#define FULL_QUERIES 7
#define FULL_KEYS 8

// A Stage is what is loaded at a time: tiles of 64 rows, in this order.
template <int SIZE> struct Stages {
    bf16* first;
    __device__ __forceinline__ bf16* operator[](int i) const { return first + i % 2 * SIZE; }
};

// visible reports whether key u takes part for query e.
__device__ __forceinline__ bool visible(int u, int e, int window) { return u <= e && u > e - window; }

// turn_back_rows undoes the rotation of gradients in registers: e is the position of this lane's first row.
template <int N> __device__ __forceinline__ void turn_back_rows(float (&x)[N][4], const float* cosines, const float* sines, int e, int end) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        if (e + 8 * r >= end) continue;
        const i64 at = (i64)(e + 8 * r) * (4 * N) + pair();
#pragma unroll
        for (int n = 0; n < N / 2; n++) {
            float2 cosine = *(const float2*)(cosines + at + 8 * n), sine = *(const float2*)(sines + at + 8 * n);
            float &a = x[n][2 * r], &b = x[n + N / 2][2 * r], &c = x[n][2 * r + 1], &d = x[n + N / 2][2 * r + 1], a0 = a, c0 = c;
            a = a0 * cosine.x + b * sine.x, b = b * cosine.x - a0 * sine.x;
            c = c0 * cosine.y + d * sine.y, d = d * cosine.y - c0 * sine.y;
        }
    }
}

// put_rows writes a warp's 16 rows in bf16 to where row(r) says, null for none, by way of its own rows of a tile; added(r): to what is
// there. Nothing is padded.
template <int N, typename Row, typename Added> __device__ __forceinline__ void put_rows(bf16* tile, const float (&x)[N][4], int t0, float scale, Row row, Added added) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int t = t0 + group() + 8 * r;
        const bf16* there = added(t) ? row(t) : nullptr;
#pragma unroll
        for (int n = 0; n < N; n++) {
            u32 y = there ? *(const u32*)(there + 8 * n + pair()) : 0;
            *(u32*)(tile + t * (8 * N + 8) + 8 * n + pair()) = pack_bf16(x[n][2 * r] * scale + unpack_low(y), x[n][2 * r + 1] * scale + unpack_high(y));
        }
    }
    __syncwarp();
#pragma unroll
    for (int i = threadIdx.x % 32; i < 16 * N; i += 32) {
        const int t = t0 + i / N, c = i % N * 8;
        bf16* to = row(t);
        if (to) *(uint4*)(to + c) = *(const uint4*)(tile + t * (8 * N + 8) + c);
    }
    __syncwarp();
}

#if PASS == TURN
// A block has 64 tokens of one head: kv heads first, then query heads, of tokens that the ring does not bring.
extern "C" __global__ __launch_bounds__(128) void nha_turn(const Sequence* sequences, const int* items, const bf16* queries, const bf16* k, const float* cosines, const float* sines,
                                                           bf16* turned_queries, bf16* turned_keys, bf16* rest_queries, bf16* wide_queries, bf16* wide_keys, int query_heads, int heads, float scale) {
    const int each = query_heads + heads, item = blockIdx.x / each;
    const bool key = blockIdx.x % each < heads;
    const int head = key ? blockIdx.x % each : blockIdx.x % each - heads;
    const Sequence q = sequences[items[2 * item]];
    const int begin = items[2 * item + 1] * CHUNK, all = q.all(), K = q.K(), half = K / 2;
    const Tokens key_rows(q, k, q.keys, key ? head : 0, heads, K);
    const float factor = key ? 1 : scale * LOG2E;
    auto put = [&](bf16* to, bf16* rest, bf16* wide, int c, float x) {
        f16 y = round_to<f16>(fminf(fmaxf(x * factor, -65504.0f), 65504.0f));
        to[c].bits = y.bits;
        if (rest) rest[c].bits = round_to<f16>(x * factor - to_float(y)).bits;
        if (wide) wide[c] = round_to<bf16>(x);
    };
    auto row = [&](int e, const bf16*& from, bf16*& to, bf16*& rest, bf16*& wide) {
        if (e >= all || (!key && e < q.held)) return false;
        i64 at = key ? (q.base_token + e) * heads + head : q.row(e) * query_heads + head;
        from = key ? (e < q.held ? key_rows.in_ring(e) : key_rows[e]) : queries + at * K;
        to = (key ? turned_keys : turned_queries) + at * Kp;
        wide = key ? wide_keys : wide_queries;
        if (wide) wide += at * Kp;
        rest = key || !rest_queries ? nullptr : rest_queries + at * Kp;
        return true;
    };
    const bf16* from;
    bf16 *to, *rest, *wide;
    if (K % 16 == 0) {
        const int parts = half / 8;
        for (int i = threadIdx.x; i < CHUNK * parts; i += 128) {
            int e = begin + i / parts, c = i % parts * 8;
            if (!row(e, from, to, rest, wide)) continue;
            float a[8], b[8], x[8], y[8], cosine[8], sine[8];
            load<8>(from + c, a);
            load<8>(from + half + c, b);
            if (cosines) {
                load<8>(cosines + (i64)e * half + c, cosine);
                load<8>(sines + (i64)e * half + c, sine);
            }
#pragma unroll
            for (int n = 0; n < 8; n++) {
                x[n] = cosines ? a[n] * cosine[n] - b[n] * sine[n] : a[n];
                y[n] = cosines ? b[n] * cosine[n] + a[n] * sine[n] : b[n];
            }
            if (wide) store<8>(wide + c, x), store<8>(wide + half + c, y);
            const uint4 low = pack_f16(x, factor), high = pack_f16(y, factor);
            *(uint4*)(to + c) = low;
            *(uint4*)(to + half + c) = high;
            if (rest) *(uint4*)(rest + c) = rest_f16(x, factor, low), *(uint4*)(rest + half + c) = rest_f16(y, factor, high);
        }
        return;
    }
    for (int i = threadIdx.x; i < CHUNK * Kp; i += 128) {
        int e = begin + i / Kp, c = i % Kp;
        if (!row(e, from, to, rest, wide)) continue;
        float x = c < K ? to_float(from[c]) : 0;
        if (cosines && c < K) {
            int n = c < half ? c : c - half;
            float cosine = cosines[(i64)e * half + n], sine = sines[(i64)e * half + n];
            x = c < half ? x * cosine - to_float(from[half + n]) * sine : x * cosine + to_float(from[n]) * sine;
        }
        put(to, rest, wide, c, x);
    }
}
#endif

#if PASS == FULL_FORWARD
constexpr int QUERY_ROWS = 128, ROWS = DP <= 64 ? 2 : 1, FULL_THREADS = QUERY_ROWS / ROWS * 2; // ROWS: times 16, a warp's
extern "C" __global__ __launch_bounds__(FULL_THREADS, BLOCKS) void nha_full_forward(const Sequence* sequences, const int* items, const bf16* turned_queries, const bf16* turned_keys, const bf16* v,
                                                                                   bf16* o, bf16* lse, bf16* share, int query_heads, int heads, int window, float sinks) {
    constexpr int SIZE = CHUNK * (KS + VS);
    bf16* region = Carve().take<bf16>(larger(2 * SIZE, QUERY_ROWS * larger(KS, VS)));
    const Stages<SIZE> stages = {region};
    const int t0 = threadIdx.x / 32 * 16 * ROWS, head = blockIdx.x % query_heads, item = blockIdx.x / query_heads, h = head / (query_heads / heads);
    const Sequence q = sequences[items[2 * item]];
    const int all = q.all(), V = q.V(), e0 = (int)q.held + items[2 * item + 1] * QUERY_ROWS, end = min(e0 + QUERY_ROWS, all), first = window <= e0 ? (e0 - window + 1) / CHUNK * CHUNK : 0;
    const Tokens value_rows(q, v, q.values, h, heads, V);
    const bf16* key_rows = turned_keys + (q.base_token * heads + h) * Kp;
    auto fetch = [&](bf16* tiles, int u0) {
        load_span<Kp, CHUNK, FULL_THREADS>(tiles, key_rows + (i64)u0 * (heads * Kp), heads * Kp, 0, all - u0);
        load_tokens<Vp, FULL_THREADS>(tiles + CHUNK * KS, value_rows, u0, all);
    };
    load_span<Kp, QUERY_ROWS, FULL_THREADS>(region, turned_queries + (q.row(e0) * query_heads + head) * Kp, query_heads * Kp, 0, end - e0);
    tiles_loaded();
    u32 x[ROWS][Kp / 16][4];
#pragma unroll
    for (int b = 0; b < ROWS; b++) load_rows(x[b], region, KS, t0 + 16 * b);
    __syncthreads();
    float out[ROWS][Vp / 8][4], top[ROWS][2], sum[ROWS][2] = {};
#pragma unroll
    for (int b = 0; b < ROWS; b++) zero(out[b]), top[b][0] = top[b][1] = NONE;
    fetch(stages[0], first);
    copy_async_commit();
    for (int u0 = first, stage = 0; u0 < end; u0 += CHUNK, stage++) {
        if (u0 + CHUNK < end) fetch(stages[stage + 1], u0 + CHUNK);
        copy_async_commit();
        copy_async_wait<1>();
        __syncthreads();
        const bf16 *keys = stages[stage], *values = keys + CHUNK * KS;
        const int low = e0 + t0, high = low + 16 * ROWS - 1; // this warp's queries
        if (u0 <= high && u0 + CHUNK - 1 > low - window) {
            float p[ROWS][CHUNK / 8][4];
#pragma unroll
            for (int b = 0; b < ROWS; b++) zero(p[b]);
#pragma unroll
            for (int k = 0; k < Kp / 16; k++)
#pragma unroll
                for (int n = 0; n < CHUNK / 8; n += 2) {
                    u32 y[4];
                    load_b(y, keys, KS, 8 * n, 16 * k);
#pragma unroll
                    for (int b = 0; b < ROWS; b++) mma_f16(p[b][n], x[b][k], y[0], y[1]), mma_f16(p[b][n + 1], x[b][k], y[2], y[3]);
                }
            if (u0 + CHUNK - 1 > low || u0 <= high - window)
#pragma unroll
                for (int b = 0; b < ROWS; b++)
#pragma unroll
                    for (int n = 0; n < CHUNK / 8; n++)
#pragma unroll
                        for (int i = 0; i < 4; i++)
                            if (!visible(u0 + 8 * n + pair() + i % 2, low + 16 * b + group() + i / 2 * 8, window)) p[b][n][i] = NONE;
#pragma unroll
            for (int b = 0; b < ROWS; b++)
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    float most = top[b][r];
#pragma unroll
                    for (int n = 0; n < CHUNK / 8; n++) most = fmaxf(most, fmaxf(p[b][n][2 * r], p[b][n][2 * r + 1]));
                    most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
                    most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
                    float f = exp2_fast(top[b][r] - most), from = fmaxf(most, -1e29f); // a row that sees nothing yet: 0
                    top[b][r] = most, sum[b][r] *= f;
#pragma unroll
                    for (int n = 0; n < Vp / 8; n++) out[b][n][2 * r] *= f, out[b][n][2 * r + 1] *= f;
#pragma unroll
                    for (int n = 0; n < CHUNK / 8; n++) {
                        p[b][n][2 * r] = exp2_fast(p[b][n][2 * r] - from), p[b][n][2 * r + 1] = exp2_fast(p[b][n][2 * r + 1] - from);
                        sum[b][r] += p[b][n][2 * r] + p[b][n][2 * r + 1];
                    }
                }
#pragma unroll
            for (int k = 0; k < CHUNK / 16; k++) {
                u32 a[ROWS][4];
#pragma unroll
                for (int b = 0; b < ROWS; b++) {
                    a[b][0] = pack_bf16(p[b][2 * k][0], p[b][2 * k][1]), a[b][1] = pack_bf16(p[b][2 * k][2], p[b][2 * k][3]);
                    a[b][2] = pack_bf16(p[b][2 * k + 1][0], p[b][2 * k + 1][1]), a[b][3] = pack_bf16(p[b][2 * k + 1][2], p[b][2 * k + 1][3]);
                }
#pragma unroll
                for (int n = 0; n < Vp / 8; n += 2) {
                    u32 y[4];
                    load_b_transposed(y, values, VS, 16 * k, 8 * n);
#pragma unroll
                    for (int b = 0; b < ROWS; b++) mma_bf16(out[b][n], a[b], y[0], y[1]), mma_bf16(out[b][n + 1], a[b], y[2], y[3]);
                }
            }
        }
        __syncthreads();
    }
    copy_async_wait<0>();
#pragma unroll
    for (int b = 0; b < ROWS; b++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float total = sum[b][r], most = top[b][r];
            total += __shfl_xor_sync(~0u, total, 1);
            total += __shfl_xor_sync(~0u, total, 2);
            int row = t0 + 16 * b + group() + 8 * r;
            float over = fmaxf(most, sinks > 0 ? 0 : NONE), f = exp2_fast(most - over), empty = sinks * exp2_fast(-over);
            total = total * f + empty;
            if (pair() == 0 && e0 + row < end) {
                i64 at = q.row(e0 + row) * query_heads + head;
                if (lse) lse[at] = round_to<bf16>((over + log2_fast(total)) * 0.69314718f);
                if (share) share[at] = round_to<bf16>(empty / total);
            }
            f /= total;
#pragma unroll
            for (int n = 0; n < Vp / 8; n++) *(u32*)(region + row * VS + 8 * n + pair()) = pack_bf16(out[b][n][2 * r] * f, out[b][n][2 * r + 1] * f);
        }
    __syncthreads();
    auto to = [&](int r) { return o + (q.row(e0 + r) * query_heads + head) * V; };
    if (V % 8 == 0) {
        for (int i = threadIdx.x; i < QUERY_ROWS * (V / 8); i += FULL_THREADS) {
            int r = i / (V / 8), c = i % (V / 8) * 8;
            if (e0 + r < end) *(uint4*)(to(r) + c) = *(const uint4*)(region + r * VS + c);
        }
    } else {
        for (int i = threadIdx.x; i < QUERY_ROWS * V; i += FULL_THREADS)
            if (e0 + i / V < end) to(i / V)[i % V] = region[i / V * VS + i % V];
    }
}
#endif

#if PASS == FULL_QUERIES
// lse and o, rounded to bf16, are where the sums start: with p' = e^{l - lse}, d' = dO.o and t the sum of p' (sinks in it), p = p'/t, d =
// sum of p value.dO, and dq = (sum of p' (value.dO - d') key - (d - d') sum of p' key) / t: one sweep, whose dl add up to 0 again.
// Slots have their part in t and d: then the two sums go to dq and dq_rest, t to exact, the sum of p' value.dO to inner, d' to
// starts, and nha_backward_queries puts them together.
constexpr int QUERY_ROWS = DP <= 64 ? 64 : 128, FULL_THREADS = 2 * QUERY_ROWS;
extern "C" __global__ __launch_bounds__(FULL_THREADS, BLOCKS) void nha_full_queries(const Sequence* sequences, const int* items, const bf16* turned_queries, const bf16* rest_queries, const bf16* turned_keys, const bf16* wide_keys,
                                                                                   const bf16* v, const float* cosines, const float* sines, const bf16* o, const bf16* lse, const bf16* gradient,
                                                                                   bf16* dq, bf16* dq_rest, float* exact, float* inner, float* starts, int query_heads, int heads, int window, float scale,
                                                                                   float sinks) {
    constexpr int SIZE = CHUNK * (2 * KS + VS);
    char* region = Carve().take<char>(larger(larger(2 * SIZE, QUERY_ROWS * (2 * KS + VS)) * 2, QUERY_ROWS * (Kp + 8) * 4));
    const Stages<SIZE> stages = {(bf16*)region};
    float* sums = (float*)region; // [QUERY_ROWS][Kp + 8], in the end
    const int t0 = threadIdx.x / 32 * 16, head = blockIdx.x % query_heads, item = blockIdx.x / query_heads, h = head / (query_heads / heads);
    const Sequence q = sequences[items[2 * item]];
    const int all = q.all(), K = q.K(), V = q.V(), e0 = (int)q.held + items[2 * item + 1] * QUERY_ROWS, end = min(e0 + QUERY_ROWS, all), first = window <= e0 ? (e0 - window + 1) / CHUNK * CHUNK : 0;
    const Tokens value_rows(q, v, q.values, h, heads, V);
    const i64 key_rows = (q.base_token * heads + h) * Kp;
    auto index = [&](int r) { return q.row(e0 + r) * query_heads + head; };
    auto fetch = [&](bf16* tiles, int u0) {
        const i64 from = key_rows + (i64)u0 * (heads * Kp);
        load_span<Kp, CHUNK, FULL_THREADS>(tiles, turned_keys + from, heads * Kp, 0, all - u0);
        load_span<Kp, CHUNK, FULL_THREADS>(tiles + CHUNK * KS, wide_keys + from, heads * Kp, 0, all - u0);
        load_tokens<Vp, FULL_THREADS>(tiles + 2 * CHUNK * KS, value_rows, u0, all);
    };
    bf16 *query = (bf16*)region, *dout = query + QUERY_ROWS * KS, *query_rest = dout + QUERY_ROWS * VS;
    if (EXACT && cosines) prefetch_near<Kp / 2>(cosines + (i64)e0 * (Kp / 2), Kp / 2, end - e0), prefetch_near<Kp / 2>(sines + (i64)e0 * (Kp / 2), Kp / 2, end - e0);
    prefetch_near<Vp>(o + index(0) * V, query_heads * V, end - e0);
    load_span<Kp, QUERY_ROWS, FULL_THREADS>(query, turned_queries + index(0) * Kp, query_heads * Kp, 0, end - e0);
    if (SLOTS > 0) load_span<Kp, QUERY_ROWS, FULL_THREADS>(query_rest, rest_queries + index(0) * Kp, query_heads * Kp, 0, end - e0);
    load_tile<Vp, QUERY_ROWS, FULL_THREADS>(dout, V, [&](int r) { return e0 + r < end ? gradient + index(r) * V : nullptr; });
    tiles_loaded();
    u32 x[Kp / 16][4], y[Vp / 16][4];
    load_rows(x, query, KS, t0);
    load_rows(y, dout, VS, t0);
#if SLOTS > 0
    u32 x_rest[Kp / 16][4];
    load_rows(x_rest, query_rest, KS, t0);
#endif
    __syncthreads();
    fetch(stages[0], first);
    copy_async_commit();
    float log[2], start[2] = {}, total[2] = {}, inside[2] = {}; // start: d'
#pragma unroll
    for (int r = 0; r < 2; r++) {
        int row = t0 + group() + 8 * r;
        bool exists = e0 + row < end;
        log[r] = exists ? to_float(lse[index(row)]) * LOG2E : 1e30f; // no row: p = 0
        const bf16* from = o + index(exists ? row : 0) * V;
#pragma unroll
        for (int k = 0; k < Vp / 8; k++) {
            int column = 8 * k + pair();
            u32 d = y[k / 2][r + k % 2 * 2];
            if (column < V) start[r] += unpack_low(d) * to_float(from[column]);
            if (column + 1 < V) start[r] += unpack_high(d) * to_float(from[column + 1]);
        }
        start[r] += __shfl_xor_sync(~0u, start[r], 1);
        start[r] += __shfl_xor_sync(~0u, start[r], 2);
    }
    float main[Kp / 8][4], rest[Kp / 8][4]; // the two sums
    zero(main), zero(rest);
    for (int u0 = first, stage = 0; u0 < end; u0 += CHUNK, stage++) {
        if (u0 + CHUNK < end) fetch(stages[stage + 1], u0 + CHUNK);
        copy_async_commit();
        copy_async_wait<1>();
        __syncthreads();
        const bf16 *keys = stages[stage], *wide = keys + CHUNK * KS, *values = wide + CHUNK * KS;
        const int low = e0 + t0;
        const bool edge = u0 + CHUNK - 1 > low || u0 <= low + 15 - window;
#pragma unroll 1
        for (int n = 0; n < CHUNK; n += 16) {
            if (u0 + n > low + 15 || u0 + n + 15 <= low - window) continue;
            float p[2][4], dp[2][4];
#if SLOTS > 0
            times_rows_f16(p, x, x_rest, keys, KS, n);
#else
            times_rows_f16(p, x, keys, KS, n);
#endif
            times_rows(dp, y, values, VS, n);
#pragma unroll
            for (int m = 0; m < 2; m++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    p[m][i] = exp2_fast(p[m][i] - log[i / 2]);
                    if (edge && !visible(u0 + n + 8 * m + pair() + i % 2, low + group() + i / 2 * 8, window)) p[m][i] = 0;
                    total[i / 2] += p[m][i], inside[i / 2] += p[m][i] * dp[m][i];
                    dp[m][i] = p[m][i] * (dp[m][i] - start[i / 2]);
                }
            u32 a[4], b[4];
            as_a(a, dp);
            as_a(b, p);
#pragma unroll
            for (int k = 0; k < Kp / 8; k += 2) {
                u32 z[4];
                load_b_transposed(z, wide, KS, n, 8 * k);
                mma_bf16(main[k], a, z[0], z[1]), mma_bf16(main[k + 1], a, z[2], z[3]);
                mma_bf16(rest[k], b, z[0], z[1]), mma_bf16(rest[k + 1], b, z[2], z[3]);
            }
        }
        __syncthreads();
    }
    copy_async_wait<0>();
#pragma unroll
    for (int r = 0; r < 2; r++) {
        total[r] += __shfl_xor_sync(~0u, total[r], 1);
        total[r] += __shfl_xor_sync(~0u, total[r], 2);
        inside[r] += __shfl_xor_sync(~0u, inside[r], 1);
        inside[r] += __shfl_xor_sync(~0u, inside[r], 2);
        int row = t0 + group() + 8 * r;
#if SLOTS > 0
        if (pair() == 0 && e0 + row < end) exact[index(row)] = total[r], inner[index(row)] = inside[r], starts[index(row)] = start[r];
#else
        float t = total[r] + sinks * exp2_fast(-log[r]), inverse = t > 0 ? 1 / t : 0, d = inside[r] * inverse, shift = d - start[r];
        if (pair() == 0 && e0 + row < end) exact[index(row)] = log[r] + log2_fast(t), inner[index(row)] = d;
#pragma unroll
        for (int n = 0; n < Kp / 8; n++) main[n][2 * r] = (main[n][2 * r] - shift * rest[n][2 * r]) * inverse, main[n][2 * r + 1] = (main[n][2 * r + 1] - shift * rest[n][2 * r + 1]) * inverse;
#endif
    }
    auto put = [&](float (&x)[Kp / 8][4], bf16* to) {
        if constexpr (EXACT) {
            if (cosines) turn_back_rows(x, cosines, sines, e0 + t0 + group(), end);
            put_rows((bf16*)region, x, t0, scale, [&](int r) { return e0 + r < end ? to + index(r) * Kp : (bf16*)nullptr; }, [](int) { return false; });
            return;
        }
        __syncthreads();
        store_rows(sums, x, t0);
        __syncthreads();
        if (cosines) turn_back(sums, K, cosines, sines, e0, end - e0);
        __syncthreads();
        write_rows<QUERY_ROWS>(sums, Kp, K, scale, [&](int r) { return e0 + r < end ? to + index(r) * K : (bf16*)nullptr; }, [](int) { return false; });
    };
    put(main, dq);
#if SLOTS > 0
    put(rest, dq_rest);
#endif
}
#endif

#if PASS == FULL_KEYS
constexpr int FULL_THREADS = 128;
extern "C" __global__ __launch_bounds__(FULL_THREADS, BLOCKS) void nha_full_keys(const Sequence* sequences, const int* items, const bf16* turned_queries, const bf16* wide_queries, const bf16* turned_keys,
                                                                                const bf16* v, const float* cosines, const float* sines, const bf16* gradient, const float* exact, const float* inner,
                                                                                bf16* dk, bf16* dv, int query_heads, int heads, int window, float scale) {
    constexpr int SIZE = CHUNK * (2 * KS + VS);
    Carve c;
    char* region = c.take<char>(larger(2 * SIZE * 2, CHUNK * (DP + 8) * 4));
    float* statistics = c.take<float>(2 * 2 * CHUNK); // a stage's lse and d
    const Stages<SIZE> stages = {(bf16*)region};
    float* sums = (float*)region; // in the end
    const int u0 = threadIdx.x / 32 * 16, h = blockIdx.x % heads, item = blockIdx.x / heads, each = query_heads / heads;
    const Sequence q = sequences[items[2 * item]];
    const int all = q.all(), held = (int)q.held, K = q.K(), V = q.V(), begin = items[2 * item + 1] * CHUNK, row = begin + u0 + group();
    const Tokens value_rows(q, v, q.values, h, heads, V);
    bf16 *keys = (bf16*)region, *values = keys + CHUNK * KS;
    if (EXACT && begin >= held) {
        if (SLOTS > 0) prefetch_near<Kp>(dk + (q.row(begin) * heads + h) * Kp, heads * Kp, all - begin), prefetch_near<Vp>(dv + (q.row(begin) * heads + h) * Vp, heads * Vp, all - begin);
        if (cosines) prefetch_near<Kp / 2>(cosines + (i64)begin * (Kp / 2), Kp / 2, all - begin), prefetch_near<Kp / 2>(sines + (i64)begin * (Kp / 2), Kp / 2, all - begin);
    }
    load_span<Kp, CHUNK, FULL_THREADS>(keys, turned_keys + ((q.base_token + begin) * heads + h) * Kp, heads * Kp, 0, all - begin);
    load_tokens<Vp, FULL_THREADS>(values, value_rows, begin, all);
    tiles_loaded();
    u32 x[Kp / 16][4], y[Vp / 16][4];
    load_rows(x, keys, KS, u0);
    load_rows(y, values, VS, u0);
    __syncthreads();
    float dkeys[Kp / 8][4], dvalues[Vp / 8][4];
    zero(dkeys), zero(dvalues);
    // Queries see these keys from begin, or where the ring ends, to last; heads one after the other.
    const int first = begin > held ? begin : held / CHUNK * CHUNK, last = window < all - begin - CHUNK ? begin + CHUNK - 1 + window : all;
    const int tiles = (last - first + CHUNK - 1) / CHUNK, steps = max(0, tiles) * each;
    auto fetch = [&](int step) {
        bf16* to = stages[step];
        const int head = h * each + step / tiles, e0 = first + step % tiles * CHUNK;
        auto exists = [&](int r) { return e0 + r >= held && e0 + r < all; };
        auto index = [&](int r) { return q.row(e0 + r) * query_heads + head; };
        load_span<Kp, CHUNK, FULL_THREADS>(to, turned_queries + index(0) * Kp, query_heads * Kp, held - e0, all - e0);
        load_span<Kp, CHUNK, FULL_THREADS>(to + CHUNK * KS, wide_queries + index(0) * Kp, query_heads * Kp, held - e0, all - e0);
        if (EXACT) load_span<Vp, CHUNK, FULL_THREADS>(to + 2 * CHUNK * KS, gradient + index(0) * V, query_heads * V, held - e0, all - e0);
        else load_tile<Vp, CHUNK, FULL_THREADS>(to + 2 * CHUNK * KS, V, [&](int r) { return exists(r) ? gradient + index(r) * V : nullptr; });
        if (threadIdx.x < CHUNK) {
            float* s = statistics + step % 2 * 2 * CHUNK + threadIdx.x;
            s[0] = exists(threadIdx.x) ? exact[index(threadIdx.x)] : 1e30f;
            s[CHUNK] = exists(threadIdx.x) ? inner[index(threadIdx.x)] : 0;
        }
    };
    if (steps > 0) fetch(0);
    copy_async_commit();
    for (int step = 0; step < steps; step++) {
        if (step + 1 < steps) fetch(step + 1);
        copy_async_commit();
        copy_async_wait<1>();
        __syncthreads();
        const bf16 *query = stages[step], *wide = query + CHUNK * KS, *dout = wide + CHUNK * KS;
        const float* s = statistics + step % 2 * 2 * CHUNK;
        const int e0 = first + step % tiles * CHUNK, low = begin + u0;
        const bool edge = e0 < low + 15 || e0 + CHUNK - 1 - window >= low;
#pragma unroll 1
        for (int t0 = 0; t0 < CHUNK; t0 += 16) {
            if (e0 + t0 + 15 < low || e0 + t0 - window >= low + 15) continue;
            float p[2][4], dp[2][4];
            times_rows_f16(p, x, query, KS, t0);
            times_rows(dp, y, dout, VS, t0);
#pragma unroll
            for (int n = 0; n < 2; n++) {
                float2 log = *(const float2*)(s + t0 + 8 * n + pair()), d = *(const float2*)(s + CHUNK + t0 + 8 * n + pair());
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    p[n][i] = exp2_fast(p[n][i] - (i % 2 ? log.y : log.x));
                    if (edge && !visible(row + i / 2 * 8, e0 + t0 + 8 * n + pair() + i % 2, window)) p[n][i] = 0;
                    dp[n][i] = p[n][i] * (dp[n][i] - (i % 2 ? d.y : d.x));
                }
            }
            u32 a[4];
            as_a(a, p);
            add_times(dvalues, a, dout, VS, t0);
            as_a(a, dp);
            add_times(dkeys, a, wide, KS, t0);
        }
        __syncthreads();
    }
    copy_async_wait<0>();
    auto place = [&](bf16* fresh, bf16* ring, int width) {
        return [=, &q](int r) -> bf16* {
            int j = begin + r;
            if (j >= all) return nullptr;
            return j < held ? ring + ((i64)h * held + j) * width : fresh + (q.row(j) * heads + h) * width;
        };
    };
    auto added = [&](int r) { return SLOTS > 0 && begin + r < all - window; };
    if constexpr (EXACT) {
        if (cosines) turn_back_rows(dkeys, cosines, sines, row, all);
        put_rows((bf16*)region, dkeys, u0, scale, place(dk, q.ring_dkeys, Kp), added);
        __syncthreads();
        put_rows((bf16*)region, dvalues, u0, 1, place(dv, q.ring_dvalues, Vp), added);
        return;
    }
    store_rows(sums, dkeys, u0);
    __syncthreads();
    if (cosines) turn_back(sums, K, cosines, sines, begin, min(CHUNK, all - begin));
    __syncthreads();
    write_rows(sums, Kp, K, scale, place(dk, q.ring_dkeys, K), added);
    __syncthreads();
    store_rows(sums, dvalues, u0);
    __syncthreads();
    write_rows(sums, Vp, V, 1, place(dv, q.ring_dvalues, V), added);
}
#endif
