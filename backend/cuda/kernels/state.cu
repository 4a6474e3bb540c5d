// What a decode state keeps of a token's gate logits z: log a = logsigmoid(z) / tau (SPEC 1), in float32.

extern "C" __global__ void __launch_bounds__(256) log_gates(float* y, const REAL* z, int n, float normalizer) {
    int i = blockIdx.x * 256 + threadIdx.x;
    if (i >= n) return;
    float x = to_float(z[i]);
    y[i] = (fminf(x, 0.0f) - log1pf(expf(-fabsf(x)))) * normalizer;
}
