// SPDX-License-Identifier: MIT
// Batch norm's gradient, second half, where the head alone took its output.
//
// Idea      dx = a g - (p x - q), as rung 3; but of what comes from above a pixel's few gradients
//           of logits are read, and g is made of them and the head's filters. dx may be x.
// Adds      To rung 3: dz is neither written nor read.
// Threads   Block (part, chunk), as pixels.cuh says; thread (row, lane) does EACH pixels.
// Shared    None.
// Moves     Reads x and dlogits, writes dx.
// Source    S. Ioffe and C. Szegedy, "Batch normalization", ICML 2015, section 3.
#include "overlap.cuh"
#include "ptx.cuh"
#include "vectors.cuh"
#include "pixels.cuh"
#include "head.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
batchnorm_dgrad_5_head(const float* dlogits, const Element* x, const float* __restrict__ factors,
                       const float* __restrict__ coefficients, const float* __restrict__ w,
                       Element* dx, int pixels, int C, int pitch_x, int pitch_dx)
{
    wait_for_others();
    let_others_begin();
    const Place place = my_place(C);
    const int first = place.part * ROWS * EACH + place.row;
    if (place.c >= C || first >= pixels) return;
    Filters filters;
    filters.fetch(w, place.c, C);
    float a[VECTOR], b[VECTOR], p[VECTOR], q[VECTOR];
    read(a, factors + place.c);
    read(b, factors + C + place.c);
    read(p, coefficients + place.c);
    read(q, coefficients + C + place.c);

    // Beyond the end the first pixel is read again: loads then need no condition.
    Packed in[EACH];
    float gradient[EACH][CLASSES];
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const int pixel = first + i * ROWS < pixels ? first + i * ROWS : first;
        in[i] = load(x + offset(pixel, pitch_x, place.c));
        fetch_pixel(gradient[i], dlogits, pixel);
    }
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        float out[VECTOR];
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) {
            const float value = at(in[i], v);
            const bool open = fmaf(a[v], value, b[v]) > 0.0f;
            const float g = open ? filters.back(gradient[i], v) : 0.0f;
            out[v] = fmaf(a[v], g, fmaf(-p[v], value, q[v]));
        }
        if (first + i * ROWS < pixels)
            store(dx + offset(first + i * ROWS, pitch_dx, place.c), pack(out));
    }
}
