// Losses against a teacher (backend.Distillation). REAL is the type of logits, teacher and gradients, LOSS that of the losses, LOGQ that of kept
// log-probabilities, VEC the numbers a thread moves at a time, LISTED the kept words of a thread. A block does a row.

// A thread's part of a softmax: its largest logit and the sum of exponentials relative to it.
struct partial {
    float largest, sum;
    __device__ __forceinline__ void take(const float (&v)[VEC]) {
        float larger = largest;
#pragma unroll
        for (int j = 0; j < VEC; j++) larger = fmaxf(larger, v[j]);
        sum *= expf(largest - larger);
        largest = larger;
#pragma unroll
        for (int j = 0; j < VEC; j++) sum += expf(v[j] - largest);
    }
    // merge makes it the row's, in all threads.
    __device__ __forceinline__ void merge() {
        float mine = largest;
        largest = block_max(mine);
        sum = block_sum(sum * expf(mine - largest));
    }
};

__device__ __forceinline__ void zero_row(REAL* x, int n) {
    float v[VEC];
#pragma unroll
    for (int j = 0; j < VEC; j++) v[j] = 0.0f;
    for (int i = threadIdx.x * VEC; i < n; i += blockDim.x * VEC) store<VEC>(x + i, v);
}

// nll of a logit x at the target: log(own + others) - (x - largest), with its digits where the target has nearly all.
__device__ __forceinline__ float nll_of(float x, float largest, float others) {
    float own = expf(x - largest);
    return x == largest ? log1pf(others) : logf(others + own) + (largest - x);
}

// divergence is q u - q + p for p = q e^{-u}, summed over words the kl of q to p: no term is negative, so that a small sum keeps its
// digits, and an error of u that all words share drops out to first order.
__device__ __forceinline__ float divergence(float q, float p, float u) {
    if (fabsf(u) > 0.5f) return q * u + (p - q);
    float series = 1.0f / 40320;
#pragma unroll
    for (int n = 7; n >= 2; n--) {
        const float factorials[] = {1.0f / 2, 1.0f / 6, 1.0f / 24, 1.0f / 120, 1.0f / 720, 1.0f / 5040};
        series = factorials[n - 2] - u * series;
    }
    return q * u * u * series;
}

// distill: x <- a (p - onehot) + b (p - q), nll = -log p(target), kl = sum q log(q / p).
extern "C" __global__ void __launch_bounds__(512) distill(LOSS* nll, LOSS* kl, REAL* logits, const REAL* teacher, const int* targets, int n, float a, float b) {
    i64 row = blockIdx.x;
    REAL* x = logits + row * n;
    const REAL* y = teacher + row * n;
    int target = targets[row], first = threadIdx.x * VEC, step = blockDim.x * VEC;
    if (target < 0) {
        zero_row(x, n);
        if (threadIdx.x == 0) nll[row] = kl[row] = round_to<LOSS>(0.0f);
        return;
    }
    float v[VEC], w[VEC], at = to_float(x[target]);
    partial p = {-3.0e38f, 0.0f}, q = {-3.0e38f, 0.0f};
    for (int i = first; i < n; i += step) {
        load<VEC>(x + i, v);
        load<VEC>(y + i, w);
        p.take(v);
        q.take(w);
    }
    p.merge();
    q.merge();
    float distance = 0.0f, others = 0.0f, shift = q.largest - p.largest, inverse_p = 1.0f / p.sum, inverse_q = 1.0f / q.sum, more = logf(p.sum * inverse_q);
    for (int i = first; i < n; i += step) {
        load<VEC>(x + i, v);
        load<VEC>(y + i, w);
#pragma unroll
        for (int j = 0; j < VEC; j++) {
            float own = expf(v[j] - p.largest);
            distance += divergence(expf(w[j] - q.largest) * inverse_q, own * inverse_p, w[j] - v[j] - shift + more);
            others += i + j == target ? 0.0f : own;
        }
    }
    distance = block_sum(distance);
    others = block_sum(others);
    for (int i = first; i < n; i += step) {
        load<VEC>(x + i, v);
        load<VEC>(y + i, w);
#pragma unroll
        for (int j = 0; j < VEC; j++) {
            float pj = expf(v[j] - p.largest) * inverse_p, qj = expf(w[j] - q.largest) * inverse_q;
            v[j] = a * (i + j == target ? -others * inverse_p : pj) + b * (pj - qj);
        }
        store<VEC>(x + i, v);
    }
    if (threadIdx.x == 0) {
        nll[row] = round_to<LOSS>(nll_of(at, p.largest, others));
        kl[row] = round_to<LOSS>(distance);
    }
}

// distill_top: of the teacher the log-probabilities of k words are known; the rest of q goes to the other words in proportion to p.
extern "C" __global__ void __launch_bounds__(512) distill_top(LOSS* nll, LOSS* kl, REAL* logits, const LOGQ* logq, const int* ids, const int* targets, int n, int k, float a, float b) {
    i64 row = blockIdx.x;
    REAL* x = logits + row * n;
    const LOGQ* lq = logq + row * k;
    const int* id = ids + row * k;
    int target = targets[row], first = threadIdx.x * VEC, step = blockDim.x * VEC;
    if (target < 0) {
        zero_row(x, n);
        if (threadIdx.x == 0) nll[row] = kl[row] = round_to<LOSS>(0.0f);
        return;
    }
    float v[VEC], at = to_float(x[target]);
    partial p = {-3.0e38f, 0.0f};
    for (int i = first; i < n; i += step) {
        load<VEC>(x + i, v);
        p.take(v);
    }
    p.merge();
    float others = 0.0f, cross = 0.0f, known = 0.0f, rest = 0.0f, inverse = 1.0f / p.sum;
    for (int i = first; i < n; i += step) {
        load<VEC>(x + i, v);
#pragma unroll
        for (int j = 0; j < VEC; j++) others += i + j == target ? 0.0f : expf(v[j] - p.largest);
    }
    others = block_sum(others);
    // What the listed words get stays in registers, a word a thread in turn; in the row they are masked, so that the sum over the rest
    // is formed by itself and keeps its digits.
    float kept[LISTED];
#pragma unroll
    for (int t = 0; t < LISTED; t++) {
        int i = threadIdx.x + t * blockDim.x;
        if (i < k) {
            float l = to_float(lq[i]), q = expf(l), d = to_float(x[id[i]]) - p.largest;
            known += q;
            cross += q * (l - d);
            kept[t] = a * (id[i] == target ? -others * inverse : expf(d) * inverse) + b * (expf(d) * inverse - q);
            x[id[i]] = round_to<REAL>(-__int_as_float(0x7f800000));
        }
    }
    known = block_sum(known);
    cross = block_sum(cross);
    for (int i = first; i < n; i += step) {
        load<VEC>(x + i, v);
#pragma unroll
        for (int j = 0; j < VEC; j++) rest += expf(v[j] - p.largest);
    }
    rest = block_sum(rest);
    float rest_q = fmaxf(0.0f, 1.0f - known), ratio = rest_q / fmaxf(rest * inverse, 1e-30f);
    for (int i = first; i < n; i += step) {
        load<VEC>(x + i, v);
#pragma unroll
        for (int j = 0; j < VEC; j++) {
            float pj = expf(v[j] - p.largest) * inverse;
            v[j] = a * (i + j == target ? -others * inverse : pj) + b * pj * (1.0f - ratio);
        }
        store<VEC>(x + i, v);
    }
    __syncthreads();
#pragma unroll
    for (int t = 0; t < LISTED; t++) {
        int i = threadIdx.x + t * blockDim.x;
        if (i < k) x[id[i]] = round_to<REAL>(kept[t]);
    }
    if (threadIdx.x == 0) {
        nll[row] = round_to<LOSS>(nll_of(at, p.largest, others));
        kl[row] = round_to<LOSS>(cross + (1.0f - rest_q) * logf(p.sum) + (rest_q > 0.0f ? rest_q * logf(ratio) : 0.0f));
    }
}

// squared_error: a block a row; loss = weight sum (y - target)^2, dy = 2 scale weight (y - target), written or added.
extern "C" __global__ void __launch_bounds__(256) squared_error(LOSS* loss, REAL* dy, const REAL* y, const REAL* target, int n, float weight, float scale, int add) {
    i64 at = (i64)blockIdx.x * n;
    float v[VEC], w[VEC], sum = 0.0f;
    for (int i = threadIdx.x * VEC; i < n; i += blockDim.x * VEC) {
        load<VEC>(y + at + i, v);
        load<VEC>(target + at + i, w);
#pragma unroll
        for (int j = 0; j < VEC; j++) {
            v[j] -= w[j];
            sum += v[j] * v[j];
            v[j] *= 2.0f * scale * weight;
        }
        if (add) {
            load<VEC>(dy + at + i, w);
#pragma unroll
            for (int j = 0; j < VEC; j++) v[j] += w[j];
        }
        store<VEC>(dy + at + i, v);
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) loss[blockIdx.x] = round_to<LOSS>(weight * sum);
}
