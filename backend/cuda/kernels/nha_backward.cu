// The backward kernels of the NHA operator (SPEC 1.3).
#include "nha.cuh"

#if PASS == QUERIES
// The slots' part of dq, and what the other passes read: exact is lse in base 2, inner d_t, weights and dlogits the slots' p and
// dl, and earlier l dl + p Vs.dO as far as l and Vs come from before the block of 16: all [N, Hq, Mp]; chunk_states: the slots
// at the start of a segment's chunks behind the first. The window's sums, where
// there is one, are in dq, dq_rest, exact, inner and starts (nha_full.cu): the probabilities are not quite those of lse, which
// bf16 has rounded, and d_t is their sum with value.dO_t: dO_t.o_t of a rounded o_t would leave dl that do not add up to 0.
extern "C" __global__ __launch_bounds__(THREADS, BLOCKS) void nha_backward_queries(
    const Sequence* sequences, const int* items, const bf16* queries, const bf16* k, const bf16* v, const bf16* z, const float* states, float* adjoints, const bf16* lse,
    const bf16* gradient, bf16* dq, const bf16* dq_rest, float* exact, float* inner, const float* starts, bf16* weights, bf16* dlogits, bf16* earlier,
    float* chunk_states, int query_heads, int heads, int window, float scale, float normalizer, int mask, float sinks) {
    constexpr int PS = Mp + 8;
    Carve c;
    char* region = c.take<char>(larger(CHUNK * (KS + VS) * 2, CHUNK * (Kp + 8) * 4));
    bf16 *query = (bf16*)region, *dout = query + CHUNK * KS;
    float* sums = (float*)region; // [64][Kp + 8], once these have been used
    bf16 *keys = c.take<bf16>(CHUNK * KS), *values = c.take<bf16>(CHUNK * VS), *slot_keys = (bf16*)c.take<char>(larger(Mp * (KS + VS) * 2, 2 * CHUNK * PS * 2)), *slot_values = slot_keys + Mp * KS;
    bf16* keys_rest = c.take<bf16>(Mp * KS); // of slot_keys: logits may be large, and dl, which add up to 0, meet keys that are alike
    bf16 *p_tile = slot_keys, *dl_tile = p_tile + CHUNK * PS; // once a head's slots have been read
    Gates g = Gates::take(c);
    float* before = c.take<float>(Mp); // G from the segment's start to the chunk's
    float *logs = c.take<float>(4 * CHUNK), *in_window = logs + CHUNK, *totals = c.take<float>(4 * CHUNK); // in_window: t, sum of p' value.dO, d'; totals: the slots', by halves
    const int warp = threadIdx.x / 32, t0 = warp % 4 * 16, half = warp / 4, row = t0 + group();
    Segment s(sequences, items, heads);
    const Sequence& q = s.q;
    const int h = s.h, each = query_heads / heads, K = q.K(), V = q.V(), M = q.M();
    const float scale2 = scale * LOG2E;
    const Tokens key_rows(q, k, q.keys, h, heads, K), value_rows(q, v, q.values, h, heads, V);
    const Rows<bf16, float> gate_rows(q, z, q.gates, h, heads, M);
    if (threadIdx.x < Mp) before[threadIdx.x] = 0;
    State state, adjoint;
    state.read(states + s.state * STATE);
    adjoint.clear();
    for (int e0 = s.first; e0 < s.end; e0 += CHUNK) {
        load_tokens<Kp>(keys, key_rows, e0 - window, s.end - window);
        load_tokens<Vp>(values, value_rows, e0 - window, s.end - window);
        g.fetch(gate_rows, e0, window);
        if (e0 + CHUNK < s.end) {
            prefetch<Kp>(key_rows, e0 + CHUNK - window, s.end - window);
            prefetch<Vp>(value_rows, e0 + CHUNK - window, s.end - window);
        }
        for (int head = h * each; head < (h + 1) * each; head++) {
            auto index = [&](int r) { return q.row(e0 + r) * query_heads + head; };
            load_queries<Kp>(query, queries + index(0) * K, query_heads * K, K, s.end - e0);
            load_queries<Vp>(dout, gradient + index(0) * V, query_heads * V, V, s.end - e0);
            state.publish(slot_keys, slot_values, keys_rest);
            if (window > 0) prefetch_near<Kp>(dq + index(0) * K, query_heads * K, s.end - e0), prefetch_near<Kp>(dq_rest + index(0) * K, query_heads * K, s.end - e0);
            if (e0 + CHUNK < s.end) {
                prefetch<Kp>(queries + index(CHUNK) * K, query_heads * K, s.end - e0 - CHUNK);
                prefetch<Vp>(gradient + index(CHUNK) * V, query_heads * V, s.end - e0 - CHUNK);
            }
            if (threadIdx.x < CHUNK) {
                const int r = threadIdx.x;
                const bool exists = e0 + r < s.end;
                logs[r] = exists ? to_float(lse[index(r)]) * LOG2E : 1e30f; // no row: p = 0
                in_window[r] = exists && window > 0 ? exact[index(r)] : 0;
                in_window[CHUNK + r] = exists && window > 0 ? inner[index(r)] : 0;
                in_window[2 * CHUNK + r] = exists && window > 0 ? starts[index(r)] : 0;
            }
            tiles_loaded();
            if (head == h * each) {
                if (e0 > s.first) state.write(chunk_states + (s.state * (SEGMENT / CHUNK) + (e0 - s.first) / CHUNK) * STATE);
                g.compute(gate_rows, e0, window, normalizer);
            }
            float log[2] = {logs[row], logs[row + 8]}, total[2] = {}, inside[2] = {};
            float p[MH / 8][4], dl[MH / 8][4];
            u32 p_earlier[MH / 8][2], dl_earlier[MH / 8][2];
            auto keep = [](u32 (&to)[MH / 8][2]) {
                return [&to](int n, float (&d)[4], auto factor) { to[n][0] = pack_bf16(d[0] * factor(0), d[1] * factor(1)), to[n][1] = pack_bf16(d[2] * factor(2), d[3] * factor(3)); };
            };
            {
                u32 x[Kp / 16][4];
                load_rows(x, query, KS, t0);
                read_slots<Kp, true>(p, x, slot_keys, keys_rest, keys, g, t0, half, keep(p_earlier));
            }
            {
                u32 y[Vp / 16][4];
                load_rows(y, dout, VS, t0);
                read_slots<Vp>(dl, y, slot_values, nullptr, values, g, t0, half, keep(dl_earlier));
            }
#pragma unroll
            for (int n = 0; n < MH / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    bool live = (EXACT || half * MH + 8 * n + pair() + i % 2 < M) && (!mask || e0 + row + i / 2 * 8 >= window);
                    p[n][i] = live ? exp2_fast(p[n][i] * scale2 - log[i / 2]) : 0;
                    total[i / 2] += p[n][i], inside[i / 2] += p[n][i] * dl[n][i];
                }
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
                const float *other = totals + row + 8 * r, *there = in_window + row + 8 * r;
                total[r] = other[0] + other[CHUNK] + there[0] + sinks * exp2_fast(-log[r]);
                inverse[r] = total[r] > 0 ? 1 / total[r] : 0;
                inside[r] = (other[2 * CHUNK] + other[3 * CHUNK] + there[CHUNK]) * inverse[r];
                if (half == 0 && pair() == 0 && e0 + row + 8 * r < s.end) exact[index(row + 8 * r)] = log[r] + log2_fast(total[r]), inner[index(row + 8 * r)] = inside[r];
            }
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
            write_slots<Kp, true>(straight, dl, slot_keys, keys_rest, keys, g, t0, half);
            __syncthreads();
            if (half == 0 && pair() == 0)
#pragma unroll
                for (int r = 0; r < 2; r++) { // what the window's sums are made dq with
                    int at = row + 8 * r;
                    in_window[at] = inverse[r], in_window[CHUNK + at] = inside[r] - in_window[2 * CHUNK + at];
                }
#pragma unroll
            for (int n = 0; n < MH / 8; n++)
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    int at = (row + 8 * r) * PS + half * MH + 8 * n + pair();
                    *(u32*)(p_tile + at) = p_packed[n][r], *(u32*)(dl_tile + at) = dl_packed[n][r];
                }
            __syncthreads();
            adjoint.add<false>(query, dout, [](int, int) { return 1.0f; }, [&](int r, int slot, bool key) {
                float f = exp2_fast(before[slot] + g.G[r * GS + slot]);
                return key ? f * scale * to_float(dl_tile[r * PS + slot]) : f * to_float(p_tile[r * PS + slot]);
            });
            __syncthreads();
            if (half == 1) store_rows(sums, straight, t0);
            for (int i = threadIdx.x; i < CHUNK * (Mp / 8); i += THREADS) {
                int r = i / (Mp / 8), column = i % (Mp / 8) * 8;
                if (e0 + r >= s.end) continue;
                *(uint4*)(weights + index(r) * Mp + column) = *(const uint4*)(p_tile + r * PS + column);
                *(uint4*)(dlogits + index(r) * Mp + column) = *(const uint4*)(dl_tile + r * PS + column);
            }
            __syncthreads();
            if (half == 0) add_rows(sums, straight, t0);
            __syncthreads();
            auto put = [&](auto wide) {
                constexpr int N = decltype(wide)::value;
                const int parts = K / N;
                for (int i = threadIdx.x; i < CHUNK * parts; i += THREADS) {
                    int r = i / parts, column = i % parts * N;
                    if (e0 + r >= s.end) continue;
                    i64 to = index(r) * K + column;
                    float x[N], y[N] = {}, rest[N] = {};
                    load<N>(sums + r * (Kp + 8) + column, x);
                    if (window > 0) load<N>(dq + to, y), load<N>(dq_rest + to, rest);
#pragma unroll
                    for (int n = 0; n < N; n++) x[n] = x[n] * scale + (y[n] - in_window[CHUNK + r] * rest[n]) * in_window[r];
                    store<N>(dq + to, x);
                }
            };
            if (K % 8 == 0) put(Width<8>());
            else put(Width<1>());
            __syncthreads();
        }
        if (threadIdx.x < Mp) before[threadIdx.x] += g.end(threadIdx.x);
        state.enter(g, keys, values);
        __syncthreads();
    }
    adjoint.write(adjoints + s.state * STATE);
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
    const bf16* gradient, const bf16* weights, const bf16* dlogits, const bf16* earlier, const float* chunk_states, bf16* dk, bf16* dv, bf16* dz,
    int query_heads, int heads, int window, float scale, float normalizer) {
    constexpr int PS = Mp + 8;
    Carve c;
    char* front = c.take<char>(larger(CHUNK * (KS + VS) * 2, 2 * CHUNK * GS * 4));
    bf16 *keys = (bf16*)front, *values = keys + CHUNK * KS;
    float *later = (float*)front, *inside = later + CHUNK * GS; // D of queries behind and in the block, once the heads are done
    char* region = c.take<char>(larger(larger(CHUNK * (KS + VS + 2 * PS), Mp * (KS + VS)) * 2, CHUNK * (DP + 8) * 4));
    bf16 *u_tile = (bf16*)region, *r_tile = u_tile + Mp * KS; // until the heads begin
    bf16 *query = (bf16*)region, *dout = query + CHUNK * KS, *p_tile = dout + CHUNK * VS, *dl_tile = p_tile + CHUNK * PS;
    float* sums = (float*)region; // of gradients, once the heads are done
    Gates g = Gates::take(c);
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
        load_tokens<Kp>(keys, key_rows, e0 - window, s.end - window);
        load_tokens<Vp>(values, value_rows, e0 - window, s.end - window);
        g.fetch(gate_rows, e0, window);
        adjoint.publish(u_tile, r_tile);
        for (int head = h * each; head < (h + 1) * each; head++) {
            const i64 at = q.row(e0) * query_heads + head;
            prefetch_near<Mp>(earlier + at * Mp, query_heads * Mp, s.end - e0);
            if (e0 == s.first) continue;
            const i64 next = at - (i64)CHUNK * query_heads;
            prefetch<Kp>(queries + next * K, query_heads * K, CHUNK);
            prefetch<Vp>(gradient + next * V, query_heads * V, CHUNK);
            prefetch<Mp>(weights + next * Mp, query_heads * Mp, CHUNK);
            prefetch<Mp>(dlogits + next * Mp, query_heads * Mp, CHUNK);
            prefetch<Mp>(earlier + next * Mp, query_heads * Mp, CHUNK);
        }
        if (e0 > s.first) {
            prefetch<Kp>(key_rows, e0 - CHUNK - window, s.end);
            prefetch<Vp>(value_rows, e0 - CHUNK - window, s.end);
        }
        for (int i = threadIdx.x; i < CHUNK * GS; i += THREADS) crossing[i] = 0;
        tiles_loaded();
        if (e0 + CHUNK < s.end) { // what passes the chunk's end, anew where the chunk behind fades: the error would not fade with it
            const float* end = chunk_states + (s.state * (SEGMENT / CHUNK) + (e0 - s.first) / CHUNK + 1) * STATE;
            adjoint.each([&](float (&x)[DP / 8][4], int i, bool keys) {
                const int width = keys ? Kp : Vp;
                const float* rows = end + (keys ? 0 : Mp * Kp) + (i + group()) * width + pair();
                float low = 0, high = 0;
#pragma unroll
                for (int n = 0; n < DP / 8; n++) {
                    if (8 * n >= width) continue;
                    float2 a = *(const float2*)(rows + 8 * n), b = *(const float2*)(rows + 8 * width + 8 * n);
                    low += a.x * x[n][0] + a.y * x[n][1], high += b.x * x[n][2] + b.y * x[n][3];
                }
                low += __shfl_xor_sync(~0u, low, 1), high += __shfl_xor_sync(~0u, high, 1);
                low += __shfl_xor_sync(~0u, low, 2), high += __shfl_xor_sync(~0u, high, 2);
                if (pair() == 0) g.part[(keys ? 0 : Mp) + i + group()] = low, g.part[(keys ? 0 : Mp) + i + group() + 8] = high;
            });
            __syncthreads();
            if (threadIdx.x < Mp && g.end(threadIdx.x) < -4) through[threadIdx.x] = g.part[threadIdx.x] + g.part[Mp + threadIdx.x];
            __syncthreads();
        }
        g.compute(gate_rows, e0, window, normalizer);
        const float *middle = g.G + (j0 + 8) * GS + first, *end = g.G + 63 * GS + first;
        float dkeys[Kp / 8][4], dvalues[Vp / 8][4], d[MH / 8][4], d_inside[MH / 8][4];
        zero(dkeys), zero(dvalues), zero(d), zero(d_inside);
        u32 x[Kp / 16][4], y[Vp / 16][4], write[MH / 16][4]; // write: e^{G_m - G_j} s_j
        load_rows(x, keys, KS, j0);
        load_rows(y, values, VS, j0);
#pragma unroll
        for (int n = 0; n < MH / 16; n++) {
            load_a(write[n], g.E, Gates::ES, j0, first + 16 * n);
            u32 a[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int slot = 16 * n + pair() + i / 2 * 8;
                a[i] = pack_bf16(unpack_low(write[n][i]) * exp2_fast(end[slot] - middle[slot]), unpack_high(write[n][i]) * exp2_fast(end[slot + 1] - middle[slot + 1]));
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
            load_queries<Kp>(query, queries + index(0) * K, query_heads * K, K, s.end - e0);
            load_queries<Vp>(dout, gradient + index(0) * V, query_heads * V, V, s.end - e0);
            load_span<Mp>(p_tile, weights + index(0) * Mp, query_heads * Mp, 0, s.end - e0);
            load_span<Mp>(dl_tile, dlogits + index(0) * Mp, query_heads * Mp, 0, s.end - e0);
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
                    float l_sum[4] = {}, read_sum[4] = {};
                    u32 e[2];
                    ldmatrix_x2_transposed(e, g.E + (j0 + lane % 16) * Gates::ES + first + 8 * n);
                    mma_bf16(l_sum, a_turned, e[0], e[1]);
                    mma_bf16(read_sum, b_turned, e[0], e[1]);
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        int r = row + i / 2 * 8, slot = 8 * n + pair() + i % 2;
                        float f = exp2_fast(g.G[r * GS + first + slot] - middle[slot]);
                        crossing[r * GS + first + slot] += rounded(to_float(dl_tile[r * PS + first + slot]) * f) * l_sum[i] + rounded(to_float(p_tile[r * PS + first + slot]) * f) * read_sum[i];
                    }
                }
            }
            adjoint.add<false>(query, dout, [](int, int) { return 1.0f; }, [&](int r, int slot, bool key) {
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
                crossing[at] -= to_float(g.E[(row + i / 2 * 8) * Gates::ES + first + slot]) * d_inside[n][i];
            }
        // up: what a block's queries have from before it, part: what its tokens give to queries behind it.
        constexpr int EACH = (4 * Mp + THREADS - 1) / THREADS;
        float has[EACH][16]; // what a block's queries have from before it, by query
#pragma unroll
        for (int n = 0; n < EACH; n++) {
            int item = threadIdx.x + n * THREADS, start = item / Mp * 16;
            if (item >= 4 * Mp) break;
#pragma unroll
            for (int r = 0; r < 16; r++) has[n][r] = 0;
            const bf16* from = earlier + (q.row(e0 + start) * query_heads + h * each) * Mp + item % Mp;
            for (int head = 0; head < each; head++, from += Mp)
#pragma unroll
                for (int r = 0; r < 16; r++)
                    if (e0 + start + r < s.end) has[n][r] += to_float(from[(i64)r * (query_heads * Mp)]);
        }
        __syncthreads();
        if (half == 0) add_rows(sums, dkeys, j0);
#pragma unroll
        for (int n = 0; n < EACH; n++) {
            int item = threadIdx.x + n * THREADS, i = item % Mp, r0 = item / Mp * 16, base = r0 * GS + i;
            if (item >= 4 * Mp) break;
            float gives = 0, all = 0;
#pragma unroll
            for (int r = 0; r < 16; r++) {
                const int at = base + r * GS;
                float d = later[at], w = g.entry(r0 + r, i) * exp2_fast(g.G[at] - g.G[base + 8 * GS]) * d;
                inside[at] += d; // all of D; and later has the strength in it
                later[at] = w, gives += w, all += has[n][r];
            }
            g.part[item] = gives, up[item] = all;
        }
        __syncthreads();
#pragma unroll
        for (int n = 0; n < EACH; n++) {
            int item = threadIdx.x + n * THREADS, i = item % Mp, block = item / Mp, base = block * 16 * GS + i;
            if (item >= 4 * Mp) break;
            auto fades = [&](int b) { return g.G[(16 * b + 15) * GS + i] - (b ? g.G[(16 * b - 1) * GS + i] : 0) < -8; };
            float over = through[i]; // at the end of the block, then what passes over it
            for (int b = 3; b > block; b--) over = (fades(b) ? 0 : over - g.part[b * Mp + i]) + up[b * Mp + i];
            over = fades(block) ? 0 : over - g.part[item];
            float below = g.part[item], above = 0; // of tokens before j to later queries, of queries from j on from before; and inside the block
            float before_first = block ? g.G[base - GS] : 0;
            const int e = e0 + block * 16, j = e - window; // of its first token
            const bool fresh = EXACT && j >= q.held && e + 15 < s.end;
            const i64 to = (q.row(j) * heads + h) * M + i;
            const int stride = heads * M;
            float logits[16];
            if (fresh)
#pragma unroll
                for (int r = 0; r < 16; r++) logits[r] = to_float(z[to + r * stride]);
#pragma unroll
            for (int r = 15; r >= 0; r--) {
                const int at = base + r * GS;
                below -= later[at];
                above += has[n][r] + crossing[at];
                float a = exp2_fast(g.G[at] - (r ? g.G[at - GS] : before_first)), dg = over + below + above - a * inside[at];
                if (fresh) {
                    dz[to + r * stride] = round_to<bf16>(dg * normalizer / (1 + exp2_fast(logits[r] * LOG2E)));
                } else if (i < M && j + r >= 0 && e + r < s.end) {
                    if (j + r < q.held) q.ring_dgates[((i64)h * q.held + j + r) * M + i] = dg;
                    else dz[to + r * stride] = round_to<bf16>(dg * normalizer / (1 + exp2_fast(to_float(z[to + r * stride]) * LOG2E)));
                }
            }
            if (block == 0) up[i] += over; // what passes the chunk's start
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
