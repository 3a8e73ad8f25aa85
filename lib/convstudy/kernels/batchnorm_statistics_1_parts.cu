// SPDX-License-Identifier: MIT
// Batch norm's statistics, first half: mean and squared distances of each part of the pixels.
//
// Idea      The statistics of all pixels are put together from those of parts, whichever kernel
//           made them: (parts, 2, C) numbers, the mean and the sum of squared distances from it.
//           A part is `rows` pixels, the last one what is left. All is counted from the part's
//           first pixel, so that a large mean does not swallow the differences.
// Threads   Block (part, chunk), as pixels.cuh says; it merges its rows in a fixed order.
// Shared    12 CHUNK bytes a warp, static: 3,072 with the defaults.
// Moves     Reads x once.
// Source    rows.cuh; S. Ioffe and C. Szegedy, "Batch normalization", ICML 2015, algorithm 1.
#include "overlap.cuh"
#include "ptx.cuh"
#include "vectors.cuh"
#include "pixels.cuh"
#include "rows.cuh"

#ifndef EACH
#define EACH 4
#endif

extern "C" __global__ void __launch_bounds__(THREADS)
batchnorm_statistics_1_parts(const Element* x, float* parts, int pixels, int C,
                             int pitch, int rows)
{
    wait_for_others();
    let_others_begin();
    const Place place = my_place(C);
    const int from = readable(place.c, C);
    const int begin = place.part * rows, end = min(pixels, begin + rows);
    const int first = begin + place.row;

    // Pixels beyond the end are read as the last one, and not counted.
    float zero[VECTOR], sum[VECTOR] = {}, square[VECTOR] = {};
    const Packed packed = load(x + offset(begin, pitch, from));
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) zero[v] = at(packed, v);
    for (int base = begin; base < end; base += ROWS * EACH) {
        const int pixel = base + place.row;
        Packed in[EACH];
#pragma unroll
        for (int i = 0; i < EACH; ++i)
            in[i] = load(x + offset(min(pixel + i * ROWS, end - 1), pitch, from));
        loads_end();
#pragma unroll
        for (int i = 0; i < EACH; ++i)
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) {
                const float distance = pixel + i * ROWS < end ? at(in[i], v) - zero[v] : 0.0f;
                sum[v] += distance;
                square[v] = fmaf(distance, distance, square[v]);
            }
    }

    Moments mine[VECTOR];
    const float count = first < end ? float((end - first + ROWS - 1) / ROWS) : 0.0f;
    const float share = 1.0f / fmaxf(count, 1.0f);
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) {
        const float mean = sum[v] * share;
        mine[v] = {count, mean, fmaxf(fmaf(-mean, sum[v], square[v]), 0.0f)};
    }
    const Moments all = merge_rows(mine);
    const int c = place.chunk + threadIdx.x;
    if (threadIdx.x < CHUNK && c < C) {
        float* to = parts + (size_t)place.part * 2 * C + c;
        to[0] = number(x[offset(begin, pitch, c)]) + all.values[1];
        to[C] = all.values[2];
    }
}
