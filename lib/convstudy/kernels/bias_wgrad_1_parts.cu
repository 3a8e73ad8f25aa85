// SPDX-License-Identifier: MIT
// A bias's gradient, first half: sums over each part of the pixels; ReLU's gradient on the way.
//
// Idea      What a channel's bias is worth is the sum of its gradients. With RELU, dy is that of
//           ReLU's output y, and what passes through it is summed and written, to dx, in one pass;
//           dx may be dy or y. The pixels may be a part P x Q of each image. Parts are (parts, C),
//           of `rows` pixels each.
// Threads   Block (part, chunk), as pixels.cuh says; it merges its rows in a fixed order.
// Shared    4 CHUNK bytes a warp, static: 1,024 with the defaults.
// Moves     Reads dy once; with RELU reads y too, and writes dx.
// Source    The definition.
#include "overlap.cuh"
#include "ptx.cuh"
#include "vectors.cuh"
#include "pixels.cuh"
#include "rows.cuh"

#ifndef RELU
#define RELU 0
#endif
#ifndef EACH
#define EACH 4
#endif

extern "C" __global__ void __launch_bounds__(THREADS)
bias_wgrad_1_parts(const Element* dy, const Element* y, Element* dx, float* parts, int N, int H,
                   int W, int C, int P, int Q, int top, int left, int pitch_dy, int pitch_y,
                   int pitch_dx, int rows)
{
    wait_for_others();
    let_others_begin();
    const Place place = my_place(C);
    const Window window = {H, W, P, Q, top, left};
    const int begin = place.part * rows, end = min(N * P * Q, begin + rows);
    const bool mine_to_do = place.c < C;
    const int from = readable(place, C);

    Sums<1> mine[VECTOR] = {};
    for (int first = begin; first < end; first += ROWS * EACH) {
        Packed gradient[EACH], output[EACH];
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            const int number = first + place.row + i * ROWS;
            const bool inside = number < end;
            gradient[i] = output[i] = Packed{};
            // What another thread is to overwrite must not even be read.
            if (RELU && !(inside && mine_to_do)) continue;
            const int pixel = window.pixel(inside ? number : begin);
            gradient[i] = load(dy + offset(pixel, pitch_dy, from));
            if (RELU) output[i] = load(y + offset(pixel, pitch_y, from));
        }
        loads_end();
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            const int number = first + place.row + i * ROWS;
            const bool inside = number < end && mine_to_do;
            float passed[VECTOR];
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) {
                const bool open = inside && (!RELU || at(output[i], v) > 0.0f);
                passed[v] = open ? at(gradient[i], v) : 0.0f;
                mine[v].values[0] += passed[v];
            }
            if (RELU && inside)
                store(dx + offset(window.pixel(number), pitch_dx, from), pack(passed));
        }
    }
    const Sums<1> all = merge_rows(mine);
    const int c = place.chunk + threadIdx.x;
    if (threadIdx.x < CHUNK && c < C) parts[(size_t)place.part * C + c] = all.values[0];
}
