// SPDX-License-Identifier: MIT
// Global average pooling's gradient: every pixel gets its share.
//
// Idea      dx = dy / pixels, whatever the pixel.
// Threads   Block (part, chunk), as pixels.cuh says; thread (row, lane) does EACH pixels.
// Shared    None.
// Moves     Writes dx.
// Source    The definition.
#include "overlap.cuh"
#include "ptx.cuh"
#include "vectors.cuh"
#include "pixels.cuh"

#ifndef EACH
#define EACH 4
#endif

extern "C" __global__ void __launch_bounds__(THREADS)
avgpool_dgrad_1_spread(const Element* __restrict__ dy, Element* __restrict__ dx, int N, int C,
                       int pixels, int pitch)
{
    wait_for_others();
    let_others_begin();
    const Place place = my_place(C);
    if (place.c >= C) return;
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const int pixel = (place.part * EACH + i) * ROWS + place.row;
        if (pixel >= N * pixels) return;
        const Packed in = load(dy + offset(pixel / pixels, C, place.c));
        float out[VECTOR];
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) out[v] = at(in, v) / float(pixels);
        store(dx + offset(pixel, pitch, place.c), pack(out));
    }
}
