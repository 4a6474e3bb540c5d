// Elementwise ops, VEC numbers a thread (1 where a pointer is not aligned for more): add, silu, swiglu and their gradients, and
// conversion from another type. REAL is the type of the op, FROM that of convert's input. Arithmetic is float32.

// silu'(x) = s (1 + x sigmoid(-x)), s = sigmoid(x).
__device__ __forceinline__ float silu_gradient(float x) { return sigmoid(x) * (1.0f + x * sigmoid(-x)); }

// give puts a gradient where it goes: written, or added.
template <int N> __device__ __forceinline__ void give(REAL* p, float (&g)[N], int add) {
    if (add) {
        float old[N];
        load<N>(p, old);
#pragma unroll
        for (int i = 0; i < N; i++) g[i] += old[i];
    }
    store<N>(p, g);
}

extern "C" __global__ void add(REAL* y, const REAL* a, const REAL* b, i64 n) {
    each<VEC>(n, [=]<int N>(i64 at) {
        float p[N], q[N];
        load<N>(a + at, p);
        load<N>(b + at, q);
#pragma unroll
        for (int i = 0; i < N; i++) p[i] += q[i];
        store<N>(y + at, p);
    });
}

extern "C" __global__ void silu(REAL* y, const REAL* x, i64 n) {
    each<VEC>(n, [=]<int N>(i64 at) {
        float v[N];
        load<N>(x + at, v);
#pragma unroll
        for (int i = 0; i < N; i++) v[i] *= sigmoid(v[i]);
        store<N>(y + at, v);
    });
}

extern "C" __global__ void silu_backward(REAL* dx, const REAL* dy, const REAL* x, i64 n, int add) {
    each<VEC>(n, [=]<int N>(i64 at) {
        float v[N], g[N];
        load<N>(x + at, v);
        load<N>(dy + at, g);
#pragma unroll
        for (int i = 0; i < N; i++) g[i] *= silu_gradient(v[i]);
        give<N>(dx + at, g, add);
    });
}

extern "C" __global__ void swiglu(REAL* y, const REAL* gate, const REAL* up, i64 n) {
    each<VEC>(n, [=]<int N>(i64 at) {
        float v[N], u[N];
        load<N>(gate + at, v);
        load<N>(up + at, u);
#pragma unroll
        for (int i = 0; i < N; i++) v[i] *= sigmoid(v[i]) * u[i];
        store<N>(y + at, v);
    });
}

extern "C" __global__ void swiglu_backward(REAL* dgate, REAL* dup, const REAL* dy, const REAL* gate, const REAL* up, i64 n, int add_gate, int add_up) {
    each<VEC>(n, [=]<int N>(i64 at) {
        float v[N], u[N], g[N];
        load<N>(gate + at, v);
        load<N>(up + at, u);
        load<N>(dy + at, g);
#pragma unroll
        for (int i = 0; i < N; i++) {
            u[i] *= g[i] * silu_gradient(v[i]);
            g[i] *= v[i] * sigmoid(v[i]);
        }
        give<N>(dgate + at, u, add_gate);
        give<N>(dup + at, g, add_up);
    });
}

extern "C" __global__ void convert(REAL* y, const FROM* x, i64 n) {
    each<VEC>(n, [=]<int N>(i64 at) {
        float v[N];
        load<N>(x + at, v);
        store<N>(y + at, v);
    });
}
