// Loss and optimiser. REAL is the type of logits and gradients, LOSS that of the losses, PARAMETER that of parameters, MOMENT that
// of Adam's m and v, VEC the numbers a thread moves at a time.

// cross_entropy: a block a row of n logits, a multiple of VEC. loss = -log p(target); logits become scale (p - onehot(target)), both
// with the digits that are left where p(target) is nearly 1: the sum over the other words is kept apart. A negative target: 0 and zeros.
extern "C" __global__ void __launch_bounds__(512) cross_entropy(LOSS* loss, REAL* logits, const int* targets, int n, float scale) {
    i64 row = blockIdx.x;
    REAL* x = logits + row * n;
    int target = targets[row], first = threadIdx.x * VEC, step = blockDim.x * VEC;
    float v[VEC];
    if (target < 0) {
#pragma unroll
        for (int j = 0; j < VEC; j++) v[j] = 0.0f;
        for (int i = first; i < n; i += step) store<VEC>(x + i, v);
        if (threadIdx.x == 0) loss[row] = round_to<LOSS>(0.0f);
        return;
    }
    // Every thread keeps its largest logit and the sum of exponentials relative to it, in one pass.
    float at = to_float(x[target]), largest = -3.0e38f, others = 0.0f;
    for (int i = first; i < n; i += step) {
        load<VEC>(x + i, v);
        float larger = largest;
#pragma unroll
        for (int j = 0; j < VEC; j++) larger = fmaxf(larger, v[j]);
        others *= expf(largest - larger);
        largest = larger;
#pragma unroll
        for (int j = 0; j < VEC; j++) others += i + j == target ? 0.0f : expf(v[j] - largest);
    }
    float mine = largest;
    largest = block_max(mine);
    others = block_sum(others * expf(mine - largest)); // everybody has read x[target] before this
    float own = expf(at - largest), inverse = 1.0f / (others + own);
    for (int i = first; i < n; i += step) {
        load<VEC>(x + i, v);
#pragma unroll
        for (int j = 0; j < VEC; j++) v[j] = scale * inverse * (i + j == target ? -others : expf(v[j] - largest));
        store<VEC>(x + i, v);
    }
    if (threadIdx.x == 0) loss[row] = round_to<LOSS>(at == largest ? log1pf(others) : logf(others + own) + (largest - at));
}

// adamw: m = b1 m + (1-b1) g, v = b2 v + (1-b2) g^2, p -= lr (wd p + (m/c1) / (sqrt(v/c2) + epsilon)), c = 1 - b^step.
extern "C" __global__ void __launch_bounds__(256) adamw(PARAMETER* p, const REAL* g, MOMENT* m, MOMENT* v, i64 n, float learning_rate, float beta1, float beta2,
                                                         float epsilon, float weight_decay, float gradient_scale, float inverse_correction1, float inverse_correction2) {
    each<VEC>(n, [=]<int N>(i64 at) {
        float x[N], d[N], first[N], second[N];
        load<N>(p + at, x);
        load<N>(g + at, d);
        load<N>(m + at, first);
        load<N>(v + at, second);
#pragma unroll
        for (int i = 0; i < N; i++) {
            d[i] *= gradient_scale;
            first[i] = beta1 * first[i] + (1.0f - beta1) * d[i];
            second[i] = beta2 * second[i] + (1.0f - beta2) * d[i] * d[i];
            x[i] -= learning_rate * (weight_decay * x[i] + first[i] * inverse_correction1 / (sqrtf(second[i] * inverse_correction2) + epsilon));
        }
        store<N>(m + at, first);
        store<N>(v + at, second);
        store<N>(p + at, x);
    });
}
