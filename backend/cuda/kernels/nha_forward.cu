// The forward kernels of the NHA operator (SPEC 1.2), which also give the slots that backward forms again.
#include "nha_slots.cuh"

#if PASS == CONTRIBUTE
extern "C" __global__ __launch_bounds__(THREADS, BLOCKS) void nha_contribute(const Sequence* sequences, const int* items, const bf16* k, const bf16* v, const bf16* z,
                                                                     float* states, float* decays, int heads, int window, float normalizer) {
    Carve c;
    bf16 *keys = c.take<bf16>(CHUNK * KS), *values = c.take<bf16>(CHUNK * VS);
    Gates g = Gates::take(c);
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
        load_tokens<Kp>(keys, key_rows, e0 - window, s.end - window);
        load_tokens<Vp>(values, value_rows, e0 - window, s.end - window);
        g.fetch(gate_rows, e0, window);
        if (e0 + CHUNK < s.end) {
            prefetch<Kp>(key_rows, e0 + CHUNK - window, s.end - window);
            prefetch<Vp>(value_rows, e0 + CHUNK - window, s.end - window);
        }
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

#if PASS == FORWARD
// TILE: rows of the window that are in shared memory at a time.
extern "C" __global__ __launch_bounds__(THREADS, BLOCKS) void nha_forward(const Sequence* sequences, const int* items, const bf16* queries, const bf16* k, const bf16* v,
                                                                         const bf16* z, const bf16* turned_queries, const bf16* turned_keys, const float* states,
                                                                         bf16* o, bf16* lse, bf16* share, int query_heads, int heads, int window, float scale, float normalizer,
                                                                         int mask, float sinks) {
    Carve c;
    char* region = c.take<char>(larger(CHUNK * 2 * KS * 2, CHUNK * (Vp + 8) * 4));
    bf16 *query = (bf16*)region, *turned = query + CHUNK * KS;
    float* partial = (float*)region; // [64][Vp + 8] outputs of the second half, once queries have been read,
    float* statistics = c.take<float>(CHUNK * 3); // and its maximum, sum and slots' sum
    bf16 *window_keys = c.take<bf16>(TILE * KS), *window_values = c.take<bf16>(TILE * VS);
    const int lane_row = group(), warp = threadIdx.x / 32, half = warp / 4, t0 = rows_of(warp);
    Segment s(sequences, items, heads);
    const Sequence& q = s.q;
    const int h = s.h, each = query_heads / heads, K = q.K(), V = q.V(), M = q.M(), all = q.all();
    const float scale2 = scale * LOG2E;
    const Tokens key_rows(q, k, q.keys, h, heads, K), value_rows(q, v, q.values, h, heads, V);
    const Rows<bf16, float> gate_rows(q, z, q.gates, h, heads, M);
    bf16 *keys = c.take<bf16>(CHUNK * KS), *values = c.take<bf16>(CHUNK * VS), *slot_keys = c.take<bf16>(Mp * KS), *slot_values = c.take<bf16>(Mp * VS);
    Gates g = Gates::take(c);
    State state;
    state.read(states + s.state * STATE);
    int resident = -CHUNK; // the tile of the window that is in shared memory
    auto fetch = [&](int u0) {
        load_span<Kp, TILE>(window_keys, turned_keys + ((q.base_token + u0) * heads + h) * Kp, heads * Kp, -u0, all - u0);
        if (EXACT && u0 >= value_rows.held) load_span<Vp, TILE>(window_values, value_rows[u0], value_rows.stride, 0, all - u0);
        else load_tile<Vp, TILE>(window_values, V, [&](int r) { return at(value_rows, u0 + r); });
        resident = u0;
    };
    for (int e0 = s.first; e0 < s.end; e0 += CHUNK) {
        // Older tiles come first, then the slots while the chunk's own tile is on its way; that one is the next chunk's older tile.
        const int older = window > 0 ? (min(window - 1, e0) + CHUNK - 1) / CHUNK : 0;
        const bool active = e0 + CHUNK > window || q.slot_keys; // otherwise the slots are empty before, in and after the chunk
        if (active) {
            load_tokens<Kp>(keys, key_rows, e0 - window, s.end - window);
            load_tokens<Vp>(values, value_rows, e0 - window, s.end - window);
            g.fetch(gate_rows, e0, window);
            state.publish(slot_keys, slot_values);
            if (e0 + CHUNK < s.end) {
                prefetch<Kp>(key_rows, e0 + CHUNK - window, s.end - window);
                prefetch<Vp>(value_rows, e0 + CHUNK - window, s.end - window);
            }
        }
        for (int head = h * each; head < (h + 1) * each; head++) {
            const i64 first = q.row(e0) * query_heads + head;
            load_queries<Kp>(query, queries + first * K, query_heads * K, K, s.end - e0);
            if (window > 0) load_span<Kp>(turned, turned_queries + first * Kp, query_heads * Kp, 0, s.end - e0);
            if (older > 0 && resident != e0 - older * CHUNK) fetch(e0 - older * CHUNK);
            if (e0 + CHUNK < s.end) {
                const i64 next = first + (i64)CHUNK * query_heads;
                prefetch<Kp>(queries + next * K, query_heads * K, s.end - e0 - CHUNK);
                if (window > 0) prefetch<Kp>(turned_queries + next * Kp, query_heads * Kp, s.end - e0 - CHUNK);
            }
            tiles_loaded();
            if (active && head == h * each) g.compute(gate_rows, e0, window, normalizer);
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
                for (int n = half * 16; n < TILE; n += 32) {
                    if (!in_window(u0 + n, e0 + t0, window)) continue;
                    float p[2][4];
                    times_rows_f16(p, x, window_keys, KS, n);
                    const int low = e0 + t0, u1 = u0 + n;
                    if (u1 + 15 > low || u1 < 0 || u1 <= low + 15 - window) {
#pragma unroll
                        for (int m = 0; m < 2; m++)
#pragma unroll
                            for (int i = 0; i < 4; i++) {
                                int u = u1 + 8 * m + pair() + i % 2, e = low + lane_row + i / 2 * 8;
                                if (u < 0 || u > e || u <= e - window) p[m][i] = NONE;
                            }
                    }
                    float most[2];
#pragma unroll
                    for (int r = 0; r < 2; r++) most[r] = fmaxf(fmaxf(p[0][2 * r], p[0][2 * r + 1]), fmaxf(p[1][2 * r], p[1][2 * r + 1]));
                    raise(0, most[0]);
                    raise(1, most[1]);
                    const float base[2] = {fmaxf(top[0], -1e29f), fmaxf(top[1], -1e29f)}; // a row that sees nothing yet: 0
#pragma unroll
                    for (int m = 0; m < 2; m++)
#pragma unroll
                        for (int i = 0; i < 4; i++) {
                            p[m][i] = exp2_fast(p[m][i] - base[i / 2]);
                            sum[i / 2] += p[m][i];
                        }
                    u32 a[4];
                    as_a(a, p);
                    add_times(out, a, window_values, VS, n);
                }
            };
            for (int u0 = e0 - older * CHUNK; u0 < e0; u0 += TILE) {
                if (resident != u0) {
                    __syncthreads();
                    fetch(u0);
                    tiles_loaded();
                }
                sweep(u0);
            }
            if (window > 0) {
                __syncthreads();
                fetch(e0);
                copy_async_commit();
            }
            float p[MH / 8][4];
            if (active) {
                load_rows(x, query, KS, t0);
                read_slots<Kp>(p, x, slot_keys, nullptr, keys, g, t0, half, [](int, float (&)[4], auto) {});
            } else {
                zero(p);
            }
            float most[2] = {NONE, NONE};
#pragma unroll
            for (int n = 0; n < MH / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    bool live = (EXACT || half * MH + 8 * n + pair() + i % 2 < M) && (!mask || e0 + t0 + lane_row + i / 2 * 8 >= window);
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
            if (active) write_slots<Vp>(out, p, slot_values, nullptr, values, g, t0, half);
            if (window > 0) {
                tiles_loaded();
                load_rows(x, turned, KS, t0);
                sweep(e0);
                for (int u0 = e0 + TILE; u0 < e0 + CHUNK; u0 += TILE) {
                    __syncthreads();
                    fetch(u0);
                    tiles_loaded();
                    sweep(u0);
                }
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
        if (active) {
            state.enter(g, keys, values);
            __syncthreads();
        }
    }
}
#endif
