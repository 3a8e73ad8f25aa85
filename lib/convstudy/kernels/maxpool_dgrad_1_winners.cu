// SPDX-License-Identifier: MIT
// Max pooling's gradient: each pixel gathers from the windows that it won.
//
// Idea      A pixel lies in few windows, and of each a byte says which of its pixels won: nothing
//           is scattered, so nothing is added in an order that could change.
// Threads   Block (part, chunk), as pixels.cuh says; a thread makes one vector of dx.
// Shared    None.
// Moves     Reads dy and the winners, writes dx.
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
// Windows that a pixel may lie in, along each side.
constexpr int DOWN = (WINDOW_H + STRIDE_H - 1) / STRIDE_H;
constexpr int ACROSS = (WINDOW_W + STRIDE_W - 1) / STRIDE_W;

extern "C" __global__ void __launch_bounds__(THREADS)
maxpool_dgrad_1_winners(const Element* __restrict__ dy, const unsigned char* __restrict__ winners,
                        Element* __restrict__ dx, int N, int H, int W, int C, int P, int Q,
                        int pad_h, int pad_w, int pitch_dy, int pitch_dx)
{
    wait_for_others();
    let_others_begin();
    const Place place = my_place(C);
    const int pixel = place.part * ROWS + place.row;
    if (place.c >= C || pixel >= N * H * W) return;
    const int w = pixel % W, row = pixel / W, h = row % H, n = row / H;

    // Where a window is not, another is read in its place, and not used.
    Packed in[DOWN][ACROSS];
    Bytes won[DOWN][ACROSS];
#pragma unroll
    for (int i = 0; i < DOWN; ++i)
#pragma unroll
        for (int j = 0; j < ACROSS; ++j) {
            const int p = min(max((h + pad_h) / STRIDE_H - i, 0), P - 1);
            const int q = min(max((w + pad_w) / STRIDE_W - j, 0), Q - 1);
            const int window = (n * P + p) * Q + q;
            in[i][j] = load(dy + offset(window, pitch_dy, place.c));
            won[i][j] = load_bytes(winners + offset(window, C, place.c));
        }
    float sum[VECTOR] = {};
#pragma unroll
    for (int i = 0; i < DOWN; ++i)
#pragma unroll
        for (int j = 0; j < ACROSS; ++j) {
            const int p = (h + pad_h) / STRIDE_H - i, r = h + pad_h - p * STRIDE_H;
            const int q = (w + pad_w) / STRIDE_W - j, s = w + pad_w - q * STRIDE_W;
            if (p < 0 || p >= P || r >= WINDOW_H || q < 0 || q >= Q || s >= WINDOW_W) continue;
#pragma unroll
            for (int v = 0; v < VECTOR; ++v)
                if (byte_of(won[i][j], v) == r * WINDOW_W + s) sum[v] += at(in[i][j], v);
        }
    store(dx + offset(pixel, pitch_dx, place.c), pack(sum));
}
