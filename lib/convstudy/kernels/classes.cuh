// SPDX-License-Identifier: MIT
// What the kernels of the loss agree on: a pixel's classes, and what it should be.
//
// Of several classes, probabilities are the softmax of the logits. Of one, it is the sigmoid, and
// the target says 0 or 1. A target that is no class makes the loss NaN.
#ifndef CLASSES
#define CLASSES 2
#endif
#ifndef TARGET_BYTES
#define TARGET_BYTES 1
#endif
#if TARGET_BYTES == 1
using Target = unsigned char;
#else
using Target = int;
#endif
#ifndef THREADS
#define THREADS 256
#endif

// How much of class k a pixel should be.
__device__ __forceinline__ float wanted(int target, int k)
{
    return target == (CLASSES == 1 ? 1 : k) ? 1.0f : 0.0f;
}

// Gives the probabilities, and returns the cross-entropy.
__device__ __forceinline__ float classify(float (&probability)[CLASSES], const float* logits,
                                          int target)
{
    float entropy = __int_as_float(0x7fffffff);  // NaN
    if (CLASSES == 1) {
        const float x = logits[0], small = expf(-fabsf(x));  // at most 1, whatever the sign
        probability[0] = (x < 0.0f ? small : 1.0f) / (1.0f + small);
        if (target == 0 || target == 1)
            entropy = fmaxf(x, 0.0f) - x * wanted(target, 0) + log1pf(small);
        // fmaxf() took a NaN for 0.
        return x == x ? entropy : x;
    }
    float largest = logits[0], total = 0.0f, own = entropy;
#pragma unroll
    for (int k = 1; k < CLASSES; ++k) largest = fmaxf(largest, logits[k]);
#pragma unroll
    for (int k = 0; k < CLASSES; ++k) {
        // The largest is taken off first: the power of what is left cannot overflow.
        const float below = logits[k] - largest;
        if (target == k) own = below;
        total += probability[k] = expf(below);
    }
    const float share = 1.0f / total;
#pragma unroll
    for (int k = 0; k < CLASSES; ++k) probability[k] *= share;
    return logf(total) - own;
}
