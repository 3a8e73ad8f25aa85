// SPDX-License-Identifier: MIT
// Adds up the parts of a convolution whose sums were split over several blocks.
//
// Idea      Part after part, in order: the result is the same on every run, which sums by atomics
//           would not be. The bias comes last, as everywhere, and then the rounding, if it is to
//           be bf16.
// Threads   Thread t computes EACH outputs, THREADS apart.
// Shared    None.
// Source    Split-K, as in NVIDIA CUTLASS, "Efficient GEMM in CUDA".
#include "overlap.cuh"
#include "ptx.cuh"
#include "conv2d_out.cuh"

#ifndef BF16
#define BF16 0
#endif
#if BF16
using Result = bf16;
#else
using Result = float;
#endif
#ifndef THREADS
#define THREADS 256
#endif
#ifndef EACH
#define EACH 4
#endif

// What is scattered is told apart by its pixel.
#if VIEW == 2
#define PIXELS , int P, int Q
#else
#define PIXELS
#endif

#ifdef SUMMAND
__device__ __forceinline__ float number(float x) { return x; }
__device__ __forceinline__ float number(bf16 x) { return __uint_as_float((unsigned)x.bits << 16); }
#endif

extern "C" __global__ void __launch_bounds__(THREADS)
conv2d_splits_1_sum(const float* __restrict__ parts, const float* __restrict__ bias,
#ifdef SUMMAND
                    const Result* __restrict__ residual,
#endif
                    Result* __restrict__ y, long long size, int splits, int K PIXELS VIEW_SIZES)
{
    wait_for_others();
    let_others_begin();
    const View view = VIEW_OF(K, P, Q);
    const long long first = (long long)blockIdx.x * THREADS * EACH + threadIdx.x;
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const long long at = first + i * THREADS;
        if (at >= size) return;
        float sum = parts[at];
        for (int split = 1; split < splits; ++split) sum += parts[split * size + at];
        const int column = VIEW || bias ? at % K : 0;
        if (bias) sum += bias[view.filter(column)];
#ifdef SUMMAND
        sum += number(residual[at]);
#endif
        y[VIEW ? view.at(at / K, column) : at] = activated(sum);
    }
}
