// SPDX-License-Identifier: MIT
// A bias's gradient, second half: the sums of all parts. Of other sums, too.
//
// Idea      Columns of (parts, C) are added up in a fixed order. The first `first_count` go to one
//           array and the others to a second: of the head, both gradients come in one row.
// Threads   A block has LANES columns. Thread (row, lane) adds parts row, row + ROWS, ...
// Shared    4 LANES bytes a warp, static: 256 with the defaults.
// Moves     Reads the parts once.
// Source    The definition.
#define VECTOR 1
#include "overlap.cuh"
#include "ptx.cuh"
#include "vectors.cuh"
#include "pixels.cuh"
#include "rows.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
bias_wgrad_2_combine(const float* __restrict__ parts, float* __restrict__ first,
                     float* __restrict__ second, int C, int count, int first_count)
{
    wait_for_others();
    let_others_begin();
    const Place place = my_place(C);
    Sums<1> mine[1] = {};
    if (place.c < C)
#pragma unroll 4
        for (int part = place.row; part < count; part += ROWS)
            mine[0].values[0] += parts[(size_t)part * C + place.c];
    const Sums<1> all = merge_rows(mine);
    const int c = place.c;
    if (place.row > 0 || c >= C) return;
    (c < first_count ? first[c] : second[c - first_count]) = all.values[0];
}
