// SPDX-License-Identifier: MIT
// The head's gradients and batch norm's sums in one pass, where batch norm's output is the head's
// input and nothing else's.
//
// Idea      z = relu(a x + b) was never written (head_fprop_1_lanes with NORM), and neither is its
//           gradient: both are made of x and of a pixel's few gradients of logits. Parts are those
//           of head_dgrad_1_parts, and (parts, 2, C) of the sums of the gradient g of a x + b and
//           of g (x - mean), as batchnorm_dgrad_1_parts has them.
// Adds      To rung 1: z and dz are neither written nor read, and one pass is left of two.
// Threads   Block (part, chunk), as pixels.cuh says; it merges its rows in a fixed order.
// Shared    4 (CLASSES + 2) LANES (VECTOR + 1) bytes a warp, static: 5,120 with the defaults.
// Moves     Reads x and dlogits once.
// Source    The definitions.
#include "overlap.cuh"
#include "ptx.cuh"
#include "vectors.cuh"
#include "pixels.cuh"
#include "rows.cuh"
#include "head.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
head_dgrad_2_norm(const float* dlogits, const Element* x, const float* __restrict__ factors,
                  const float* __restrict__ statistics, const float* __restrict__ w,
                  float* head_parts, float* norm_parts, int pixels, int C, int pitch, int rows)
{
    wait_for_others();
    let_others_begin();
    const Place place = my_place(C);
    const int from = readable(place, C);
    const int begin = place.part * rows, end = min(pixels, begin + rows);
    Filters filters;
    filters.fetch(w, place.c, C);
    float a[VECTOR], b[VECTOR], mean[VECTOR];
    read(a, factors + from);
    read(b, factors + C + from);
    read(mean, statistics + from);

    // Of each channel the two sums, and then one for each class.
    Sums<CLASSES + 2> mine[VECTOR + 1] = {};
    for (int first = begin; first < end; first += ROWS * EACH) {
        Packed in[EACH];
        float gradient[EACH][CLASSES];
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            const int pixel = min(first + place.row + i * ROWS, end - 1);
            in[i] = load(x + offset(pixel, pitch, from));
            fetch_pixel(gradient[i], dlogits, pixel);
        }
        loads_end();
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            if (first + place.row + i * ROWS >= end) continue;
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) {
                float(&sum)[CLASSES + 2] = mine[v].values;
                const float value = at(in[i], v), y = fmaf(a[v], value, b[v]);
                if (!(y > 0.0f)) continue;
                const float g = filters.back(gradient[i], v);
                sum[0] += g;
                sum[1] = fmaf(g, value - mean[v], sum[1]);
#pragma unroll
                for (int k = 0; k < CLASSES; ++k)
                    sum[2 + k] = fmaf(gradient[i][k], y, sum[2 + k]);
            }
#pragma unroll
            for (int k = 0; k < CLASSES; ++k) mine[VECTOR].values[2 + k] += gradient[i][k];
        }
    }
    const Sums<CLASSES + 2> all = merge_rows(mine);
    write_filters(head_parts, place, C, all, 2);
    const int t = threadIdx.x, lane = t / (VECTOR + 1), v = t % (VECTOR + 1);
    const int c = place.chunk + lane * VECTOR + v;
    if (lane < LANES && v < VECTOR && c < C) {
        float* to = norm_parts + (size_t)place.part * 2 * C + c;
        to[0] = all.values[0];
        to[C] = all.values[1];
    }
}
