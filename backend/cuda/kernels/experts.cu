// The routing of a mixture of experts. experts is E, chosen is k; a row of logits is one warp's.

// route takes the largest logit, then the largest of those that come after it in order (smaller, or equal and further on), and so
// on; a row with NaN, which is after nothing, gets experts all the same.
extern "C" __global__ void route(REAL* weights, int* ids, const REAL* logits, int rows, int experts, int chosen, int normalize) {
    int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    const REAL* l = logits + (i64)row * experts;
    float last = 0, largest = 0, sum = 0;
    int before = -1;
    for (int j = 0; j < chosen; j++) {
        float best = 0;
        int at = experts;
        for (int i = lane; i < experts; i += 32) {
            float v = to_float(l[i]);
            bool after = before < 0 || v < last || (v == last && i > before);
            if (after && (at == experts || v > best)) best = v, at = i;
        }
#pragma unroll
        for (int i = 16; i > 0; i /= 2) {
            float v = __shfl_xor_sync(0xffffffffu, best, i);
            int other = __shfl_xor_sync(0xffffffffu, at, i);
            if (other < experts && (at == experts || v > best || (v == best && other < at))) best = v, at = other;
        }
        if (at == experts) at = j, best = to_float(l[j]);
        if (j == 0) largest = best;
        before = at, last = best;
        if (lane == 0) ids[(i64)row * chosen + j] = at;
        sum += expf(best - largest);
    }
    if (!normalize) {
        sum = 0;
        for (int i = lane; i < experts; i += 32) sum += expf(to_float(l[i]) - largest);
        sum = warp_sum(sum);
    }
    __syncwarp();
    for (int j = lane; j < chosen; j += 32) {
        i64 at = (i64)row * chosen + j;
        weights[at] = round_to<REAL>(expf(to_float(l[ids[at]]) - largest) / sum);
    }
}

// route_backward: with g = sum_j w_j dw_j, dlogit_i = p_i (dw_i - g), dw_i = 0 where i was not chosen; p is the softmax over all, or
// over the chosen ones where they are normalised.
extern "C" __global__ void route_backward(REAL* dlogits, const REAL* dweights, const REAL* weights, const int* ids, const REAL* logits, int rows, int experts,
                                          int chosen, int normalize, int add) {
    int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    const REAL *l = logits + (i64)row * experts, *w = weights + (i64)row * chosen, *dw = dweights + (i64)row * chosen;
    const int* id = ids + (i64)row * chosen;
    float g = 0, sum = 0, largest = to_float(l[id[0]]);
    for (int j = 0; j < chosen; j++) g += to_float(w[j]) * to_float(dw[j]);
    for (int i = lane; i < experts; i += 32) sum += expf(to_float(l[i]) - largest);
    sum = warp_sum(sum);
    for (int i = lane; i < experts; i += 32) {
        float d = normalize ? 0.0f : -expf(to_float(l[i]) - largest) / sum * g;
        for (int j = 0; j < chosen; j++)
            if (id[j] == i) d += to_float(w[j]) * (to_float(dw[j]) - (normalize ? g : 0.0f));
        REAL* to = dlogits + (i64)row * experts + i;
        *to = round_to<REAL>(d + (add ? to_float(*to) : 0.0f));
    }
}

// combine: a block is one token.
extern "C" __global__ void combine(REAL* y, const REAL* x, const REAL* weights, const int* places, int columns, int chosen, int add) {
    i64 row = blockIdx.x;
    for (int c = threadIdx.x; c < columns; c += blockDim.x) {
        float sum = add ? to_float(y[row * columns + c]) : 0.0f;
        for (int j = 0; j < chosen; j++) sum += to_float(weights[row * chosen + j]) * to_float(x[(i64)places[row * chosen + j] * columns + c]);
        y[row * columns + c] = round_to<REAL>(sum);
    }
}

// combine_backward: a block is one choice of one token.
extern "C" __global__ void combine_backward(REAL* dx, REAL* dweights, const REAL* dy, const REAL* x, const REAL* weights, const int* places, int columns, int chosen,
                                            int add_x, int add_weights) {
    i64 choice = blockIdx.x, place = places[choice];
    const REAL *g = dy + choice / chosen * columns, *from = x + place * columns;
    REAL* to = dx + place * columns;
    float w = to_float(weights[choice]), dot = 0;
    for (int c = threadIdx.x; c < columns; c += blockDim.x) {
        float d = to_float(g[c]);
        dot += d * to_float(from[c]);
        to[c] = round_to<REAL>(w * d + (add_x ? to_float(to[c]) : 0.0f));
    }
    dot = block_sum(dot);
    if (threadIdx.x == 0) dweights[choice] = round_to<REAL>(dot + (add_weights ? to_float(dweights[choice]) : 0.0f));
}
