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
#include "rows.cuh"
#include "batchnorm.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
batchnorm_fprop_2_scale_shift(const Element* x, const float* __restrict__ factors,
                              const Element* residual, Element* y, Element* pooled, int N, int H,
                              int W, int C, int pitch_x, int pitch_residual, int pitch_y,
                              int pitch_pooled)
{
    wait_for_others();
    let_others_begin();
    const Place place = my_place(C);
    const int end = cells_in(N, H, W), first = place.part * ROWS * EACH + place.row;
    if (place.c >= C || first >= end) return;
    float a[VECTOR], b[VECTOR];
    read(a, factors + place.c);
    read(b, factors + C + place.c);
    const Forward forward = {x, residual, y, pooled, H, W,
                             pitch_x, pitch_residual, pitch_y, pitch_pooled};
    forward.run(first, end, place.c, a, b);
}
