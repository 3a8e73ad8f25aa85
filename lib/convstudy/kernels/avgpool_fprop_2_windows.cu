// SPDX-License-Identifier: MIT
// Average pooling of NHWC arrays over windows that share out the image, however large it is.
//
// Idea      The result has size x size pixels. Window p goes from row floor(p H / size) to
//           ceil((p + 1) H / size), that one excluded, and columns likewise: windows overlap where
//           size divides the image unevenly, and repeat its pixels where it is smaller.
// Adds      To rung 1: more windows than one.
// Threads   Block (part, chunk), as pixels.cuh says; a thread makes one vector of outputs.
// Shared    None.
// Moves     Reads x, pixels of two windows twice; writes y.
// Source    The windows are PyTorch's (adaptive average pooling).
#include "overlap.cuh"
#include "ptx.cuh"
#include "vectors.cuh"
#include "pixels.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
avgpool_fprop_2_windows(const Element* __restrict__ x, Element* __restrict__ y, int N, int H,
                        int W, int C, int size)
{
    wait_for_others();
    let_others_begin();
    const Place place = my_place(C);
    const int pixel = place.part * ROWS + place.row;
    if (place.c >= C || pixel >= N * size * size) return;
    const int q = pixel % size, row = pixel / size, p = row % size, n = row / size;
    const int top = p * H / size, bottom = ((p + 1) * H + size - 1) / size;
    const int left = q * W / size, right = ((q + 1) * W + size - 1) / size;
    float mean[VECTOR] = {};
    for (int h = top; h < bottom; ++h)
        for (int w = left; w < right; ++w) {
            const Packed in = load(x + offset((n * H + h) * W + w, C, place.c));
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) mean[v] += at(in, v);
        }
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) mean[v] /= float((bottom - top) * (right - left));
    store(y + offset(pixel, C, place.c), pack(mean));
}
