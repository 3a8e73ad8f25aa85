// SPDX-License-Identifier: MIT
// Max pooling, 2 x 2 at stride 2: one thread an output, which reads its window.
//
// Idea      Windows do not overlap, so no pixel is read twice and there is nothing to share.
//           An odd last row or column is in no window. NaN wins, as in every framework.
// Threads   A block covers 1,024 outputs of one plane (n, c), thread t those at t, t + 256, ...
//           A warp reads 64 neighbouring pixels of two rows, in two steps of 2.
// Shared    None.
// Source    The definition.
#include "planes.cuh"

__device__ __forceinline__ float larger(float a, float b) { return a >= b || a != a ? a : b; }

extern "C" __global__ void __launch_bounds__(THREADS)
maxpool_fprop_1_window(const float* __restrict__ x, float* __restrict__ y, int H, int W, int P,
                       int Q)
{
    const Segment s = my_segment(P * Q);
    const float* plane = x + (size_t)s.plane * H * W;
    float* out = y + (size_t)s.plane * P * Q;
    for (int i = s.begin + threadIdx.x; i < s.end; i += THREADS) {
        const float* window = plane + i / Q * 2 * W + i % Q * 2;
        out[i] = larger(larger(window[0], window[1]), larger(window[W], window[W + 1]));
    }
}
