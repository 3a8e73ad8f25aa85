// SPDX-License-Identifier: MIT
// ReLU: one pass over an array of any shape.
//
// Idea      y = max(x, 0). NaN stays NaN, which fmaxf would turn into 0.
// Threads   A block covers 1,024 values, thread t those at t, t + 256, ... y may be x.
// Shared    None.
// Leaves    A pass of its own over memory, which the layer before it could save.
// Source    V. Nair and G. Hinton, "Rectified linear units improve restricted Boltzmann
//           machines", ICML 2010.
#include "planes.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
relu_fprop_1_elementwise(const float* x, float* y, long long count)
{
    const long long begin = blockIdx.x * (long long)SEGMENT;
    const long long end = min(count, begin + SEGMENT);
    for (long long i = begin + threadIdx.x; i < end; i += THREADS) {
        const float value = x[i];
        y[i] = value < 0.0f ? 0.0f : value;
    }
}
