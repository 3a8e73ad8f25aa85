// SPDX-License-Identifier: MIT
// The gradient of cross-entropy and Dice, of each pixel's logits.
//
// Idea      With the sums of all pixels known, a pixel's gradient is its own affair; its
//           probabilities are made once more. dlogits may be logits.
// Threads   Thread t of block b does pixel b THREADS + t.
// Shared    None.
// Moves     Reads logits and targets, writes dlogits.
// Source    The derivative of loss_fprop.
#include "overlap.cuh"
#include "classes.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
loss_dgrad_1_pixels(const float* logits, const Target* __restrict__ targets,
                    const float* __restrict__ loss, float* dlogits, int pixels)
{
    wait_for_others();
    let_others_begin();
    const int pixel = blockIdx.x * THREADS + threadIdx.x;
    if (pixel >= pixels) return;
    const float by_all = loss[3], by_right = loss[4], share = loss[5];
    const int target = targets[pixel];
    float probability[CLASSES], slope[CLASSES], dot = 0.0f;
    classify(probability, logits + (size_t)pixel * CLASSES, target);
#pragma unroll
    for (int k = 0; k < CLASSES; ++k) {
        slope[k] = fmaf(-by_right, wanted(target, k), by_all);
        dot = fmaf(probability[k], slope[k], dot);
    }
#pragma unroll
    for (int k = 0; k < CLASSES; ++k) {
        const float p = probability[k];
        // Through the sigmoid, or the softmax, in which all probabilities depend on each logit.
        const float of_dice = p * (CLASSES == 1 ? slope[k] * (1.0f - p) : slope[k] - dot);
        dlogits[(size_t)pixel * CLASSES + k] = fmaf(p - wanted(target, k), share, of_dice);
    }
}
