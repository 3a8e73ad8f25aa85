// SPDX-License-Identifier: MIT
// The head's gradients, of its input and of its parameters, in one pass over its input.
//
// Idea      A pixel's few gradients of logits, times the filters, are the gradient of the input z;
//           times z, they are the filters'. The bias is the filter of one channel more, which is 1.
//           Parts of the parameters' gradients are (parts, CLASSES C + CLASSES), of `rows` pixels
//           each, filters first; bias_wgrad_2_combine adds them up. dz may be z.
// Threads   Block (part, chunk), as pixels.cuh says; it merges its rows in a fixed order.
// Shared    4 CLASSES LANES (VECTOR + 1) bytes a warp, static: 2,560 with the defaults.
// Moves     Reads z and dlogits, writes dz.
// Source    The definition.
#include "overlap.cuh"
#include "ptx.cuh"
#include "vectors.cuh"
#include "pixels.cuh"
#include "rows.cuh"

#ifndef CLASSES
#define CLASSES 2
#endif
#ifndef EACH
#define EACH (CLASSES > 4 ? 1 : 4)
#endif

extern "C" __global__ void __launch_bounds__(THREADS)
head_dgrad_1_parts(const float* dlogits, const Element* z, const float* __restrict__ w, Element* dz,
                   float* parts, int pixels, int C, int pitch_z, int pitch_dz, int rows)
{
    wait_for_others();
    let_others_begin();
    const Place place = my_place(C);
    const bool any = place.c < C;
    const int begin = place.part * rows, end = min(pixels, begin + rows);
    float weight[CLASSES][VECTOR];
#pragma unroll
    for (int k = 0; k < CLASSES; ++k)
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) weight[k][v] = any ? w[k * C + place.c + v] : 0.0f;

    Sums<CLASSES> mine[VECTOR + 1] = {};
    for (int first = begin + place.row; first < end; first += ROWS * EACH) {
        Packed in[EACH];
        float gradient[EACH][CLASSES];
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            const int pixel = first + i * ROWS;
            in[i] = Packed{};
            if (any && pixel < end) in[i] = load(z + offset(pixel, pitch_z, place.c));
#pragma unroll
            for (int k = 0; k < CLASSES; ++k)
                gradient[i][k] = pixel < end ? dlogits[(size_t)pixel * CLASSES + k] : 0.0f;
        }
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            float out[VECTOR] = {};
#pragma unroll
            for (int k = 0; k < CLASSES; ++k) {
#pragma unroll
                for (int v = 0; v < VECTOR; ++v) {
                    float& sum = mine[v].values[k];
                    sum = fmaf(gradient[i][k], at(in[i], v), sum);
                    out[v] = fmaf(gradient[i][k], weight[k][v], out[v]);
                }
                mine[VECTOR].values[k] += gradient[i][k];
            }
            const int pixel = first + i * ROWS;
            if (any && pixel < end) store(dz + offset(pixel, pitch_dz, place.c), pack(out));
        }
    }
    const Sums<CLASSES> all = merge_rows(mine);
    const int t = threadIdx.x, lane = t / (VECTOR + 1), v = t % (VECTOR + 1);
    const int c = place.chunk + lane * VECTOR + v;
    float* to = parts + (size_t)place.part * CLASSES * (C + 1);
#pragma unroll
    for (int k = 0; k < CLASSES; ++k) {
        if (lane < LANES && v < VECTOR && c < C) to[k * C + c] = all.values[k];
        if (t == VECTOR && place.chunk == 0) to[CLASSES * C + k] = all.values[k];
    }
}
