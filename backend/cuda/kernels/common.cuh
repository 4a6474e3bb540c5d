// What every kernel shares: the 16-bit floating-point types, wide loads and stores, reductions, and the tensor core's
// instructions. No toolkit header is included, so types and instructions are inline PTX; sm_80 and newer.

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

struct __align__(2) bf16 { u16 bits; };
struct __align__(2) f16 { u16 bits; };

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __uint_as_float((u32)x.bits << 16); }
__device__ __forceinline__ float to_float(f16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}

// round_to is the nearest number of the type, ties to even.
template <typename T> __device__ __forceinline__ T round_to(float x);
template <> __device__ __forceinline__ float round_to<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 round_to<bf16>(float x) {
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}
template <> __device__ __forceinline__ f16 round_to<f16>(float x) {
    f16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}

// pack_bf16 is two rounded numbers in one register, the first in the low half; unpack_* are its halves.
__device__ __forceinline__ u32 pack_bf16(float low, float high) {
    u32 y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}
__device__ __forceinline__ float unpack_low(u32 x) { return __uint_as_float(x << 16); }
__device__ __forceinline__ float unpack_high(u32 x) { return __uint_as_float(x & 0xffff0000u); }

// load and store move N numbers that lie side by side; with N > 1 the address is a multiple of 16 bytes (of the whole, where
// that is less), and the access is as wide as the machine has it.
template <int N> struct vector_io {
    static_assert(N % 4 == 0, "vectors of 4 or 8");
    static __device__ __forceinline__ void load(const float* p, float (&x)[N]) {
#pragma unroll
        for (int i = 0; i < N; i += 4) {
            float4 v = *(const float4*)(p + i);
            x[i] = v.x, x[i + 1] = v.y, x[i + 2] = v.z, x[i + 3] = v.w;
        }
    }
    static __device__ __forceinline__ void store(float* p, const float (&x)[N]) {
#pragma unroll
        for (int i = 0; i < N; i += 4) *(float4*)(p + i) = make_float4(x[i], x[i + 1], x[i + 2], x[i + 3]);
    }
    static __device__ __forceinline__ void load(const bf16* p, float (&x)[N]) {
        u32 w[N / 2];
        words(p, w);
#pragma unroll
        for (int i = 0; i < N / 2; i++) x[2 * i] = unpack_low(w[i]), x[2 * i + 1] = unpack_high(w[i]);
    }
    static __device__ __forceinline__ void store(bf16* p, const float (&x)[N]) {
#pragma unroll
        for (int i = 0; i < N; i += 8) {
            if constexpr (N % 8 == 0) {
                *(uint4*)(p + i) = make_uint4(pack_bf16(x[i], x[i + 1]), pack_bf16(x[i + 2], x[i + 3]), pack_bf16(x[i + 4], x[i + 5]), pack_bf16(x[i + 6], x[i + 7]));
            } else {
                *(uint2*)(p + i) = make_uint2(pack_bf16(x[i], x[i + 1]), pack_bf16(x[i + 2], x[i + 3]));
            }
        }
    }
    static __device__ __forceinline__ void load(const f16* p, float (&x)[N]) {
        u32 w[N / 2];
        words(p, w);
#pragma unroll
        for (int i = 0; i < N / 2; i++) {
            f16 low = {(u16)w[i]}, high = {(u16)(w[i] >> 16)};
            x[2 * i] = to_float(low), x[2 * i + 1] = to_float(high);
        }
    }
    static __device__ __forceinline__ void store(f16* p, const float (&x)[N]) {
#pragma unroll
        for (int i = 0; i < N; i += 4) {
            u32 low, high;
            asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(low) : "f"(x[i + 1]), "f"(x[i]));
            asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(high) : "f"(x[i + 3]), "f"(x[i + 2]));
            *(uint2*)(p + i) = make_uint2(low, high);
        }
    }
    template <typename T> static __device__ __forceinline__ void words(const T* p, u32 (&w)[N / 2]) {
#pragma unroll
        for (int i = 0; i < N / 2; i += 4) {
            if constexpr (N % 8 == 0) {
                uint4 v = *(const uint4*)(p + 2 * i);
                w[i] = v.x, w[i + 1] = v.y, w[i + 2] = v.z, w[i + 3] = v.w;
            } else {
                uint2 v = *(const uint2*)(p + 2 * i);
                w[i] = v.x, w[i + 1] = v.y;
            }
        }
    }
};
template <> struct vector_io<1> {
    template <typename T> static __device__ __forceinline__ void load(const T* p, float (&x)[1]) { x[0] = to_float(*p); }
    template <typename T> static __device__ __forceinline__ void store(T* p, const float (&x)[1]) { *p = round_to<T>(x[0]); }
};
template <int N, typename T> __device__ __forceinline__ void load(const T* p, float (&x)[N]) { vector_io<N>::load(p, x); }
template <int N, typename T> __device__ __forceinline__ void store(T* p, const float (&x)[N]) { vector_io<N>::store(p, x); }

// each calls f<N> with the first of every thread's N elements, blockDim.x * N to a block; what crosses the end is done by f<1>.
template <int N, typename F> __device__ __forceinline__ void each(i64 n, F f) {
    i64 i = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * N;
    if (i + N <= n) {
        f.template operator()<N>(i);
    } else {
        for (; i < n; i++) f.template operator()<1>(i);
    }
}

// Reductions. Every thread gets the result; the order of additions is fixed.
template <typename S> __device__ __forceinline__ S warp_sum(S x) {
#pragma unroll
    for (int i = 16; i > 0; i /= 2) x += __shfl_xor_sync(0xffffffffu, x, i);
    return x;
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int i = 16; i > 0; i /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, i));
    return x;
}

// block_sum and block_max are over a whole block, a multiple of 32 threads; all of them call it.
template <typename S> __device__ __forceinline__ S block_sum(S x) {
    __shared__ S part[32];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
    x = warp_sum(x);
    __syncthreads();
    if (lane == 0) part[warp] = x;
    __syncthreads();
    return warp_sum(lane < warps ? part[lane] : (S)0);
}
__device__ __forceinline__ float block_max(float x) {
    __shared__ float part[32];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
    x = warp_max(x);
    __syncthreads();
    if (lane == 0) part[warp] = x;
    __syncthreads();
    return warp_max(part[lane < warps ? lane : 0]);
}

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// exp2_fast and log2_fast are the special-function unit's: good to 2 units in the last place of float32.
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float log2_fast(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Tensor cores: D[16,8] += A[16,16] B[16,8], bf16 with float32 accumulation, one warp. With g = lane / 4 and t = lane % 4 a lane
// holds of A rows g, g+8 at columns 2t, 2t+1 (a[0], a[1]) and 2t+8, 2t+9 (a[2], a[3]); of B rows 2t, 2t+1 (b[0]) and 2t+8, 2t+9
// (b[1]) at column g; of D rows g (d[0], d[1]) and g+8 (d[2], d[3]) at columns 2t, 2t+1.
__device__ __forceinline__ void mma_bf16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// ldmatrix reads 8x8 matrices of 16-bit numbers from shared memory in the layout that mma takes: matrix i's rows are 16 bytes
// at the addresses that lanes 8i to 8i+7 give. The transposed form reads B from rows along n.
__device__ __forceinline__ void ldmatrix_x4(u32 (&r)[4], const void* p) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(p)) : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_transposed(u32 (&r)[4], const void* p) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(p)) : "memory");
}
__device__ __forceinline__ void ldmatrix_x2(u32 (&r)[2], const void* p) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(shared_address(p)) : "memory");
}
__device__ __forceinline__ void ldmatrix_x2_transposed(u32 (&r)[2], const void* p) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(shared_address(p)) : "memory");
}

// Asynchronous copies of 16 bytes from global to shared memory; where valid is false, zeros.
__device__ __forceinline__ void copy_async_16(void* shared, const void* global, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(valid ? 16 : 0) : "memory");
}
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> __device__ __forceinline__ void copy_async_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }
