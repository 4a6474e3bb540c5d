// The backward kernels of the NHA operator (SPEC 1.3).
#include "nha.cuh"

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
