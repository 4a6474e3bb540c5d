// The optimiser: parameters, moments and, where the model computes in 16 bits, its copy of the parameters, in one pass. PARAMETER,
// GRADIENT and MOMENT are the types of p, g, and of m and v, REAL that of the copy, VEC the numbers a thread moves at a time.

// adamw: m = b1 m + (1-b1) g, v = b2 v + (1-b2) g^2, p -= lr (wd p + (m/c1) / (sqrt(v/c2) + epsilon)), c = 1 - b^step.
extern "C" __global__ void __launch_bounds__(256) adamw(PARAMETER* p, REAL* rounded, const GRADIENT* g, MOMENT* m, MOMENT* v, i64 n, float learning_rate, float beta1,
                                                         float beta2, float epsilon, float weight_decay, float gradient_scale, float inverse_correction1, float inverse_correction2) {
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
        if (rounded) store<N>(rounded + at, x);
    });
}
