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
#include "head.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
head_dgrad_1_parts(const float* dlogits, const Element* z, const float* __restrict__ w, Element* dz,
                   float* parts, int pixels, int C, int pitch_z, int pitch_dz, int rows)
{
    wait_for_others();
    let_others_begin();
    const Place place = my_place(C);
    const bool any = place.c < C;
    const int begin = place.part * rows, end = min(pixels, begin + rows);
    Filters filters;
    filters.fetch(w, place.c, C);

    Sums<CLASSES> mine[VECTOR + 1] = {};
    for (int first = begin + place.row; first < end; first += ROWS * EACH) {
        Packed in[EACH];
        float gradient[EACH][CLASSES];
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            // z may be dz: what another thread is to overwrite must not be read.
            const int pixel = first + i * ROWS < end ? first + i * ROWS : first;
            in[i] = any ? load(z + offset(pixel, pitch_z, place.c)) : Packed{};
            fetch_pixel(gradient[i], dlogits, pixel);
        }
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            const int pixel = first + i * ROWS;
            if (pixel >= end) continue;
            float out[VECTOR];
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) {
                out[v] = filters.back(gradient[i], v);
#pragma unroll
                for (int k = 0; k < CLASSES; ++k)
                    mine[v].values[k] = fmaf(gradient[i][k], at(in[i], v), mine[v].values[k]);
            }
#pragma unroll
            for (int k = 0; k < CLASSES; ++k) mine[VECTOR].values[k] += gradient[i][k];
            if (any) store(dz + offset(pixel, pitch_dz, place.c), pack(out));
        }
    }
    write_filters(parts, place, C, merge_rows(mine), 0);
}
