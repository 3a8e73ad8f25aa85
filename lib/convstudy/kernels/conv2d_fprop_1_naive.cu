// SPDX-License-Identifier: MIT
// Rung 1: one thread an output, written down as the formula stands.
//
// Idea      The plainest GPU convolution: the six loops of the CPU, the outer ones replaced by
//           thread numbers. Every operand of every product is fetched from global memory.
// Threads   Thread i computes output (n, p, q, k), k counting fastest. Neighbours of a warp
//           therefore share a pixel and read 32 filters C R S floats apart: 32 sectors a load,
//           of which each uses 4 bytes of 32. Rung 2 changes nothing but this order.
// Shared    None.
// Source    Section 3 of the paper, the environment "GPU, not optimised"; it does not print its
//           kernel, so the order of the threads is this study's choice of a naive one.
#include "conv2d.cuh"

extern "C" __global__ void __launch_bounds__(256)
conv2d_fprop_1_naive(const float* __restrict__ x, const float* __restrict__ w,
                     const float* __restrict__ bias, float* __restrict__ y, CONV2D_SIZES)
{
    const size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x;
    if (i >= (size_t)N * K * P * Q) return;
    const int k = i % K;
    const int q = i / K % Q;
    const int p = i / ((size_t)K * Q) % P;
    const int n = i / ((size_t)K * Q * P);

    float sum = 0.0f;
    for (int c = 0; c < C; ++c) {
        const float* plane = x + ((size_t)n * C + c) * H * W;
        const float* filter = w + ((size_t)k * C + c) * R * S;
#pragma unroll
        for (int r = 0; r < R; ++r) {
            const int h = p * STRIDE_H + r - pad_h;
#pragma unroll
            for (int s = 0; s < S; ++s) {
                const int column = q * STRIDE_W + s - pad_w;
                if (h >= 0 && h < H && column >= 0 && column < W)
                    sum = fmaf(plane[h * W + column], filter[r * S + s], sum);
            }
        }
    }
    y[(((size_t)n * K + k) * P + p) * Q + q] = bias ? sum + bias[k] : sum;
}
