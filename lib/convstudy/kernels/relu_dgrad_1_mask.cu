// SPDX-License-Identifier: MIT
// ReLU's gradient of NHWC arrays; where a result went two ways, the sum of what comes back.
//
// Idea      dx = dy where y is above 0, else 0; y is what ReLU gave. With ADD, dy + other in place
//           of dy: a residual block's output goes into the next block and around it. dx may be dy,
//           other or y.
// Threads   Block (part, chunk), as pixels.cuh says; thread (row, lane) does EACH pixels.
// Shared    None.
// Moves     Reads dy and y (and the other), writes dx.
// Source    The definition.
#include "overlap.cuh"
#include "ptx.cuh"
#include "vectors.cuh"
#include "pixels.cuh"

#ifndef ADD
#define ADD 0
#endif
#ifndef EACH
#define EACH 4
#endif

extern "C" __global__ void __launch_bounds__(THREADS)
relu_dgrad_1_mask(const Element* dy, const Element* other, const Element* y, Element* dx,
                  int pixels, int C, int pitch_dy, int pitch_other, int pitch_y, int pitch_dx)
{
    wait_for_others();
    let_others_begin();
    const Place place = my_place(C);
    const int first = place.part * ROWS * EACH + place.row;
    if (place.c >= C || first >= pixels) return;

    // Beyond the end the first pixel is read again: loads then need no condition.
    Packed gradient[EACH], more[EACH], output[EACH];
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const int pixel = first + i * ROWS < pixels ? first + i * ROWS : first;
        gradient[i] = load(dy + offset(pixel, pitch_dy, place.c));
        if (ADD) more[i] = load(other + offset(pixel, pitch_other, place.c));
        output[i] = load(y + offset(pixel, pitch_y, place.c));
    }
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        float out[VECTOR];
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) {
            out[v] = at(gradient[i], v);
            if (ADD) out[v] += at(more[i], v);
            if (!(at(output[i], v) > 0.0f)) out[v] = 0.0f;
        }
        if (first + i * ROWS < pixels)
            store(dx + offset(first + i * ROWS, pitch_dx, place.c), pack(out));
    }
}
