// SPDX-License-Identifier: MIT
// Rung 2: the same loops, the threads numbered so that a warp reads and writes whole lines.
//
// Idea      Coalescing. Neighbouring threads take neighbouring pixels of one row, so that a
//           warp's load of x is 128 consecutive bytes (4 or 5 sectors), its load of w one word
//           for all, its store of y 128 consecutive bytes. The number of loads is rung 1's.
// Threads   Thread i computes output (n, k, p, q), q counting fastest: y's own order.
// Shared    None. Reuse is left to the L1 cache.
// Source    CUDA C++ Best Practices Guide, "Coalesced access to global memory".
#include "conv2d.cuh"

extern "C" __global__ void __launch_bounds__(256)
conv2d_fprop_2_coalesced(const float* __restrict__ x, const float* __restrict__ w,
                         const float* __restrict__ bias, float* __restrict__ y, CONV2D_SIZES)
{
    const size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x;
    if (i >= (size_t)N * K * P * Q) return;
    const int q = i % Q;
    const int p = i / Q % P;
    const int k = i / ((size_t)Q * P) % K;
    const int n = i / ((size_t)Q * P * K);

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
    y[i] = bias ? sum + bias[k] : sum;
}
