// SPDX-License-Identifier: MIT
// The gradient of average pooling over windows that share out the image, of NHWC arrays.
//
// Idea      A pixel takes from each window that has it the window's gradient over its pixels.
//           Windows floor(h size / H) to floor(((h + 1) size - 1) / H) have row h.
// Adds      To rung 1: more windows than one.
// Threads   Block (part, chunk), as pixels.cuh says; a thread makes one vector of dx.
// Shared    None.
// Moves     Reads dy once for each of a window's pixels, mostly from L1; writes dx.
// Source    The definition.
#include "overlap.cuh"
#include "ptx.cuh"
#include "vectors.cuh"
#include "pixels.cuh"

// Pixels of window p along a side.
__device__ __forceinline__ int length(int p, int side, int size)
{
    return ((p + 1) * side + size - 1) / size - p * side / size;
}

extern "C" __global__ void __launch_bounds__(THREADS)
avgpool_dgrad_2_windows(const Element* __restrict__ dy, Element* __restrict__ dx, int N, int H,
                        int W, int C, int size)
{
    wait_for_others();
    let_others_begin();
    const Place place = my_place(C);
    const int pixel = place.part * ROWS + place.row;
    if (place.c >= C || pixel >= N * H * W) return;
    const int w = pixel % W, row = pixel / W, h = row % H, n = row / H;
    const int last_p = ((h + 1) * size - 1) / H, last_q = ((w + 1) * size - 1) / W;
    float sum[VECTOR] = {};
    for (int p = h * size / H; p <= last_p; ++p)
        for (int q = w * size / W; q <= last_q; ++q) {
            const Packed in = load(dy + offset((n * size + p) * size + q, C, place.c));
            const float pixels = float(length(p, H, size) * length(q, W, size));
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) sum[v] += at(in, v) / pixels;
        }
    store(dx + offset(pixel, C, place.c), pack(sum));
}
