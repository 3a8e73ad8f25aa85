// SPDX-License-Identifier: MIT
// Rung 12: few pixels under filters of 1 x 1, a matrix times a few vectors (GEMV).
//
// Layout    x (pixels, C), w (K, C), y (pixels, K), contiguous: linear layers, as convolutions.
// Idea      A linear layer for one image uses each weight once, and takes as long as it takes to
//           read them: VGG-16's three have 124 million. A tile of rung 10 has 64 rows or more, for
//           one that is used, and fetches weights by way of shared memory, a few stages at a time.
//           Here they go straight to registers, and each lane has FILTERS x DEEP vectors of them
//           on their way at once. The pixels, which all blocks read again, come from the caches.
// Threads   A block of WARPS warps computes FILTERS filters at PIXELS pixels. Its lanes share out
//           the channels, vector after vector, and add up what they have: lanes by shuffling,
//           warps through shared memory, in an order that never changes.
// Shared    4 WARPS FILTERS PIXELS bytes, static: 64 with the defaults.
// Source    V. Volkov, "Better performance at lower occupancy", GTC 2010.
#include "conv2d.cuh"
#include "conv2d_out.cuh"
#include "overlap.cuh"
#include "ptx.cuh"
#include "vectors.cuh"

#ifndef PIXELS
#define PIXELS 1
#endif
#ifndef FILTERS
#define FILTERS 2
#endif
#ifndef DEEP
#define DEEP 4
#endif
#ifndef WARPS
#define WARPS 8
#endif

constexpr int THREADS = 32 * WARPS;
constexpr int SUMS = FILTERS * PIXELS;
static_assert(SUMS <= THREADS, "each sum has its thread");

extern "C" __global__ void __launch_bounds__(THREADS)
conv2d_fprop_12_gemv(const Element* __restrict__ x, const Element* __restrict__ w,
                    const float* __restrict__ bias, Element* __restrict__ y, int C, int K)
{
    wait_for_others();
    let_others_begin();
    const int k0 = blockIdx.x * FILTERS, vectors = C / VECTOR;
    float sum[FILTERS][PIXELS] = {};
    for (int first = threadIdx.x; first < vectors; first += DEEP * THREADS) {
        Packed weights[DEEP][FILTERS];
#pragma unroll
        for (int d = 0; d < DEEP; ++d)
#pragma unroll
            for (int f = 0; f < FILTERS; ++f) {
                const int v = first + d * THREADS, k = k0 + f;
                const bool is_there = v < vectors && k < K;
                weights[d][f] = is_there ? load(w + (size_t)k * C + v * VECTOR) : Packed();
            }
#pragma unroll
        for (int d = 0; d < DEEP; ++d) {
            const int v = first + d * THREADS;
            if (v >= vectors) break;
#pragma unroll
            for (int n = 0; n < PIXELS; ++n) {
                const Packed pixel = load(x + (size_t)n * C + v * VECTOR);
#pragma unroll
                for (int f = 0; f < FILTERS; ++f)
#pragma unroll
                    for (int i = 0; i < VECTOR; ++i)
                        sum[f][n] = fmaf(at(weights[d][f], i), at(pixel, i), sum[f][n]);
            }
        }
    }

    __shared__ float sums[WARPS][SUMS];
#pragma unroll
    for (int f = 0; f < FILTERS; ++f)
#pragma unroll
        for (int n = 0; n < PIXELS; ++n) {
#pragma unroll
            for (int apart = 16; apart > 0; apart /= 2)
                sum[f][n] += __shfl_xor_sync(0xffffffffu, sum[f][n], apart);
            if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32][f * PIXELS + n] = sum[f][n];
        }
    __syncthreads();  // every warp's sums are there before they are added up
    const int k = k0 + threadIdx.x / PIXELS;
    if (threadIdx.x >= SUMS || k >= K) return;
    float total = 0.0f;
#pragma unroll
    for (int warp = 0; warp < WARPS; ++warp) total += sums[warp][threadIdx.x];
    y[(size_t)(threadIdx.x % PIXELS) * K + k] = activated(total + (bias ? bias[k] : 0.0f));
}
