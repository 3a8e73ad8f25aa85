// SPDX-License-Identifier: MIT
// Adds up the parts of a convolution whose sums were split over several blocks.
//
// Idea      Part after part, in order: the result is the same on every run, which sums by atomics
//           would not be. The bias comes last, as everywhere, and then the rounding, if it is to
//           be bf16.
//           Where outputs are few, GROUPS of threads have some parts each, and their sums are
//           added in order: of 132 parts of 36,864 sums, one after the other took 40 us.
// Threads   Thread t of a group computes EACH outputs, THREADS / GROUPS apart.
// Shared    Bytes, static: 4 THREADS if there are several groups.
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
#ifndef GROUPS
#define GROUPS 1
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
    constexpr int OUTPUTS = THREADS / GROUPS;
    const int each = (splits - 1) / GROUPS + 1, group = threadIdx.x / OUTPUTS;
    const int begins = group * each, ends = min(begins + each, splits);
    const long long first = (long long)blockIdx.x * OUTPUTS * EACH + threadIdx.x % OUTPUTS;
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const long long at = first + i * OUTPUTS;
        float sum = 0.0f;
        if (at < size)
#pragma unroll 8
            for (int split = begins; split < ends; ++split) sum += parts[split * size + at];
#if GROUPS > 1
        static_assert(EACH == 1, "each group's sums are written once");
        __shared__ float sums[GROUPS][OUTPUTS];
        sums[group][threadIdx.x % OUTPUTS] = sum;
        __syncthreads();  // the first group reads what the others have written
        if (group) return;
#pragma unroll
        for (int other = 1; other < GROUPS; ++other) sum += sums[other][threadIdx.x];
#endif
        if (at >= size) return;
        const int column = VIEW || bias ? at % K : 0;
        if (bias) sum += bias[view.filter(column)];
#ifdef SUMMAND
        sum += number(residual[at]);
#endif
        y[VIEW ? view.at(at / K, column) : at] = activated(sum);
    }
}
