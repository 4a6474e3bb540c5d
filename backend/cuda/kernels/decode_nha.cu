#include "decode.cuh"

// The operator (SPEC 1) for one token of every row, on states that stay on the card: the token that leaves the window enters the slots, the
// new one enters the ring, then one softmax over slots and window. A block takes a row, a kv head and, where a window is long, one of SPLITS
// parts of it; the last of them to finish adds the parts up, in their order.
//
// LANES lanes share a slot or a token of the window, a warp has ROWS of them in hand; a lane holds of a key 4 numbers of either half (so that
// it can rotate them), of a value 8 side by side. Every such group of lanes has a softmax of its own, which are merged at the end.
// What the state alone decides (the slots' update, the first tokens) comes before the kernel waits for q, k, v and z.
//
// Rotary logits depend on differences alone: a window is cut into chunks of 64 tokens, keys turn by their place in the chunk and q by
// what lies between it and the chunk's start. So tables stay small and exact.
//
// Token u lies in row u mod W of the ring; where the window is full, in row u.

struct Step {
    const u64* order;  // the rows' seats, 0 where a row is idle
    const float* qkvz; // [batch, stride]: q [Hq K], k [H K], v [H V], z [H M]
    const float* cos;  // [chunk or longest window, K/2]
    const float* sin;
    const bf16* query_norm; // [K] or null
    const bf16* key_norm;
    const bf16* gamma; // [Hq V] of the norm over silu(o); null: o is written as it is
    bf16* out;         // [batch, Hq V] in squares
    float* sums;       // [batch, Hq] of silu(o)^2
    float* partial;    // [batch, H, SPLITS, GROUP, VALUE + 2]
    int* arrived;      // [batch, H], 0
    u64 slot_keys, slot_values, keys, values, gates; // where they begin in a state; a full layer's ring at keys + capacity * full
    u64 full;
    int stride, heads;
    float scale, normalizer, epsilon;
};

const int FULL = -1; // as WINDOW
const int threads = 32 * WARPS, rows_at_once = 32 / LANES, chunk = 64;
const int slot_turns = (SLOTS + rows_at_once * WARPS - 1) / (rows_at_once * WARPS);
const int slots_held = slot_turns < 2 ? slot_turns : 2; // turns whose slots are in registers before q comes
const bool SMALL = WINDOW != FULL && WINDOW <= chunk && SPLITS == 1;
const int window_turns = SMALL ? ((WINDOW + rows_at_once - 1) / rows_at_once + WARPS - 1) / WARPS : 1; // at most, of a small window
const float log2e = 1.4426950408889634f;

// Softmax of a group of lanes, in powers of 2.
struct Softmax {
    float top[GROUP], mass[GROUP], sum[GROUP][8];
};

__device__ __forceinline__ void take(Softmax& s, const float (&logit)[GROUP], const float (&v)[8], bool on) {
    if (!on) return;
#pragma unroll
    for (int g = 0; g < GROUP; g++) {
        float top = fmaxf(s.top[g], logit[g]), p = exp2_fast(logit[g] - top), fade = exp2_fast(s.top[g] - top);
        s.top[g] = top, s.mass[g] = s.mass[g] * fade + p;
#pragma unroll
        for (int i = 0; i < 8; i++) s.sum[g][i] = s.sum[g][i] * fade + p * v[i];
    }
}

template <typename T> __device__ __forceinline__ void load_key(const T* p, int lane, float (&k)[8]) {
    float a[4], b[4];
    load<4>(p + 4 * lane, a);
    load<4>(p + KEY / 2 + 4 * lane, b);
#pragma unroll
    for (int i = 0; i < 4; i++) k[i] = a[i], k[i + 4] = b[i];
}

__device__ __forceinline__ void rotate(float (&k)[8], const float* cos, const float* sin, int lane) {
    float c[4], s[4];
    load<4>(cos + 4 * lane, c);
    load<4>(sin + 4 * lane, s);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float a = k[i], b = k[i + 4];
        k[i] = a * c[i] - b * s[i], k[i + 4] = b * c[i] + a * s[i];
    }
}

__device__ __forceinline__ float log_gate(float z, float normalizer) { return (fminf(z, 0.0f) - log1pf(__expf(-fabsf(z)))) * normalizer; }

extern "C" __global__ void __launch_bounds__(threads, BLOCKS) decode_nha(const __grid_constant__ Step a) {
    __shared__ __align__(16) float query[GROUP][KEY], key[KEY], value[VALUE], gate[SLOTS > 0 ? SLOTS : 1];
    __shared__ __align__(16) float turned[SMALL ? GROUP : 1][KEY]; // the queries rotated to the end of a small window
    __shared__ __align__(16) float merged[WARPS][GROUP][VALUE + 4];
    __shared__ bool last;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, of = lane % LANES, group = lane / LANES;
    int split = blockIdx.x, head = blockIdx.y, row = blockIdx.z;
    bool has_key = of * 8 < KEY, has_value = of * 8 < VALUE;
    const Seat* seat = (const Seat*)a.order[row];
    if (!seat) {
        release();
        arrive();
        return;
    }
    i64 t = seat->position;
    char* base = (char*)seat->base;
    i64 room = WINDOW == FULL ? seat->capacity : WINDOW;
    u64 at = WINDOW == FULL ? a.keys + room * a.full : a.keys;
    u64 at_values = WINDOW == FULL ? at + (u64)a.heads * room * KEY * 2 : a.values;
    u64 at_gates = WINDOW == FULL ? at_values + (u64)a.heads * room * VALUE * 2 : a.gates;
    bf16* keys = (bf16*)(base + at) + (i64)head * room * KEY;
    bf16* values = (bf16*)(base + at_values) + (i64)head * room * VALUE;
    float* gates = (float*)(base + at_gates) + (i64)head * room * SLOTS;
    i64 oldest = WINDOW == FULL ? 0 : max(t - WINDOW + 1, (i64)0);
    int count = WINDOW == 0 ? 0 : (int)(t - oldest + 1);
    int row_oldest = WINDOW == FULL || WINDOW == 0 ? 0 : (int)(oldest % max(WINDOW, 1));
    int row_new = WINDOW == FULL ? (int)t : WINDOW == 0 ? 0 : (int)(t % max(WINDOW, 1)); // where the token that leaves lies, too
    bool pops = WINDOW != FULL && t >= WINDOW;
    bool slots_live = SLOTS > 0 && WINDOW != FULL && split == 0 && (pops || !MASK);

    // The slots, updated by the token that leaves.
    auto slot_of = [&](int turn) { return (turn * WARPS + warp) * rows_at_once + group; };
    auto slots = [&](int turn, float (&k)[8], float (&v)[8]) {
        int slot = slot_of(turn);
#pragma unroll
        for (int i = 0; i < 8; i++) k[i] = v[i] = 0.0f;
        if (slot >= SLOTS) return;
        float* from_k = (float*)(base + a.slot_keys) + ((i64)head * SLOTS + slot) * KEY;
        float* from_v = (float*)(base + a.slot_values) + ((i64)head * SLOTS + slot) * VALUE;
        if (has_key) load_key(from_k, of, k);
        if (has_value) load<8>(from_v + 8 * of, v);
        if (!pops) return;
        float old_k[8] = {}, old_v[8] = {}, fade;
        if (WINDOW == 0) {
            fade = gate[slot];
            if (has_key) load_key(key, of, old_k);
            if (has_value) load<8>(value + 8 * of, old_v);
        } else {
            fade = gates[(i64)row_new * SLOTS + slot];
            if (has_key) load_key(keys + (i64)row_new * KEY, of, old_k);
            if (has_value) load<8>(values + (i64)row_new * VALUE + 8 * of, old_v);
        }
        float s = -expm1f(fade);
#pragma unroll
        for (int i = 0; i < 8; i++) k[i] += s * (old_k[i] - k[i]), v[i] += s * (old_v[i] - v[i]);
        if (has_key) {
            float x[4] = {k[0], k[1], k[2], k[3]}, y[4] = {k[4], k[5], k[6], k[7]};
            store<4>(from_k + 4 * of, x);
            store<4>(from_k + KEY / 2 + 4 * of, y);
        }
        if (has_value) store<8>(from_v + 8 * of, v);
    };
    float held_key[slots_held > 0 ? slots_held : 1][8], held_value[slots_held > 0 ? slots_held : 1][8];
    if (WINDOW != 0 && slots_live) {
#pragma unroll
        for (int n = 0; n < slots_held; n++) slots(n, held_key[n], held_value[n]);
    }

    // The window: this warp's tokens, and the first of them.
    int turns_all = (count + rows_at_once - 1) / rows_at_once, each = (turns_all + SPLITS * WARPS - 1) / (SPLITS * WARPS);
    int turn = (split * WARPS + warp) * each, end = min(turn + each, turns_all);
    // token reads a token as it lies in memory; the new one is not there yet.
    struct Packed {
        uint2 key[2];
        uint4 value;
    };
    auto token = [&](int turn) {
        Packed x = {};
        int p = turn * rows_at_once + group;
        if (p >= count - 1) return x;
        int r = row_oldest + p;
        if (WINDOW != FULL && r >= WINDOW) r -= WINDOW;
        if (has_key) {
            const bf16* k = keys + (i64)r * KEY + 4 * of;
            x.key[0] = *(const uint2*)k, x.key[1] = *(const uint2*)(k + KEY / 2);
        }
        if (has_value) x.value = *(const uint4*)(values + (i64)r * VALUE + 8 * of);
        return x;
    };
    auto unpack = [&](const Packed& x, int turn, float (&k)[8], float (&v)[8]) {
        u32 w[8] = {x.key[0].x, x.key[0].y, x.key[1].x, x.key[1].y, x.value.x, x.value.y, x.value.z, x.value.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            k[2 * i] = unpack_low(w[i]), k[2 * i + 1] = unpack_high(w[i]);
            v[2 * i] = unpack_low(w[4 + i]), v[2 * i + 1] = unpack_high(w[4 + i]);
        }
        if (turn * rows_at_once + group == count - 1) { // the new one
            if (has_key) load_key(key, of, k);
            if (has_value) load<8>(value + 8 * of, v);
        }
    };
    Packed held[window_turns > 0 ? window_turns : 1];
#pragma unroll
    for (int n = 0; n < window_turns; n++)
        if (turn + n < end) held[n] = token(turn + n);
    release();
    arrive();

    const float* from = a.qkvz + (i64)row * a.stride;
    for (int n = warp; n <= GROUP; n += WARPS) { // the queries and the key, normed
        const float* x = n < GROUP ? from + (head * GROUP + n) * KEY : from + (a.heads * GROUP + head) * KEY;
        const bf16* weight = n < GROUP ? a.query_norm : a.key_norm;
        float scale = n < GROUP ? a.scale * log2e : 1.0f, sum = 0.0f;
        float v[(KEY + 31) / 32];
#pragma unroll
        for (int i = 0; i < (KEY + 31) / 32; i++) {
            int d = i * 32 + lane;
            v[i] = d < KEY ? x[d] : 0.0f;
            sum += v[i] * v[i];
        }
        float norm = weight ? rsqrtf(warp_sum(sum) / KEY + a.epsilon) : 1.0f;
#pragma unroll
        for (int i = 0; i < (KEY + 31) / 32; i++) {
            int d = i * 32 + lane;
            if (d >= KEY) continue;
            if (weight) v[i] *= norm * to_float(weight[d]);
            if (n < GROUP) query[n][d] = v[i] * scale;
            if (n == GROUP) key[d] = rounded(v[i]);
        }
        if (SMALL && WINDOW > 0 && n < GROUP) {
            __syncwarp();
            for (int d = lane; d < KEY; d += 32) {
                int pair = d % (KEY / 2);
                float x = query[n][pair], y = query[n][pair + KEY / 2];
                float c = ROPE ? a.cos[(count - 1) * (KEY / 2) + pair] : 1.0f, s = ROPE ? a.sin[(count - 1) * (KEY / 2) + pair] : 0.0f;
                turned[n][d] = d < KEY / 2 ? x * c - y * s : y * c + x * s;
            }
        }
    }
    int keys_end = a.heads * (GROUP + 1) * KEY;
    for (int d = threads - 1 - threadIdx.x; d < VALUE + SLOTS; d += threads) {
        if (d < VALUE) value[d] = rounded(from[keys_end + head * VALUE + d]);
        if (d >= VALUE) gate[d - VALUE] = log_gate(from[keys_end + a.heads * VALUE + head * SLOTS + d - VALUE], a.normalizer);
    }
    __syncthreads();

    Softmax s;
#pragma unroll
    for (int g = 0; g < GROUP; g++) {
        s.top[g] = -1e30f, s.mass[g] = 0.0f;
#pragma unroll
        for (int i = 0; i < 8; i++) s.sum[g][i] = 0.0f;
    }
    float logit[GROUP];
    auto gather = [&]() {
#pragma unroll
        for (int g = 0; g < GROUP; g++)
#pragma unroll
            for (int i = LANES / 2; i > 0; i /= 2) logit[g] += __shfl_xor_sync(0xffffffffu, logit[g], i);
    };
    auto products = [&](const float (*q)[KEY], const float (&k)[8]) { // with queries in shared memory
#pragma unroll
        for (int g = 0; g < GROUP; g++) {
            float x[8] = {};
            if (has_key) load_key(q[g], of, x);
            logit[g] = 0.0f;
#pragma unroll
            for (int i = 0; i < 8; i++) logit[g] += x[i] * k[i];
        }
        gather();
    };
    if (slots_live) {
#pragma unroll
        for (int n = 0; n < slots_held; n++) {
            if (WINDOW == 0) slots(n, held_key[n], held_value[n]);
            products(query, held_key[n]);
            take(s, logit, held_value[n], slot_of(n) < SLOTS);
        }
#pragma unroll 1
        for (int n = slots_held; n < slot_turns; n++) {
            float k[8], v[8];
            slots(n, k, v);
            products(query, k);
            take(s, logit, v, slot_of(n) < SLOTS);
        }
    }
    if (SLOTS > 0 && WINDOW == FULL && !MASK && split == 0 && warp == 0 && group == 0) { // sinks: logit 0, value 0
#pragma unroll
        for (int g = 0; g < GROUP; g++) s.top[g] = 0.0f, s.mass[g] = SLOTS;
    }
    if constexpr (SMALL) {
#pragma unroll
        for (int n = 0; n < window_turns; n++) {
            if (turn + n >= end) break;
            int p = (turn + n) * rows_at_once + group;
            float k[8], v[8];
            unpack(held[n], turn + n, k, v);
            if (ROPE && has_key) rotate(k, a.cos + p * (KEY / 2), a.sin + p * (KEY / 2), of);
            products(turned, k);
            take(s, logit, v, p < count);
        }
    } else {
        float q[GROUP][8];
        int in_chunk = -1;
        for (; turn < end; turn++) {
            float k[8], v[8];
            int p = turn * rows_at_once + group, c = turn * rows_at_once / chunk;
            unpack(held[0], turn, k, v);
            if (turn + 1 < end) held[0] = token(turn + 1);
            if (c != in_chunk) {
                i64 d = (i64)(count - 1 - c * chunk) * (KEY / 2);
#pragma unroll
                for (int g = 0; g < GROUP; g++) {
#pragma unroll
                    for (int i = 0; i < 8; i++) q[g][i] = 0.0f;
                    if (has_key) load_key(query[g], of, q[g]);
                    if (has_key && ROPE) rotate(q[g], a.cos + d, a.sin + d, of);
                }
                in_chunk = c;
            }
            if (ROPE && has_key) rotate(k, a.cos + p % chunk * (KEY / 2), a.sin + p % chunk * (KEY / 2), of);
#pragma unroll
            for (int g = 0; g < GROUP; g++) {
                logit[g] = 0.0f;
#pragma unroll
                for (int i = 0; i < 8; i++) logit[g] += q[g][i] * k[i];
            }
            gather();
            take(s, logit, v, p < count);
        }
    }
    if (split == 0 && WINDOW != 0) { // the new token enters the ring
        for (int d = threadIdx.x; d < KEY + VALUE + SLOTS; d += threads) {
            if (d < KEY) keys[(i64)row_new * KEY + d] = round_to<bf16>(key[d]);
            else if (d < KEY + VALUE) values[(i64)row_new * VALUE + d - KEY] = round_to<bf16>(value[d - KEY]);
            else gates[(i64)row_new * SLOTS + d - KEY - VALUE] = gate[d - KEY - VALUE];
        }
    }

    // Merge groups of lanes, then warps.
#pragma unroll
    for (int i = LANES; i < 32; i *= 2)
#pragma unroll
        for (int g = 0; g < GROUP; g++) {
            float other = __shfl_xor_sync(0xffffffffu, s.top[g], i), top = fmaxf(s.top[g], other), fade = exp2_fast(s.top[g] - top);
            s.top[g] = top, s.mass[g] *= fade;
            s.mass[g] += __shfl_xor_sync(0xffffffffu, s.mass[g], i);
#pragma unroll
            for (int d = 0; d < 8; d++) {
                s.sum[g][d] *= fade;
                s.sum[g][d] += __shfl_xor_sync(0xffffffffu, s.sum[g][d], i);
            }
        }
    if (group == 0) {
#pragma unroll
        for (int g = 0; g < GROUP; g++) {
            if (has_value) store<8>(&merged[warp][g][8 * of], s.sum[g]);
            if (of == 0) merged[warp][g][VALUE] = s.top[g], merged[warp][g][VALUE + 1] = s.mass[g];
        }
    }
    __syncthreads();
    i64 pair = (i64)row * a.heads + head;
    if constexpr (SPLITS > 1) {
        for (int n = threadIdx.x; n < GROUP * (VALUE + 2); n += threads) {
            int g = n / (VALUE + 2), d = n % (VALUE + 2);
            float top = -1e30f, y = 0.0f;
            for (int w = 0; w < WARPS; w++) top = fmaxf(top, merged[w][g][VALUE]);
            for (int w = 0; w < WARPS; w++) y += merged[w][g][d == VALUE + 1 ? VALUE + 1 : min(d, VALUE - 1)] * exp2_fast(merged[w][g][VALUE] - top);
            a.partial[(pair * SPLITS + split) * GROUP * (VALUE + 2) + n] = d == VALUE ? top : y;
        }
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) {
            last = atomicAdd(a.arrived + pair, 1) == SPLITS - 1;
            if (last) a.arrived[pair] = 0;
        }
        __syncthreads();
        if (!last) return;
        __threadfence();
    }
    // o, and with a norm after it silu(o) gamma and the sum of squares: a warp a query head.
    for (int g = warp; g < GROUP; g += WARPS) {
        float square = 0.0f;
        int head_q = head * GROUP + g;
        const int parts = SPLITS > 1 ? SPLITS : WARPS;
        auto part = [&](int w, int d) {
            if constexpr (SPLITS > 1) return __ldcg(a.partial + ((pair * SPLITS + w) * GROUP + g) * (VALUE + 2) + d);
            else return merged[w][g][d];
        };
        float top = -1e30f, mass = 0.0f;
        for (int w = 0; w < parts; w++) top = fmaxf(top, part(w, VALUE));
        for (int w = 0; w < parts; w++) mass += part(w, VALUE + 1) * exp2_fast(part(w, VALUE) - top);
        for (int d = lane; d < VALUE; d += 32) {
            float y = 0.0f;
            for (int w = 0; w < parts; w++) y += part(w, d) * exp2_fast(part(w, VALUE) - top);
            y /= mass;
            if (a.gamma) {
                y = silu(y);
                square += y * y;
                y *= to_float(a.gamma[head_q * VALUE + d]);
            }
            a.out[place_of(row, head_q * VALUE + d, a.heads * GROUP * VALUE)] = round_to<bf16>(y);
        }
        if (a.gamma) {
            square = warp_sum(square);
            if (lane == 0) a.sums[(i64)row * a.heads * GROUP + head_q] = square;
        }
    }
}
