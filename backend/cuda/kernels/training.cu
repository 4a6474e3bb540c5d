// Loss and optimiser. REAL is the type of logits, gradients and parameters, LOSS that of the losses, MOMENT that of Adam's m and v.

// cross_entropy: a block a row. loss = -log p(target); logits become scale (p - onehot(target)), both with the digits that are
// left where p(target) is nearly 1: the sum over the other words is kept apart. A negative target: 0 and zeros.
extern "C" __global__ void __launch_bounds__(512) cross_entropy(LOSS* loss, REAL* logits, const int* targets, int n, float scale) {
    i64 row = blockIdx.x;
    REAL* x = logits + row * n;
    int target = targets[row];
    if (target < 0) {
        for (int i = threadIdx.x; i < n; i += blockDim.x) x[i] = round_to<REAL>(0.0f);
        if (threadIdx.x == 0) loss[row] = round_to<LOSS>(0.0f);
        return;
    }
    float largest = -__int_as_float(0x7f800000), at = to_float(x[target]);
    for (int i = threadIdx.x; i < n; i += blockDim.x) largest = fmaxf(largest, to_float(x[i]));
    largest = block_max(largest);
    float others = 0.0f;
    for (int i = threadIdx.x; i < n; i += blockDim.x)
        if (i != target) others += expf(to_float(x[i]) - largest);
    others = block_sum(others); // nobody reads x[target] after this: it may be written
    float own = expf(at - largest), inverse = 1.0f / (others + own);
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        float p = i == target ? -others * inverse : expf(to_float(x[i]) - largest) * inverse;
        x[i] = round_to<REAL>(scale * p);
    }
    if (threadIdx.x == 0) loss[row] = round_to<LOSS>(at == largest ? log1pf(others) : logf(others + own) + (largest - at));
}

// adamw: m = b1 m + (1-b1) g, v = b2 v + (1-b2) g^2, p -= lr (wd p + (m/c1) / (sqrt(v/c2) + epsilon)), c = 1 - b^step.
extern "C" __global__ void __launch_bounds__(256) adamw(REAL* p, const REAL* g, MOMENT* m, MOMENT* v, i64 n, float learning_rate, float beta1, float beta2,
                                                         float epsilon, float weight_decay, float gradient_scale, float inverse_correction1, float inverse_correction2) {
    i64 i = (i64)blockIdx.x * 256 + threadIdx.x;
    if (i >= n) return;
    float x = to_float(p[i]), d = to_float(g[i]) * gradient_scale;
    float first = beta1 * to_float(m[i]) + (1.0f - beta1) * d, second = beta2 * to_float(v[i]) + (1.0f - beta2) * d * d;
    m[i] = round_to<MOMENT>(first);
    v[i] = round_to<MOMENT>(second);
    p[i] = round_to<REAL>(x - learning_rate * (weight_decay * x + first * inverse_correction1 / (sqrtf(second * inverse_correction2) + epsilon)));
}
