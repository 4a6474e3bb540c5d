// The gradient of a final state's ring (SPEC 1.1) added to that of the tokens in it, which have not entered the slots:
// dk += ..., dv += ..., dz += ... sigmoid(-z) / tau. One block a token; the ring's rows are in the order of time.
extern "C" __global__ void nha_final(REAL* dk, REAL* dv, REAL* dz, const REAL* z, const REAL* ring_keys, const REAL* ring_values, const float* ring_gates,
                                     i64 row, int skip, int kept, int heads, int key_dim, int value_dim, int slots, float normalizer) {
    int i = blockIdx.x, h = blockIdx.y; // the i-th of the call's tokens in the ring, behind skip older ones
    i64 from = (i64)h * kept + skip + i, to = (row + i) * heads + h;
    for (int x = threadIdx.x; x < key_dim; x += blockDim.x) dk[to * key_dim + x] = round_to<REAL>(to_float(dk[to * key_dim + x]) + to_float(ring_keys[from * key_dim + x]));
    for (int x = threadIdx.x; x < value_dim; x += blockDim.x) dv[to * value_dim + x] = round_to<REAL>(to_float(dv[to * value_dim + x]) + to_float(ring_values[from * value_dim + x]));
    for (int x = threadIdx.x; x < slots; x += blockDim.x) {
        i64 at = to * slots + x;
        dz[at] = round_to<REAL>(to_float(dz[at]) + ring_gates[from * slots + x] * normalizer * sigmoid(-to_float(z[at])));
    }
}
