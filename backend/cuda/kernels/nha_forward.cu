// The forward kernels of the NHA operator (SPEC 1.2), which also give the slots that backward forms again.
#include "nha.cuh"

#if PASS == CONTRIBUTE
extern "C" __global__ __launch_bounds__(THREADS, BLOCKS) void nha_contribute(const Sequence* sequences, const int* items, const bf16* k, const bf16* v, const bf16* z,
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
