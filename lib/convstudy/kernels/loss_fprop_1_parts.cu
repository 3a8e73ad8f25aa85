// SPDX-License-Identifier: MIT
// Cross-entropy and Dice, first half: three sums over each part of the pixels.
//
// Idea      The loss needs the cross-entropies, the probabilities of what is right, and all
//           probabilities with all that is right: (parts, 3) sums, of `rows` pixels each.
// Threads   Thread t of a block takes pixels t, t + THREADS, ... of its part.
// Shared    12 bytes a warp, static: 96 with the defaults.
// Moves     Reads logits (N, H, W, CLASSES) and targets (N, H, W).
// Source    F. Milletari, N. Navab and S.-A. Ahmadi, "V-Net", 3DV 2016, for Dice as a loss.
#define VECTOR 1
#define LANES 1
#include "overlap.cuh"
#include "ptx.cuh"
#include "vectors.cuh"
#include "pixels.cuh"
#include "rows.cuh"
#include "classes.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
loss_fprop_1_parts(const float* __restrict__ logits, const Target* __restrict__ targets,
                   float* __restrict__ parts, int pixels, int rows)
{
    wait_for_others();
    let_others_begin();
    const int begin = blockIdx.x * rows, end = min(pixels, begin + rows);
    Sums<3> mine[1] = {};
    for (int pixel = begin + threadIdx.x; pixel < end; pixel += THREADS) {
        float probability[CLASSES];
        const int target = targets[pixel];
        mine[0].values[0] += classify(probability, logits + (size_t)pixel * CLASSES, target);
#pragma unroll
        for (int k = 0; k < CLASSES; ++k) {
            mine[0].values[1] = fmaf(probability[k], wanted(target, k), mine[0].values[1]);
            mine[0].values[2] += probability[k] + wanted(target, k);
        }
    }
    const Sums<3> all = merge_rows(mine);
    if (threadIdx.x == 0)
        for (int i = 0; i < 3; ++i) parts[blockIdx.x * 3 + i] = all.values[i];
}
