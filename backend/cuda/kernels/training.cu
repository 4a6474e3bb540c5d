// The loss. REAL is the type of logits and gradients, LOSS that of the losses, VEC the numbers a thread moves at a time.

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
