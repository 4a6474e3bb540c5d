// The NHA operator in float32: the recurrence of SPEC 1 and 1.3, token by token, one block for a sequence's kv head. It is the
// card's plain twin of package attention, for comparisons to float32's last digits, and makes no claim to speed.
//
// Tokens are counted as in package attention: e = held + t, the ring's tokens in front; token e-W enters the slots at e.

constexpr float NONE = -1e30f; // a logit that takes no part
constexpr int THREADS = 256, CHUNK = 64;

// Sequence is a row of the host's table, 8 bytes a field (nha.cuh has the same).
struct Sequence {
    i64 at, tokens, held, start, capacity, base, base_token, key_dim, value_dim, slots;
    const float *keys, *values, *gates, *slot_keys, *slot_values;
    float *final_keys, *final_values, *ring_dkeys, *ring_dvalues, *ring_dgates;
    const float *dslot_keys, *dslot_values;
    float *initial_dkeys, *initial_dvalues;
};

// Head is a block's sequence and kv head, and its scratch.
struct Head {
    Sequence q;
    const float *queries, *k, *v, *z, *cosines, *sines;
    int h, query_heads, heads, window, mask;
    float scale, normalizer;
    int K, V, M;
    float* p; // [M + min(W, all)] logits, then probabilities of the slots, then of the window

    __device__ int all() const { return (int)(q.held + q.tokens); }
    __device__ i64 row(int e) const { return q.at + e - q.held; }
    __device__ i64 ring(int e) const { return h * q.capacity + (q.start + e) % q.capacity; }
    __device__ const float* key(int e) const { return e < q.held ? q.keys + ring(e) * K : k + (row(e) * heads + h) * K; }
    __device__ const float* value(int e) const { return e < q.held ? q.values + ring(e) * V : v + (row(e) * heads + h) * V; }
    __device__ float log_gate(int e, int i) const {
        if (e < q.held) return q.gates[ring(e) * M + i];
        float x = z[(row(e) * heads + h) * M + i];
        return (fminf(x, 0.0f) - log1pf(expf(-fabsf(x)))) * normalizer;
    }
    __device__ int first(int e) const { return window > e ? 0 : e - window + 1; }
    // rotated is element i of a row turned by sign times its position.
    __device__ float rotated(const float* x, int e, int i, float sign) const {
        if (!cosines) return x[i];
        const int half = K / 2;
        i64 at = (i64)e * half + i % half;
        float cosine = cosines[at], sine = sign * sines[at];
        return i < half ? x[i] * cosine - x[i + half] * sine : x[i] * cosine + x[i - half] * sine;
    }
    // enter blends token j into the slots, S += s (x - S), from one copy to another.
    __device__ void enter(int j, const float* from, float* to) const {
        for (int n = threadIdx.x; n < M * (K + V); n += THREADS) {
            bool is_key = n < M * K;
            int at = is_key ? n : n - M * K, i = at / (is_key ? K : V);
            float x = is_key ? key(j)[at % K] : value(j)[at % V], s = -expm1f(log_gate(j, i));
            to[n] = from[n] + s * (x - from[n]);
        }
        __syncthreads();
    }
    // attend forms p for query head n of token e and gives the log of its denominator. All threads call it.
    __device__ float attend(const float* slots, int e, int n) const {
        const float* query = queries + (row(e) * query_heads + n) * K;
        int warp = threadIdx.x / 32, lane = threadIdx.x % 32, from = first(e), keys = window > 0 ? e - from + 1 : 0;
        bool live = !mask || e >= window;
        float top = NONE;
        for (int i = warp; i < M + keys; i += THREADS / 32) {
            float dot = 0;
            if (i < M) {
                for (int x = lane; x < K; x += 32) dot += query[x] * slots[i * K + x];
            } else {
                for (int x = lane; x < K; x += 32) dot += rotated(query, e, x, 1) * rotated(key(from + i - M), from + i - M, x, 1);
            }
            dot = i < M && !live ? NONE : warp_sum(dot) * scale;
            if (lane == 0) p[i] = dot;
            top = fmaxf(top, dot);
        }
        top = block_max(top);
        float sum = 0;
        for (int i = threadIdx.x; i < M + keys; i += THREADS) {
            p[i] = expf(p[i] - top);
            sum += p[i];
        }
        sum = block_sum(sum);
        for (int i = threadIdx.x; i < M + keys; i += THREADS) p[i] /= sum;
        __syncthreads();
        return top + logf(sum);
    }
};

extern __shared__ __align__(16) char shared_memory[];

// store_slots writes slots, or their gradient, to their place outside; null: not wanted.
__device__ void store_slots(const Head& s, const float* slots, float* keys, float* values) {
    const int h = s.h, K = s.K, V = s.V, M = s.M, STATE = M * (K + V);
    for (int n = threadIdx.x; n < STATE; n += THREADS) {
        if (n < M * K && keys) keys[(i64)h * M * K + n] = slots[n];
        if (n >= M * K && values) values[(i64)h * M * V + n - M * K] = slots[n];
    }
}
__device__ void load_slots(const Head& s, float* slots, const float* keys, const float* values) {
    const int h = s.h, K = s.K, V = s.V, M = s.M, STATE = M * (K + V);
    for (int n = threadIdx.x; n < STATE; n += THREADS) {
        if (n < M * K) slots[n] = keys ? keys[(i64)h * M * K + n] : 0;
        else slots[n] = values ? values[(i64)h * M * V + n - M * K] : 0;
    }
    __syncthreads();
}

extern "C" __global__ __launch_bounds__(THREADS) void nha_f32_forward(const Sequence* sequences, const float* queries, const float* k, const float* v, const float* z,
                                                                      const float* cosines, const float* sines, float* scratch, i64 scratch_each,
                                                                      float* o, float* lse, float* share, int query_heads, int heads, int window, float scale, float normalizer, int mask) {
    float* slots = (float*)shared_memory;
    const Sequence& q = sequences[blockIdx.x];
    const int h = blockIdx.y, each = query_heads / heads, K = (int)q.key_dim, V = (int)q.value_dim, M = (int)q.slots;
    Head s = {q, queries, k, v, z, cosines, sines, h, query_heads, heads, window, mask, scale, normalizer, K, V, M, scratch + (blockIdx.x * heads + h) * scratch_each};
    load_slots(s, slots, s.q.slot_keys, s.q.slot_values);
    for (int e = (int)s.q.held; e < s.all(); e++) {
        if (M > 0 && e >= window) s.enter(e - window, slots, slots);
        for (int n = h * each; n < (h + 1) * each; n++) {
            float log = s.attend(slots, e, n);
            i64 row = s.row(e) * query_heads + n;
            int from = s.first(e), keys = window > 0 ? e - from + 1 : 0;
            for (int x = threadIdx.x; x < V; x += THREADS) {
                float sum = 0;
                for (int i = 0; i < M; i++) sum += s.p[i] * slots[M * K + i * V + x];
                for (int i = 0; i < keys; i++) sum += s.p[M + i] * s.value(from + i)[x];
                o[row * V + x] = sum;
            }
            if (threadIdx.x == 0) {
                float sum = 0;
                for (int i = 0; i < M; i++) sum += s.p[i];
                if (lse) lse[row] = log;
                if (share) share[row] = sum;
            }
            __syncthreads();
        }
    }
    store_slots(s, slots, s.q.final_keys, s.q.final_values);
}

// Backward keeps the slots at chunk starts, walks the chunks down and forms the slots of every token of a chunk again. Scratch of
// a block: p, then dp, then the slots: one set a chunk, and 65 in a chunk. Gradients of keys, values and log gates are summed for
// all tokens, the ring's in front, in gk, gr (rotated), gv, gg [tokens, H, *], which start as zeros.
extern "C" __global__ __launch_bounds__(THREADS) void nha_f32_backward(const Sequence* sequences, const i64* offsets, const float* queries, const float* k, const float* v, const float* z,
                                                                       const float* cosines, const float* sines, float* scratch, i64 scratch_each, int logits,
                                                                       const float* gradient, float* dq, float* dk, float* dv, float* dz,
                                                                       float* gk, float* gr, float* gv, float* gg,
                                                                       int query_heads, int heads, int window, float scale, float normalizer, int mask) {
    const Sequence& q = sequences[blockIdx.x];
    const int h = blockIdx.y, each = query_heads / heads, K = (int)q.key_dim, V = (int)q.value_dim, M = (int)q.slots, STATE = M * (K + V);
    float *adjoint = (float*)shared_memory, *turned = adjoint + STATE; // U, R; [K] the rotated part of dq
    float* own = scratch + (blockIdx.x * heads + h) * scratch_each;
    Head s = {q, queries, k, v, z, cosines, sines, h, query_heads, heads, window, mask, scale, normalizer, K, V, M, own};
    float *dp = own + logits, *starts = dp + logits;
    const int held = (int)s.q.held, all = s.all(), chunks = ((int)s.q.tokens + CHUNK - 1) / CHUNK;
    float* walk = starts + (i64)chunks * STATE;
    auto sum_row = [&](float* x, int e, int width) { return x + ((offsets[blockIdx.x] + e) * heads + h) * width; };
    load_slots(s, walk, s.q.slot_keys, s.q.slot_values);
    for (int e = held; e < all && M > 0; e++) {
        if ((e - held) % CHUNK == 0)
            for (int n = threadIdx.x; n < STATE; n += THREADS) starts[(i64)(e - held) / CHUNK * STATE + n] = walk[n];
        if (e >= window) s.enter(e - window, walk, walk);
    }
    load_slots(s, adjoint, s.q.dslot_keys, s.q.dslot_values);
    for (int c = chunks - 1; c >= 0; c--) {
        int begin = held + c * CHUNK, end = min(begin + CHUNK, all);
        __syncthreads();
        for (int n = threadIdx.x; n < STATE; n += THREADS) walk[n] = starts[(i64)c * STATE + n];
        __syncthreads();
        for (int e = begin; e < end && M > 0; e++) {
            float *from = walk + (i64)(e - begin) * STATE, *to = from + STATE;
            if (e >= window) {
                s.enter(e - window, from, to);
            } else {
                for (int n = threadIdx.x; n < STATE; n += THREADS) to[n] = from[n];
                __syncthreads();
            }
        }
        for (int e = end - 1; e >= begin; e--) {
            const float *previous = walk + (i64)(e - begin) * STATE, *slots = previous + STATE;
            int from = s.first(e), keys = window > 0 ? e - from + 1 : 0;
            for (int n = h * each; n < (h + 1) * each; n++) {
                s.attend(slots, e, n);
                i64 row = s.row(e) * query_heads + n;
                const float *query = queries + row * K, *d = gradient + row * V;
                float inner = 0;
                for (int i = threadIdx.x; i < M + keys; i += THREADS) {
                    const float* value = i < M ? slots + M * K + i * V : s.value(from + i - M);
                    float dot = 0;
                    for (int x = 0; x < V; x++) dot += value[x] * d[x];
                    dp[i] = dot;
                    inner += s.p[i] * dot;
                }
                inner = block_sum(inner);
                for (int i = threadIdx.x; i < M + keys; i += THREADS) dp[i] = scale * s.p[i] * (dp[i] - inner); // now c dl
                __syncthreads();
                for (int x = threadIdx.x; x < K; x += THREADS) {
                    float straight = 0, rotated = 0, query_rotated = s.rotated(query, e, x, 1);
                    for (int i = 0; i < M; i++) {
                        straight += dp[i] * slots[i * K + x];
                        adjoint[i * K + x] += dp[i] * query[x];
                    }
                    for (int i = 0; i < keys; i++) {
                        rotated += dp[M + i] * s.rotated(s.key(from + i), from + i, x, 1);
                        sum_row(gr, from + i, K)[x] += dp[M + i] * query_rotated;
                    }
                    dq[row * K + x] = straight;
                    turned[x] = rotated;
                }
                for (int x = threadIdx.x; x < V; x += THREADS) {
                    for (int i = 0; i < M; i++) adjoint[M * K + i * V + x] += s.p[i] * d[x];
                    for (int i = 0; i < keys; i++) sum_row(gv, from + i, V)[x] += s.p[M + i] * d[x];
                }
                __syncthreads();
                for (int x = threadIdx.x; x < K; x += THREADS) dq[row * K + x] += s.rotated(turned, e, x, -1);
                __syncthreads();
            }
            int j = e - window;
            if (M == 0 || j < 0) continue;
            const float *key = s.key(j), *value = s.value(j);
            for (int i = threadIdx.x / 32; i < M; i += THREADS / 32) {
                float da = 0;
                for (int x = threadIdx.x % 32; x < K; x += 32) da += adjoint[i * K + x] * (previous[i * K + x] - key[x]);
                for (int x = threadIdx.x % 32; x < V; x += 32) da += adjoint[M * K + i * V + x] * (previous[M * K + i * V + x] - value[x]);
                da = warp_sum(da);
                if (threadIdx.x % 32 == 0) sum_row(gg, j, M)[i] += da * expf(s.log_gate(j, i));
            }
            for (int x = threadIdx.x; x < K + V; x += THREADS) {
                float sum = 0;
                for (int i = 0; i < M; i++) sum += -expm1f(s.log_gate(j, i)) * (x < K ? adjoint[i * K + x] : adjoint[M * K + i * V + x - K]);
                if (x < K) sum_row(gk, j, K)[x] += sum;
                else sum_row(gv, j, V)[x - K] += sum;
            }
            __syncthreads();
            for (int n = threadIdx.x; n < STATE; n += THREADS) adjoint[n] *= expf(s.log_gate(j, n < M * K ? n / K : (n - M * K) / V));
            __syncthreads();
        }
    }
    store_slots(s, adjoint, s.q.initial_dkeys, s.q.initial_dvalues);
    __syncthreads();
    for (int e = 0; e < all; e++) {
        bool in_ring = e < held;
        i64 at = in_ring ? (i64)h * held + e : s.row(e) * heads + h;
        for (int x = threadIdx.x; x < K; x += THREADS) (in_ring ? s.q.ring_dkeys : dk)[at * K + x] = sum_row(gk, e, K)[x] + s.rotated(sum_row(gr, e, K), e, x, -1);
        for (int x = threadIdx.x; x < V; x += THREADS) (in_ring ? s.q.ring_dvalues : dv)[at * V + x] = sum_row(gv, e, V)[x];
        for (int i = threadIdx.x; i < M; i += THREADS) {
            float dg = sum_row(gg, e, M)[i];
            if (in_ring) s.q.ring_dgates[at * M + i] = dg;
            else dz[at * M + i] = dg * normalizer / (1 + expf(z[at * M + i]));
        }
    }
}
