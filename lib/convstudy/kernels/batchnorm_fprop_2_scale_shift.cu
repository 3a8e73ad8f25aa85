// SPDX-License-Identifier: MIT
// Batch norm of NHWC arrays, and in the same pass what follows it: ReLU, residual, pooling.
//
// Idea      With the channel's mean and variance known, normalising is a x + b, and what comes
//           next needs the same numbers: RELU, RESIDUAL (added before ReLU) and POOL (the largest
//           of 2 x 2, which is also written). y may be x, or null where only `pooled` is wanted.
// Adds      To rung 1: 16 bytes at a time, of fp32 or bf16; no pass of its own for the others.
// Threads   Block (part, chunk), as pixels.cuh says; thread (row, lane) does EACH cells, of one
//           pixel or of one window, ROWS apart.
// Shared    None.
// Moves     Reads x (and the residual), writes y (and a quarter of it, pooled).
// Source    The definitions.
#include "overlap.cuh"
#include "ptx.cuh"
#include "vectors.cuh"
#include "pixels.cuh"
#include "windows.cuh"

#ifndef RESIDUAL
#define RESIDUAL 0
#endif

extern "C" __global__ void __launch_bounds__(THREADS)
batchnorm_fprop_2_scale_shift(const Element* x, const float* __restrict__ factors,
                              const Element* residual, Element* y, Element* __restrict__ pooled,
                              int N, int H, int W, int C, int pitch_x, int pitch_residual,
                              int pitch_y, int pitch_pooled)
{
    wait_for_others();
    let_others_begin();
    const Place place = my_place(C);
    const int cells = cells_in(N, H, W), first = place.part * ROWS * EACH + place.row;
    if (place.c >= C || first >= cells) return;
    float a[VECTOR], b[VECTOR];
    read(a, factors + place.c);
    read(b, factors + C + place.c);

    Packed in[EACH][TAPS], added[EACH][TAPS];
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const Cell cell = cell_at(first + i * ROWS, cells, first, H, W);
#pragma unroll
        for (int t = 0; t < TAPS; ++t) {
            in[i][t] = load(x + offset(cell.pixel[t], pitch_x, place.c));
            if (RESIDUAL)
                added[i][t] = load(residual + offset(cell.pixel[t], pitch_residual, place.c));
        }
    }
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const Cell cell = cell_at(first + i * ROWS, cells, first, H, W);
        float largest[VECTOR];
#pragma unroll
        for (int t = 0; t < TAPS; ++t) {
            float out[VECTOR];
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) {
                float value = fmaf(a[v], at(in[i][t], v), b[v]);
                if (RESIDUAL) value += at(added[i][t], v);
                out[v] = activated(value);
                largest[v] = t == 0 ? out[v] : larger(largest[v], out[v]);
            }
            if (y && cell.inside[t])
                store(y + offset(cell.pixel[t], pitch_y, place.c), pack(out));
        }
        if (POOL && cell.whole)
            store(pooled + offset(cell.pooled, pitch_pooled, place.c), pack(largest));
    }
}
