// The backward kernel of the NHA operator's window (SPEC 1.3), flash attention's pass over keys.
#include "nha.cuh"

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
