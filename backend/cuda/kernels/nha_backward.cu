// The backward kernels of the NHA operator (SPEC 1.3).
#include "nha_slots.cuh"

#if PASS == QUERIES
// The slots' part of dq, and what the other passes read: exact is lse in base 2, inner d_t, weights and dlogits the slots' p and
// c dl times e^{G_t - G_m}, m being the middle of t's block, as products with tokens take them, and earlier l dl + p Vs.dO as far
// as l and Vs come from before the block of 16: all [N, Hq, Mp]; chunk_states: the slots at the start of a segment's chunks behind
// the first. The window's sums, where there is one, are in dq, dq_rest, exact, inner and starts (nha_full.cu): the probabilities
// are not quite those of lse, which bf16 has rounded, and d_t is their sum with value.dO_t: dO_t.o_t of a rounded o_t would leave
// dl that do not add up to 0.
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
    // What rounding leaves of the slots: logits may be large, and slots alike, so that dl, which add up to 0, are small differences.
    bf16 *keys_rest = c.take<bf16>(Mp * KS), *values_rest = DP <= 64 ? c.take<bf16>(Mp * VS) : nullptr;
    bf16 *p_tile = slot_keys, *dl_tile = p_tile + CHUNK * PS; // once a head's slots have been read
    Gates g = Gates::take(c);
    float* before = c.take<float>(Mp); // G from the segment's start to the chunk's
    float *logs = c.take<float>(4 * CHUNK), *in_window = logs + CHUNK, *totals = c.take<float>(4 * CHUNK); // in_window: t, sum of p' value.dO, d'; totals: the slots', by halves
    const int warp = threadIdx.x / 32, half = warp / 4, t0 = rows_of(warp), row = t0 + group();
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
            state.publish(slot_keys, slot_values, keys_rest, values_rest);
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
                read_slots<Vp, true>(dl, y, slot_values, values_rest, values, g, t0, half, keep(dl_earlier));
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
                inside[r] = other[2 * CHUNK] + other[3 * CHUNK] + there[CHUNK];
                if (half == 0 && pair() == 0 && e0 + row + 8 * r < s.end) exact[index(row + 8 * r)] = log[r] + log2_fast(total[r]), inner[index(row + 8 * r)] = inside[r] * inverse[r];
            }
            u32 p_packed[MH / 8][2], dl_packed[MH / 8][2];
            const float *sums_of = g.G + row * GS + half * MH + pair(), *middle = g.G + (t0 + 8) * GS + half * MH + pair();
#pragma unroll
            for (int n = 0; n < MH / 8; n++) {
                float terms[4], f[4];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    f[i] = exp2_fast(sums_of[i / 2 * 8 * GS + 8 * n + i % 2] - middle[8 * n + i % 2]);
                    p[n][i] *= inverse[i / 2];
                    dl[n][i] = p[n][i] * inverse[i / 2] * (__fmul_rn(dl[n][i], total[i / 2]) - inside[i / 2]); // 0 where nothing else takes part
                    u32 l = p_earlier[n][i / 2], read = dl_earlier[n][i / 2];
                    terms[i] = dl[n][i] * scale * (i % 2 ? unpack_high(l) : unpack_low(l)) + p[n][i] * (i % 2 ? unpack_high(read) : unpack_low(read));
                }
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    p_packed[n][r] = pack_bf16(p[n][2 * r] * f[2 * r], p[n][2 * r + 1] * f[2 * r + 1]);
                    dl_packed[n][r] = pack_bf16(dl[n][2 * r] * scale * f[2 * r], dl[n][2 * r + 1] * scale * f[2 * r + 1]);
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
                    in_window[at] = inverse[r], in_window[CHUNK + at] = inside[r] * inverse[r] - in_window[2 * CHUNK + at];
                }
#pragma unroll
            for (int n = 0; n < MH / 8; n++)
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    int at = (row + 8 * r) * PS + half * MH + 8 * n + pair();
                    *(u32*)(p_tile + at) = p_packed[n][r], *(u32*)(dl_tile + at) = dl_packed[n][r];
                }
            __syncthreads();
            adjoint.add_queries(query, dout, dl_tile, p_tile, [&](int m, int slot) { return exp2_fast(before[slot] + g.G[m * GS + slot]); });
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
// leading is the first N of an accumulator's parts.
template <int N, int ALL> __device__ __forceinline__ float (&leading(float (&x)[ALL][4]))[N][4] { return *(float(*)[N][4]) & x; }

// Walks a segment's chunks down with the adjoints U, R on the chip (SPEC 1.3). A warp has 16 tokens j, and keys with U and dl, or
// values with R and p. With D_j,i = U_j,i.k'_j + R_j,i.v'_j, the gradient of log a is
//
//	a_j da_j = Y_j - a_j D_j        Y_j = a_j (U_j.Ks_{j-1} + R_j.Vs_{j-1}) = sum of c_t,u over t >= j > u
//
// c_t,u being what token u gives to query t's l dl + p Vs.dO through the slot (and the first state, the last adjoint alike). Every
// term is of order a_j, but the sum is formed from sums over t and over u, where terms without a_j have to cancel. Inside a
// block of 16 they do so exactly: both sums are of the same rounded factors. Outside, sums over whole blocks serve, and where a
// block fades to nothing what passes over it is 0.
//
// e^{G_t - G_j} is e^{G_t - G_m} in the tiles of dl and p, e^{G_m' - G_j} s_j in that of gates, and a factor between the middles m and m'.
extern "C" __global__ __launch_bounds__(THREADS, BLOCKS) void nha_backward_slots(
    const Sequence* sequences, const int* items, const bf16* queries, const bf16* k, const bf16* v, const bf16* z, const float* states, const float* adjoints,
    const bf16* gradient, const bf16* weights, const bf16* dlogits, const bf16* earlier, const float* chunk_states, bf16* dk, bf16* dv, bf16* dz,
    int query_heads, int heads, int window, float normalizer) {
    constexpr int PS = Mp + 8, TOGETHER = DP <= 64 ? 2 : 1; // TOGETHER: of dk and dv, those whose sums are in shared memory at a time
    Carve c;
    char* front = c.take<char>(larger(CHUNK * (KS + VS) * 2, 2 * CHUNK * GS * 4));
    bf16 *keys = (bf16*)front, *values = keys + CHUNK * KS;
    float *later = (float*)front, *inside = later + CHUNK * GS; // D of queries behind and in the block, once the heads are done
    char* region = c.take<char>(larger(larger(CHUNK * (KS + VS + 2 * PS), Mp * (KS + VS)) * 2, TOGETHER * CHUNK * (DP + 8) * 4));
    bf16 *u_tile = (bf16*)region, *r_tile = u_tile + Mp * KS; // until the heads begin
    bf16 *query = (bf16*)region, *dout = query + CHUNK * KS, *p_tile = dout + CHUNK * VS, *dl_tile = p_tile + CHUNK * PS;
    Gates g = Gates::take(c);
    float *crossing = c.take<float>(2 * CHUNK * GS), *up = c.take<float>(4 * Mp), *through = c.take<float>(Mp); // crossing: c_t,. - c_.,t inside blocks, of keys and of values
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, j0 = rows_of(warp), row = j0 + group();
    const bool with_keys = warp < WARPS / 2;
    float* sums = (float*)region + (with_keys ? 0 : TOGETHER - 1) * CHUNK * (DP + 8); // of gradients, once the heads are done
    float* mine = crossing + (with_keys ? 0 : CHUNK * GS) + row * GS + pair();
    Segment s(sequences, items, heads);
    const Sequence& q = s.q;
    const int h = s.h, each = query_heads / heads, K = q.K(), V = q.V(), M = q.M();
    const Tokens key_rows(q, k, q.keys, h, heads, K), value_rows(q, v, q.values, h, heads, V);
    const Rows<bf16, float> gate_rows(q, z, q.gates, h, heads, M);
    // with calls f by this warp's part: its columns, and the tiles of tokens, queries, weights and adjoints.
    auto with = [&](auto f) {
        if (Kp == Vp) f(Width<Kp>(), with_keys ? keys : values, with_keys ? query : dout, with_keys ? dl_tile : p_tile, with_keys ? u_tile : r_tile);
        else if (with_keys) f(Width<Kp>(), keys, query, dl_tile, u_tile);
        else f(Width<Vp>(), values, dout, p_tile, r_tile);
    };
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
        for (int i = threadIdx.x; i < 2 * CHUNK * GS; i += THREADS) crossing[i] = 0;
        tiles_loaded();
        if (e0 + CHUNK < s.end) { // what passes the chunk's end, anew where the chunk behind fades: the error would not fade with it
            const float* behind = chunk_states + (s.state * (SEGMENT / CHUNK) + (e0 - s.first) / CHUNK + 1) * STATE;
            adjoint.each([&](float (&x)[State::N][4], int i, bool keys) {
                const int width = keys ? Kp : Vp;
                const float* rows = behind + (keys ? 0 : Mp * Kp) + (i + group()) * width + pair();
                float low = 0, high = 0;
#pragma unroll
                for (int n = 0; n < State::N; n++) {
                    if (8 * n >= width) continue;
                    float2 a = *(const float2*)(rows + 8 * n), b = *(const float2*)(rows + 8 * width + 8 * n);
                    low += a.x * x[n][0] + a.y * x[n][1], high += b.x * x[n][2] + b.y * x[n][3];
                }
                low += __shfl_xor_sync(~0u, low, 1), high += __shfl_xor_sync(~0u, high, 1);
                low += __shfl_xor_sync(~0u, low, 2), high += __shfl_xor_sync(~0u, high, 2);
                float* to = g.part + (keys ? 0 : Mp) + i + group();
                if (pair() == 0) to[0] = low, to[8] = high;
            });
            __syncthreads();
            if (threadIdx.x < Mp && g.end(threadIdx.x) < -4) through[threadIdx.x] = g.part[threadIdx.x] + g.part[Mp + threadIdx.x];
            __syncthreads();
        }
        g.compute(gate_rows, e0, window, normalizer);
        const float* middle = g.G + (j0 + 8) * GS;
        // factors are from where sums are at one token to where they are at another, for this lane's columns of an accumulator.
        auto factors = [&](float (&f)[Mp / 8][2], const float* from, const float* to) {
#pragma unroll
            for (int n = 0; n < Mp / 8; n++) {
                float2 x = *(const float2*)(from + 8 * n + pair()), y = *(const float2*)(to + 8 * n + pair());
                f[n][0] = exp2_fast(x.x - y.x), f[n][1] = exp2_fast(x.y - y.y);
            }
        };
        // load_gates is e^{G_m - G_j} s_j f for 16 slots.
        auto load_gates = [&](u32 (&a)[4], int n, const float (&f)[Mp / 8][2]) {
            load_a(a, g.E, Gates::ES, j0, 16 * n);
#pragma unroll
            for (int i = 0; i < 4; i++) a[i] = pack_bf16(unpack_low(a[i]) * f[2 * n + i / 2][0], unpack_high(a[i]) * f[2 * n + i / 2][1]);
        };
        float dx[DP / 8][4], d[Mp / 8][4], d_inside[Mp / 8][4]; // of keys or values, and their part of D
        zero(dx), zero(d), zero(d_inside);
        with([&](auto columns, const bf16* x, const bf16*, const bf16*, const bf16* adjoints) {
            constexpr int D = decltype(columns)::value;
            float f[Mp / 8][2];
            factors(f, g.G + 63 * GS, middle);
#pragma unroll
            for (int n = 0; n < Mp / 16; n++) {
                u32 a[4];
                load_gates(a, n, f);
                add_times(leading<D / 8>(dx), a, adjoints, D + 8, 16 * n);
            }
#pragma unroll
            for (int k = 0; k < D / 16; k++) {
                u32 a[4];
                load_a(a, x, D + 8, j0, 16 * k);
#pragma unroll
                for (int n = 0; n < Mp / 8; n += 2) {
                    u32 b[4];
                    load_b(b, adjoints, D + 8, 8 * n, 16 * k);
                    mma_bf16(d[n], a, b[0], b[1]);
                    mma_bf16(d[n + 1], a, b[2], b[3]);
                }
            }
#pragma unroll
            for (int n = 0; n < Mp / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) d[n][i] *= f[n][i % 2];
        });
        adjoint.fade(g);
        for (int head = h * each; head < (h + 1) * each; head++) {
            auto index = [&](int r) { return q.row(e0 + r) * query_heads + head; };
            __syncthreads();
            load_queries<Kp>(query, queries + index(0) * K, query_heads * K, K, s.end - e0);
            load_queries<Vp>(dout, gradient + index(0) * V, query_heads * V, V, s.end - e0);
            load_span<Mp>(p_tile, weights + index(0) * Mp, query_heads * Mp, 0, s.end - e0);
            load_span<Mp>(dl_tile, dlogits + index(0) * Mp, query_heads * Mp, 0, s.end - e0);
            tiles_loaded();
            with([&](auto columns, const bf16* x, const bf16* y, const bf16* weight, const bf16*) {
                constexpr int D = decltype(columns)::value;
#pragma unroll 1
                for (int t0 = j0; t0 < CHUNK; t0 += 16) {
                    float scores[2][4], mix[2][4], f[Mp / 8][2];
                    zero(scores), zero(mix);
#pragma unroll
                    for (int k = 0; k < D / 16; k++) {
                        u32 a[4], b[4];
                        load_a(a, x, D + 8, j0, 16 * k);
                        load_b(b, y, D + 8, t0, 16 * k);
                        mma_bf16(scores[0], a, b[0], b[1]);
                        mma_bf16(scores[1], a, b[2], b[3]);
                    }
                    factors(f, g.G + (t0 + 8) * GS, middle); // 1 in the block itself
#pragma unroll
                    for (int n = 0; n < Mp / 16; n++) {
                        u32 a[4], b[4];
                        load_gates(a, n, f);
                        load_b(b, weight, PS, t0, 16 * n);
                        mma_bf16(mix[0], a, b[0], b[1]);
                        mma_bf16(mix[1], a, b[2], b[3]);
                    }
                    if (t0 == j0)
#pragma unroll
                        for (int n = 0; n < 2; n++)
#pragma unroll
                            for (int i = 0; i < 4; i++)
                                if (8 * n + pair() + i % 2 < group() + i / 2 * 8) scores[n][i] = mix[n][i] = 0;
                    u32 a[4];
                    as_a(a, mix);
                    add_times(leading<D / 8>(dx), a, y, D + 8, t0);
                    as_a(a, scores);
                    if (t0 > j0) {
#pragma unroll
                        for (int n = 0; n < Mp / 8; n += 2) {
                            u32 b[4];
                            float more[2][4];
                            zero(more);
                            load_b_transposed(b, weight, PS, t0, 8 * n);
                            mma_bf16(more[0], a, b[0], b[1]);
                            mma_bf16(more[1], a, b[2], b[3]);
#pragma unroll
                            for (int m = 0; m < 2; m++)
#pragma unroll
                                for (int i = 0; i < 4; i++) d[n + m][i] += more[m][i] * f[n + m][i % 2];
                        }
                        continue;
                    }
#pragma unroll
                    for (int n = 0; n < Mp / 8; n += 2) {
                        u32 b[4];
                        load_b_transposed(b, weight, PS, t0, 8 * n);
                        mma_bf16(d_inside[n], a, b[0], b[1]);
                        mma_bf16(d_inside[n + 1], a, b[2], b[3]);
                    }
                    u32 turned[4] = {transpose_8x8(a[0]), transpose_8x8(a[2]), transpose_8x8(a[1]), transpose_8x8(a[3])};
#pragma unroll
                    for (int n = 0; n < Mp / 8; n++) { // the same products summed over the block's tokens
                        float sum[4] = {};
                        u32 e[2];
                        ldmatrix_x2_transposed(e, g.E + (j0 + lane % 16) * Gates::ES + 8 * n);
                        mma_bf16(sum, turned, e[0], e[1]);
#pragma unroll
                        for (int r = 0; r < 2; r++) {
                            u32 w = *(const u32*)(weight + (row + 8 * r) * PS + 8 * n + pair());
                            float2& to = *(float2*)(mine + 8 * r * GS + 8 * n);
                            to = make_float2(to.x + unpack_low(w) * sum[2 * r], to.y + unpack_high(w) * sum[2 * r + 1]);
                        }
                    }
                }
            });
            adjoint.add_queries(query, dout, dl_tile, p_tile, [&](int m, int slot) { return exp2_fast(g.G[m * GS + slot]); });
        }
        __syncthreads();
        auto put_sums = [&] {
            with([&](auto columns, const bf16*, const bf16*, const bf16*, const bf16*) { store_rows(sums, leading<decltype(columns)::value / 8>(dx), j0); });
        };
        if (TOGETHER == 2 || with_keys) put_sums();
        auto put_d = [&](bool add) {
#pragma unroll
            for (int n = 0; n < Mp / 8; n++)
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    const int slot = 8 * n + pair(), at = (row + 8 * r) * GS + slot;
                    float2 sum = *(const float2*)(g.G + at), m = *(const float2*)(middle + slot);
                    float f0 = exp2_fast(m.x - sum.x), f1 = exp2_fast(m.y - sum.y);
                    float2 &behind = *(float2*)(later + at), &in = *(float2*)(inside + at);
                    float2 x = add ? behind : make_float2(0, 0), y = add ? in : make_float2(0, 0);
                    behind = make_float2(x.x + d[n][2 * r] * f0, x.y + d[n][2 * r + 1] * f1);
                    in = make_float2(y.x + d_inside[n][2 * r] * f0, y.y + d_inside[n][2 * r + 1] * f1);
                }
        };
        if (with_keys) put_d(false);
#pragma unroll
        for (int n = 0; n < Mp / 8; n++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                u32 e = *(const u32*)(g.E + (row + 8 * r) * Gates::ES + 8 * n + pair());
                float2& to = *(float2*)(mine + 8 * r * GS + 8 * n);
                to = make_float2(to.x - unpack_low(e) * d_inside[n][2 * r], to.y - unpack_high(e) * d_inside[n][2 * r + 1]);
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
        if (!with_keys) put_d(true);
        __syncthreads();
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
                above += has[n][r] + crossing[at] + crossing[CHUNK * GS + at];
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
        auto put = [&](const float* from, bf16* fresh, bf16* ring, int width, int padded) {
            write_rows(from, padded, width, 1, [&](int r) -> bf16* {
                int e = e0 + r, j = e - window;
                if (j < 0 || e >= s.end) return nullptr;
                return j < q.held ? ring + ((i64)h * q.held + j) * width : fresh + (q.row(j) * heads + h) * width;
            }, [](int) { return false; });
        };
        put((const float*)region, dk, q.ring_dkeys, K, Kp);
        if (TOGETHER == 1) {
            __syncthreads();
            if (!with_keys) put_sums();
            __syncthreads();
        }
        put((const float*)region + (TOGETHER - 1) * CHUNK * (DP + 8), dv, q.ring_dvalues, V, Vp);
        __syncthreads();
        if (threadIdx.x < Mp) through[threadIdx.x] = up[threadIdx.x];
    }
}
#endif
