// SPDX-License-Identifier: MIT
// Max pooling: one thread an output, which reads its window.
//
// Idea      Windows of 2 x 2 at stride 2 do not overlap: no pixel is read twice and nothing is to
//           be shared. Those of 3 x 3 overlap by a row and a column, which L1 still has. What is
//           left over below and right of the last window is in none. NaN wins, as in every
//           framework.
// Threads   A block covers 1,024 outputs of one plane (n, c), thread t those at t, t + 256, ...
//           A warp reads 64 neighbouring pixels of two rows, in two steps of 2.
// Shared    None.
// Source    The definition.
#include "planes.cuh"

#ifndef WINDOW
#define WINDOW 2
#endif
#ifndef STRIDE
#define STRIDE 2
#endif
#ifndef PADDING
#define PADDING 0
#endif

__device__ __forceinline__ float larger(float a, float b) { return a >= b || a != a ? a : b; }

// A place on the padding becomes the nearest pixel, which the window holds anyway.
__device__ __forceinline__ int inside(int place, int size)
{
    return PADDING ? min(max(place, 0), size - 1) : place;
}

extern "C" __global__ void __launch_bounds__(THREADS)
maxpool_fprop_1_window(const float* __restrict__ x, float* __restrict__ y, int H, int W, int P,
                       int Q)
{
    const Segment mine = my_segment(P * Q);
    const float* plane = x + (size_t)mine.plane * H * W;
    float* out = y + (size_t)mine.plane * P * Q;
    for (int i = mine.begin + threadIdx.x; i < mine.end; i += THREADS) {
        const int top = i / Q * STRIDE - PADDING, left = i % Q * STRIDE - PADDING;
        float largest = plane[inside(top, H) * W + inside(left, W)];
#pragma unroll
        for (int r = 0; r < WINDOW; ++r) {
            const float* row = plane + inside(top + r, H) * W;
#pragma unroll
            for (int s = 0; s < WINDOW; ++s) largest = larger(largest, row[inside(left + s, W)]);
        }
        out[i] = largest;
    }
}
