// SPDX-License-Identifier: MIT
// The cross-entropy of classified images, and its gradient by their logits, in one pass.
//
// Idea      The gradient is (softmax - what is right) / every, the batch's images here and on other
//           ranks; it needs no sum over them, so it is written as the loss is found. Parts are
//           (images, 3), as loss_fprop_2_combine takes them: the cross-entropy, and nothing for
//           Dice. dlogits may be logits. A target that is no class makes the loss NaN.
// Adds      To rung 1: any number of classes, shared out among a warp's lanes; fp32 or bf16.
// Threads   Warp w of block b does image b THREADS / 32 + w.
// Shared    None: lanes add up by shuffling, in an order that is always the same.
// Moves     Reads logits (N, classes) once from memory and twice from L1, writes dlogits.
// Source    The derivative of the logarithm of softmax.
#define VECTOR 1
#include "overlap.cuh"
#include "ptx.cuh"
#include "vectors.cuh"

#ifndef THREADS
#define THREADS 256
#endif
constexpr int WARP = 32;

extern "C" __global__ void __launch_bounds__(THREADS)
loss_dgrad_2_classes(const Element* logits, const int* __restrict__ targets, Element* dlogits,
                     float* __restrict__ parts, int images, int classes, int every)
{
    wait_for_others();
    let_others_begin();
    const int image = blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP;
    const int lane = threadIdx.x % WARP;
    if (image >= images) return;
    const Element* mine = logits + (size_t)image * classes;
    const int target = targets[image];
    const bool is_class = target >= 0 && target < classes;
    const float own = number(mine[is_class ? target : 0]);

    float largest = number(mine[0]);
    for (int k = lane; k < classes; k += WARP) largest = fmaxf(largest, number(mine[k]));
    for (int apart = WARP / 2; apart > 0; apart /= 2)
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, apart));
    float total = 0.0f;
    // The largest is taken off first: the power of what is left cannot overflow.
    for (int k = lane; k < classes; k += WARP) total += expf(number(mine[k]) - largest);
    for (int apart = WARP / 2; apart > 0; apart /= 2)
        total += __shfl_xor_sync(0xffffffffu, total, apart);
    // dlogits may be logits: every lane has read what it needs of others' by the shuffles above.
    const float share = 1.0f / total, mean = 1.0f / float(every);
    for (int k = lane; k < classes; k += WARP) {
        const float wanted = k == target ? 1.0f : 0.0f;
        dlogits[(size_t)image * classes + k] =
            (expf(number(mine[k]) - largest) * share - wanted) * mean;
    }
    if (lane < 3) {
        const float entropy = is_class ? logf(total) - (own - largest) : __int_as_float(0x7fffffff);
        parts[image * 3 + lane] = lane == 0 ? entropy : 0.0f;
    }
}
