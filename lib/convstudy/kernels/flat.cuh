// SPDX-License-Identifier: MIT
// How the optimisers go over all parameters, which lie in one array: VECTOR of them at a time,
// with what is remembered of each at the same place of other arrays. All are fp32; besides, where
// COPY says so, they are written as bf16, for the convolutions.
#ifndef THREADS
#define THREADS 256
#endif
#ifndef COPY
#define COPY 0
#endif
// Whether there is momentum, and an array of it.
#ifndef MOMENTUM
#define MOMENTUM 1
#endif

// The first parameter of this thread.
__device__ __forceinline__ long long my_parameter()
{
    return ((long long)blockIdx.x * THREADS + threadIdx.x) * VECTOR;
}

__device__ __forceinline__ void write(float* to, const float (&values)[VECTOR])
{
    store(to, pack(values));
}

__device__ __forceinline__ void write_copy(bf16* to, const float (&values)[VECTOR])
{
#if COPY && VECTOR == 4
    *reinterpret_cast<uint2*>(to) =
        make_uint2(to_bf16x2(values[0], values[1]), to_bf16x2(values[2], values[3]));
#elif COPY
    for (int v = 0; v < VECTOR; ++v) to[v] = values[v];
#endif
}
