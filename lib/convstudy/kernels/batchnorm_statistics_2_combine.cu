// SPDX-License-Identifier: MIT
// Batch norm's statistics, second half: of all parts, and what a layer needs of them.
//
// Idea      The parts' moments are merged in a fixed order. From them follow, for each channel,
//           `statistics` (2, C), the mean and 1 / sqrt(var + eps), which the gradient needs again;
//           `factors` (2, C), with which normalising is y = a x + b; and the running statistics,
//           which are fed with the unbiased variance. Without parts, the statistics are the
//           running ones, which then stay as they are.
// Threads   A block has LANES channels. Thread (row, lane) merges parts row, row + ROWS, ...
// Shared    12 LANES bytes a warp, static: 768 with the defaults.
// Moves     Reads the parts once.
// Source    moments.cuh; the formulas are those of PyTorch's BatchNorm2d.
//
// COUNTED   Whether behind the parts lies how many pixels each has: a tile of a convolution's
//           result may be cut off. Else it is `rows`, and of the last what is left.
#define VECTOR 1
#ifndef COUNTED
#define COUNTED 0
#endif
#include "overlap.cuh"
#include "ptx.cuh"
#include "vectors.cuh"
#include "pixels.cuh"
#include "rows.cuh"
#include "moments.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
batchnorm_statistics_2_combine(const float* __restrict__ parts, const float* __restrict__ weight,
                               const float* __restrict__ bias, float* running_mean,
                               float* running_var, float* __restrict__ statistics,
                               float* __restrict__ factors, int C, int count, int rows, int pixels,
                               float eps, float momentum)
{
    wait_for_others();
    let_others_begin();
    const Place place = my_place(C);
    Moments mine[1] = {};
    if (place.c < C)
#pragma unroll 4
        for (int part = place.row; part < count; part += ROWS) {
            const float* from = parts + (size_t)part * 2 * C + place.c;
            const float has = COUNTED ? parts[(size_t)count * 2 * C + part]
                                      : float(min(rows, pixels - part * rows));
            mine[0].merge({has, from[0], from[C]});
        }
    const Moments all = merge_rows(mine);
    const int c = place.c;
    if (place.row > 0 || c >= C) return;
    const Learnt learnt = {running_mean, running_var, statistics, factors};
    learnt.keep(all, count > 0, c, C, pixels, weight[c], bias[c], eps, momentum);
}
