#include "decode.cuh"

// The end of a decoding step: the next token of every row, by the rules of package generate (repetition penalty, temperature, top-k, top-p, min-p,
// and a draw that is a function of seed, sample and position), or the likeliest. Weights are integers, 2^40 for the likeliest
// token, so that sums do not depend on their order; float32 logits are compared as integers of the same order.
//
// sample_scan looks through a part of a row's logits, sample_choose puts the parts together and draws. With top-k the k-th largest of the
// scores that are the largest of their warp is a bound for the k-th of all: those above it are few and lie in few places, and among them
// everything is found by comparing all with all. Otherwise thresholds are found bit by bit in passes over the vocabulary.

struct Sample {
    const u64* order;
    const float* logits; // [batch, vocabulary]
    float4* scans;       // [batch, parts]: largest logit, sum of exp(logit - largest), largest score, its token
    float* peaks;        // [batch, parts * scan_warps]: the largest score of a warp
    int* results;        // [batch, 2]: the token, -1 where logits are no numbers; its log-probability
    int vocabulary;
};

const int parts = 64, scanners = 256, scan_warps = scanners / 32, choosers = 1024, few = 2048;

__device__ __forceinline__ float score(float x, int id, const u32* seen, float penalty) {
    if (penalty != 1.0f && (seen[id / 32] >> id % 32 & 1)) x = x < 0.0f ? x * penalty : x / penalty;
    return x;
}

extern "C" __global__ void __launch_bounds__(scanners) sample_scan(const __grid_constant__ Sample a) {
    release();
    arrive();
    __shared__ float best_of[scanners / 32];
    __shared__ int id_of[scanners / 32];
    int row = blockIdx.y, part = blockIdx.x;
    const Seat* seat = (const Seat*)a.order[row];
    if (!seat) return;
    const u32* seen = (const u32*)seat->seen;
    const float* logits = a.logits + (i64)row * a.vocabulary;
    float penalty = seat->penalty, top = -3e38f, sum = 0.0f, best = -3.4e38f;
    int each = (a.vocabulary + parts - 1) / parts, from = part * each, to = min(from + each, a.vocabulary), id = from;
#pragma unroll 4
    for (int i = from + threadIdx.x; i < to; i += scanners) {
        float x = logits[i], y = score(x, i, seen, penalty), larger = fmaxf(top, x);
        sum = sum * __expf(top - larger) + __expf(x - larger), top = larger;
        if (y > best) best = y, id = i;
    }
    float largest = block_max(top);
    sum = block_sum(sum * __expf(top - largest)), top = largest;
    for (int i = 16; i > 0; i /= 2) {
        float other = __shfl_xor_sync(0xffffffffu, best, i);
        int other_id = __shfl_xor_sync(0xffffffffu, id, i);
        if (other > best || other == best && other_id < id) best = other, id = other_id;
    }
    if (threadIdx.x % 32 == 0) {
        best_of[threadIdx.x / 32] = best, id_of[threadIdx.x / 32] = id;
        a.peaks[(row * parts + part) * scan_warps + threadIdx.x / 32] = best;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int w = 1; w < scanners / 32; w++)
            if (best_of[w] > best || best_of[w] == best && id_of[w] < id) best = best_of[w], id = id_of[w];
        a.scans[row * parts + part] = make_float4(top, sum, best, __int_as_float(id));
    }
}

// uniform is splitmix64 over seed, sample and position, 53 bits of it.
__device__ __forceinline__ double uniform(u64 seed, u64 sample, u64 position) {
    u64 x = seed;
    for (int i = 0; i < 2; i++) {
        x += 0x9e3779b97f4a7c15ull * ((i == 0 ? sample : position) + 1);
        x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
        x = (x ^ x >> 27) * 0x94d049bb133111ebull;
        x ^= x >> 31;
    }
    return (double)(x >> 11) * (1.0 / 9007199254740992.0);
}

// ordered is an integer that compares as the float does.
__device__ __forceinline__ u32 ordered(float x) {
    u32 b = __float_as_uint(x + 0.0f);
    return b & 0x80000000u ? ~b : b | 0x80000000u;
}

__device__ __forceinline__ u64 block_total(u64 x) { return (u64)block_sum((i64)x); }

// before is the sum of what the threads before this one have.
__device__ __forceinline__ u64 before(u64 x) {
    __shared__ u64 sums[choosers / 32];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u64 y = x;
    for (int i = 1; i < 32; i *= 2) {
        u64 other = __shfl_up_sync(0xffffffffu, y, i);
        if (lane >= i) y += other;
    }
    __syncthreads();
    if (lane == 31) sums[warp] = y;
    __syncthreads();
    u64 s = y - x;
    for (int w = 0; w < warp; w++) s += sums[w];
    return s;
}

extern "C" __global__ void __launch_bounds__(choosers) sample_choose(const __grid_constant__ Sample a) {
    release();
    arrive();
    __shared__ u64 bins[few];
    __shared__ float scores[few];
    __shared__ int tokens[few], found;
    __shared__ u32 chosen_bin;
    __shared__ u64 rest;
    __shared__ int chosen;
    int row = blockIdx.x;
    Seat* seat = (Seat*)a.order[row];
    if (!seat) return;
    const u32* seen = (const u32*)seat->seen;
    const float* logits = a.logits + (i64)row * a.vocabulary;
    // The parts of the scan, the same in every warp.
    int lane = threadIdx.x % 32;
    float top = -3e38f, sum = 0.0f, best = -3.4e38f;
    int id = 0x7fffffff;
    for (int p = lane; p < parts; p += 32) {
        float4 s = __ldcg(a.scans + row * parts + p);
        float larger = fmaxf(top, s.x);
        sum = sum * __expf(top - larger) + s.y * __expf(s.x - larger), top = larger;
        if (s.z > best || s.z == best && __float_as_int(s.w) < id) best = s.z, id = __float_as_int(s.w);
    }
    float largest = warp_max(top);
    sum = warp_sum(sum * __expf(top - largest));
    for (int i = 16; i > 0; i /= 2) {
        float other = __shfl_xor_sync(0xffffffffu, best, i);
        int other_id = __shfl_xor_sync(0xffffffffu, id, i);
        if (other > best || other == best && other_id < id) best = other, id = other_id;
    }
    float lse = largest + logf(sum), temperature = seat->temperature, penalty = seat->penalty;
    bool broken = !(lse > -1e38f && lse < 1e38f);
    if (temperature > 0.0f && !broken) {
        float slope = 1.0f / temperature;
        // key and weight of a token; tokens whose key is below least, or equal to it and whose id is below tie, are out.
        u32 least = 0;
        int tie = 0;
        auto weight = [&](float y) { return (u64)(exp2f((y - best) * slope * 1.4426950408889634f) * 1099511627776.0f); };
        auto kept = [&](u32 key, int i) { return key > least || key == least && i >= tie; };
        // Finds the key at which a sum from the top (or, from_below, from the bottom) over what is kept passes a limit, 11 bits at a time.
        // What is left of the limit within that key comes back in rest.
        auto search = [&](u64 limit, bool from_below, auto count) {
            u32 prefix = 0;
            const int shifts[3] = {21, 10, 0}, widths[3] = {11, 11, 10};
            for (int level = 0; level < 3; level++) {
                int shift = shifts[level], width = widths[level], many = 1 << width;
                for (int i = threadIdx.x; i < many; i += choosers) bins[i] = 0;
                __syncthreads();
                for (int i = threadIdx.x; i < a.vocabulary; i += choosers) {
                    float y = score(logits[i], i, seen, penalty);
                    u32 key = ordered(y);
                    if (kept(key, i) && (level == 0 || key >> (shift + width) == prefix)) atomicAdd(bins + (key >> shift & (many - 1)), count(y));
                }
                __syncthreads();
                // A thread has two neighbouring bins, in the order of the sum.
                u64 x[2];
                int bin[2];
                for (int n = 0; n < 2; n++) {
                    int i = threadIdx.x * 2 + n;
                    bin[n] = from_below ? i : many - 1 - i;
                    x[n] = i < many ? bins[bin[n]] : 0;
                }
                u64 sum = before(x[0] + x[1]);
                for (int n = 0; n < 2; n++) {
                    if (sum <= limit && sum + x[n] > limit) chosen_bin = bin[n], rest = limit - sum;
                    sum += x[n];
                }
                __syncthreads();
                limit = rest, prefix = prefix << width | chosen_bin;
                __syncthreads();
            }
            return prefix;
        };
        auto total = [&](u32 only) { // of the weights kept; only: of one key, 0: of all
            u64 x = 0;
            for (int i = threadIdx.x; i < a.vocabulary; i += choosers) {
                float y = score(logits[i], i, seen, penalty);
                u32 key = ordered(y);
                if (kept(key, i) && (!only || key == only)) x += weight(y);
            }
            return block_total(x);
        };
        u32 allowed = ordered(seat->min_p > 0.0f ? best + logf(seat->min_p) / slope : -3.4e38f);
        double u = uniform(seat->seed, seat->sample, seat->position + 1);
        int top_k = seat->top_k;
        bool done = false;
        if (threadIdx.x == 0) chosen = id, found = few + 1;
        __syncthreads();
        if (top_k > 0 && top_k <= parts * scan_warps / 2) { // few candidates
            const float* peaks = a.peaks + row * parts * scan_warps;
            for (int i = threadIdx.x; i < parts * scan_warps; i += choosers) scores[i] = __ldcg(peaks + i);
            __syncthreads();
            float* bound = scores + parts * scan_warps;
            for (int i = threadIdx.x; i < parts * scan_warps; i += choosers) {
                int larger = 0;
                for (int j = 0; j < parts * scan_warps; j++) larger += scores[j] > scores[i] || scores[j] == scores[i] && j < i;
                if (larger == top_k - 1) *bound = scores[i], found = 0;
            }
            __syncthreads();
            float from_here = *bound;
            int each = (a.vocabulary + parts - 1) / parts, warp = threadIdx.x / 32;
            u32 mine = 0; // of the peaks that this warp looks after, those to visit
            static_assert(parts * scan_warps / (choosers / 32) <= 32, "a bit for each");
            for (int n = 0; n < parts * scan_warps / (choosers / 32); n++) mine |= (u32)(scores[n * (choosers / 32) + warp] >= from_here) << n;
            __syncthreads(); // scores are the candidates' from here on
            for (; mine; mine &= mine - 1) {
                int peak = (__ffs(mine) - 1) * (choosers / 32) + warp, first = peak / scan_warps * each, to = min(first + each, a.vocabulary);
                for (int i = first + peak % scan_warps * 32 + lane; i < to; i += scanners) {
                    float y = score(logits[i], i, seen, penalty);
                    if (y < from_here) continue;
                    int n = atomicAdd(&found, 1);
                    if (n < few) scores[n] = y, tokens[n] = i, bins[n] = weight(y);
                }
            }
            __syncthreads();
            done = found <= few;
        }
        if (done) {
            int n = found;
            const int own = few / choosers;
            bool in[own];
            for (int c = 0; c < own; c++) { // top-k
                int i = c * choosers + threadIdx.x, larger = 0;
                in[c] = i < n;
                if (in[c])
                    for (int j = 0; j < n; j++) larger += scores[j] > scores[i];
                in[c] = in[c] && larger < top_k;
            }
            auto drop = [&]() { // what is out weighs nothing; the sum of the rest
                u64 x = 0;
                __syncthreads();
                for (int c = 0; c < own; c++) {
                    int i = c * choosers + threadIdx.x;
                    if (i < n && !in[c]) bins[i] = 0;
                    if (i < n) x += bins[i];
                }
                x = block_total(x);
                __syncthreads();
                return x;
            };
            u64 all = drop();
            u64 budget = seat->top_p < 1.0f ? (u64)((1.0 - (double)seat->top_p) * (double)all) : 0;
            for (int c = 0; c < own; c++) {
                int i = c * choosers + threadIdx.x;
                if (!in[c]) continue;
                if (budget > 0) { // top-p: with all that are less likely, and of equal ones the earlier
                    u64 below = 0;
                    for (int j = 0; j < n; j++)
                        if (scores[j] < scores[i] || scores[j] == scores[i] && tokens[j] <= tokens[i]) below += bins[j];
                    in[c] = below > budget;
                }
                in[c] = in[c] && ordered(scores[i]) >= allowed;
            }
            all = drop();
            u64 target = (u64)(u * (double)all);
            for (int c = 0; c < own; c++) {
                int i = c * choosers + threadIdx.x;
                if (!in[c]) continue;
                u64 at = 0;
                for (int j = 0; j < n; j++)
                    if (tokens[j] < tokens[i]) at += bins[j];
                if (at <= target && target < at + bins[i]) chosen = tokens[i];
            }
            __syncthreads();
            id = chosen;
        }
        if (!done) {
            if (top_k > 0 && top_k < a.vocabulary) least = search(top_k - 1, false, [](float) { return (u64)1; });
            if (seat->top_p < 1.0f) {
                u64 all = total(0), budget = (u64)((1.0 - (double)seat->top_p) * (double)all);
                if (budget < all) {
                    u32 key = search(budget, true, weight);
                    u64 left = rest;
                    // Of equal ones the later id is the larger: those that fit into what is left go first.
                    u64 one = weight(__uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key));
                    int drop = one > 0 ? (int)min(left / one, (u64)a.vocabulary) : 0, first = 0;
                    if (drop > 0) {
                        int each = (a.vocabulary + choosers - 1) / choosers, from = threadIdx.x * each, to = min(from + each, a.vocabulary), mine = 0;
                        for (int i = from; i < to; i++) {
                            u32 k = ordered(score(logits[i], i, seen, penalty));
                            mine += k == key && kept(k, i);
                        }
                        int earlier = (int)before(mine);
                        if (threadIdx.x == 0) chosen = 0x7fffffff;
                        __syncthreads();
                        for (int i = from; i < to; i++) {
                            u32 k = ordered(score(logits[i], i, seen, penalty));
                            if (k == key && kept(k, i) && earlier++ == drop) chosen = i;
                        }
                        __syncthreads();
                        first = chosen;
                        __syncthreads();
                    }
                    least = key, tie = first;
                }
            }
            if (allowed > least) least = allowed, tie = 0;
            // The draw, over tokens in the order of their ids.
            int each = (a.vocabulary + choosers - 1) / choosers, from = threadIdx.x * each, to = min(from + each, a.vocabulary);
            u64 mine = 0;
            for (int i = from; i < to; i++) {
                float y = score(logits[i], i, seen, penalty);
                if (kept(ordered(y), i)) mine += weight(y);
            }
            u64 all = block_total(mine), at = before(mine);
            u64 target = (u64)(u * (double)all);
            if (threadIdx.x == 0) chosen = id;
            __syncthreads();
            if (at <= target && target < at + mine) {
                for (int i = from; i < to; i++) {
                    float y = score(logits[i], i, seen, penalty);
                    if (!kept(ordered(y), i)) continue;
                    u64 w = weight(y);
                    if (target < at + w) {
                        chosen = i;
                        break;
                    }
                    at += w;
                }
            }
            __syncthreads();
            id = chosen;
        }
    }
    if (threadIdx.x == 0) {
        a.results[2 * row] = broken ? -1 : id;
        a.results[2 * row + 1] = __float_as_int(broken ? 0.0f : logits[id] - lse);
        seat->token = broken ? 0 : id;
        seat->position++;
    }
}
