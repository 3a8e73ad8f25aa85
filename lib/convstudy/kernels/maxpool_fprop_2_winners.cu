// SPDX-License-Identifier: MIT
// Max pooling of NHWC arrays, windows of any size, which says what won.
//
// Idea      Beside the largest number of each window it may keep, in one byte, which tap that was:
//           the gradient then needs no x. The first of equals wins; what is outside takes no part;
//           NaN wins, as in every framework. `winners` (N, P, Q, C) may be null.
// Adds      To rung 1: 16 bytes at a time, of fp32 or bf16; windows that overlap or stick out.
// Threads   Block (part, chunk), as pixels.cuh says; a thread makes one vector of outputs.
// Shared    None. Of windows that overlap, L1 and L2 hold what is read again.
// Moves     Reads x, writes y and a byte for each of its numbers.
// Source    The definition.
#include "overlap.cuh"
#include "ptx.cuh"
#include "vectors.cuh"
#include "pixels.cuh"

#ifndef WINDOW_H
#define WINDOW_H 2
#endif
#ifndef WINDOW_W
#define WINDOW_W 2
#endif
#ifndef STRIDE_H
#define STRIDE_H 2
#endif
#ifndef STRIDE_W
#define STRIDE_W 2
#endif
static_assert(WINDOW_H * WINDOW_W <= 256, "a tap's number is a byte");

extern "C" __global__ void __launch_bounds__(THREADS)
maxpool_fprop_2_winners(const Element* __restrict__ x, Element* __restrict__ y,
                        unsigned char* __restrict__ winners, int N, int H, int W, int C, int P,
                        int Q, int pad_h, int pad_w, int pitch_x, int pitch_y)
{
    wait_for_others();
    let_others_begin();
    const Place place = my_place(C);
    const int pixel = place.part * ROWS + place.row;
    if (place.c >= C || pixel >= N * P * Q) return;
    const int q = pixel % Q, row = pixel / Q, p = row % P, n = row / P;
    const int top = p * STRIDE_H - pad_h, left = q * STRIDE_W - pad_w;

    float best[VECTOR];
    int winner[VECTOR];
    bool any = false;
#pragma unroll
    for (int r = 0; r < WINDOW_H; ++r) {
        // A row at a time, of which all taps are read before one is used: what is outside is read
        // at the edge instead, so that loads need no condition.
        const int h = min(max(top + r, 0), H - 1);
        Packed in[WINDOW_W];
#pragma unroll
        for (int s = 0; s < WINDOW_W; ++s) {
            const int w = min(max(left + s, 0), W - 1);
            in[s] = load(x + offset((n * H + h) * W + w, pitch_x, place.c));
        }
#pragma unroll
        for (int s = 0; s < WINDOW_W; ++s) {
            if (top + r != h || left + s < 0 || left + s >= W) continue;
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) {
                const float value = at(in[s], v);
                if (any && !(value > best[v] || value != value)) continue;
                best[v] = value;
                winner[v] = r * WINDOW_W + s;
            }
            any = true;
        }
    }
    store(y + offset(pixel, pitch_y, place.c), pack(best));
    if (winners) store_bytes(winners + offset(pixel, C, place.c), winner);
}
