// SPDX-License-Identifier: MIT
// Makes fp32 of bf16, for the kernels of few channels, which take no other.
//
// Idea      A bf16 is the upper half of an fp32: nothing is rounded.
// Threads   Thread t copies EACH numbers, THREADS apart.
// Shared    None.
// Source    None.
#include "overlap.cuh"
#include "ptx.cuh"

#ifndef THREADS
#define THREADS 256
#endif
#ifndef EACH
#define EACH 4
#endif

extern "C" __global__ void __launch_bounds__(THREADS)
conv2d_operand_2_widen(const bf16* __restrict__ from, float* __restrict__ to,
                       long long size)
{
    wait_for_others();
    let_others_begin();
    const long long first = (long long)blockIdx.x * THREADS * EACH + threadIdx.x;
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const long long at = first + i * THREADS;
        if (at < size) to[at] = __uint_as_float((unsigned)from[at].bits << 16);
    }
}
