// SPDX-License-Identifier: MIT
// The mask that the logits say: the class of each pixel, one byte.
//
// Idea      The first of the largest logits; of one class, whether its probability is above a half,
//           which is where the logit is above 0.
// Threads   Thread t of block b does pixel b THREADS + t.
// Shared    None.
// Moves     Reads logits (N, H, W, CLASSES), writes bytes (N, H, W).
// Source    The definition.
#include "overlap.cuh"
#ifndef CLASSES
#define CLASSES 2
#endif
#ifndef THREADS
#define THREADS 256
#endif
static_assert(CLASSES <= 256, "a class is a byte");

extern "C" __global__ void __launch_bounds__(THREADS)
mask_fprop_1_argmax(const float* __restrict__ logits, unsigned char* __restrict__ mask, int pixels)
{
    wait_for_others();
    let_others_begin();
    const int pixel = blockIdx.x * THREADS + threadIdx.x;
    if (pixel >= pixels) return;
    const float* own = logits + (size_t)pixel * CLASSES;
    int best = CLASSES == 1 && own[0] > 0.0f;
    float largest = own[0];
    for (int k = 1; k < CLASSES; ++k)
        if (own[k] > largest) largest = own[k], best = k;
    mask[pixel] = (unsigned char)best;
}
