// SPDX-License-Identifier: MIT
// The residual sum of NHWC arrays, and the ReLU behind it.
//
// Idea      y = max(x + other, 0), or without RELU the sum alone. y may be x or other.
// Adds      To rung 1: 16 bytes at a time, of fp32 or bf16, and no pass of its own for the ReLU.
// Threads   Block (part, chunk), as pixels.cuh says; thread (row, lane) does EACH pixels.
// Shared    None.
// Moves     Reads x and the other, writes y.
// Source    K. He et al., "Deep residual learning for image recognition", CVPR 2016.
#include "overlap.cuh"
#include "ptx.cuh"
#include "vectors.cuh"
#include "pixels.cuh"

#ifndef RELU
#define RELU 0
#endif
#ifndef EACH
#define EACH 4
#endif

extern "C" __global__ void __launch_bounds__(THREADS)
add_fprop_2_relu(const Element* x, const Element* other, Element* y, int pixels, int C)
{
    wait_for_others();
    let_others_begin();
    const Place place = my_place(C);
    const int first = place.part * ROWS * EACH + place.row;
    if (place.c >= C || first >= pixels) return;

    // Beyond the end the first pixel is read again: loads then need no condition.
    Packed one[EACH], two[EACH];
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const int pixel = first + i * ROWS < pixels ? first + i * ROWS : first;
        one[i] = load(x + offset(pixel, C, place.c));
        two[i] = load(other + offset(pixel, C, place.c));
    }
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        float sum[VECTOR];
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) {
            sum[v] = at(one[i], v) + at(two[i], v);
            // A NaN stays one.
            if (RELU && sum[v] < 0.0f) sum[v] = 0.0f;
        }
        if (first + i * ROWS < pixels)
            store(y + offset(first + i * ROWS, C, place.c), pack(sum));
    }
}
