// SPDX-License-Identifier: MIT
// Cross-entropy and Dice, second half: the loss, and what its gradient needs.
//
// Idea      One block adds up the parts in a fixed order. It leaves six numbers: the loss, which
//           is the mean cross-entropy and 1 - Dice; the two; the two factors of Dice's gradient,
//           by probabilities and by what is right; and that of the cross-entropy's. Parts and
//           pixels may be of more images than the gradient is then taken of.
// Threads   Thread t adds parts t, t + THREADS, ...
// Shared    12 bytes a warp, static: 96 with the defaults.
// Moves     Reads the parts.
// Source    milesial/Pytorch-UNet, utils/dice_score.py, for the formula.
#define VECTOR 1
#define LANES 1
#include "overlap.cuh"
#include "ptx.cuh"
#include "vectors.cuh"
#include "pixels.cuh"
#include "rows.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
loss_fprop_2_combine(const float* __restrict__ parts, float* __restrict__ loss, int count,
                     int pixels, float epsilon)
{
    wait_for_others();
    let_others_begin();
    Sums<3> mine[1] = {};
    for (int part = threadIdx.x; part < count; part += THREADS)
        mine[0].merge({parts[part * 3], parts[part * 3 + 1], parts[part * 3 + 2]});
    const Sums<3> all = merge_rows(mine);
    if (threadIdx.x > 0) return;
    const float entropy = all.values[0] / float(pixels);
    const float both = all.values[2] + epsilon;
    const float dice = fmaf(2.0f, all.values[1], epsilon) / both;
    loss[0] = entropy + (1.0f - dice);
    loss[1] = entropy;
    loss[2] = dice;
    loss[3] = dice / both;
    loss[4] = 2.0f / both;
    loss[5] = 1.0f / float(pixels);
}
