// SPDX-License-Identifier: MIT
// The residual sum: one pass over two arrays of one shape.
//
// Idea      sum = x + y.
// Threads   A block covers 1,024 values, thread t those at t, t + 256, ... sum may be x.
// Shared    None.
// Leaves    A pass of its own over memory, which the convolution before it could save.
// Source    K. He et al., "Deep residual learning for image recognition", CVPR 2016.
#include "planes.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
add_fprop_1_elementwise(const float* x, const float* __restrict__ y, float* sum, long long count)
{
    const long long begin = blockIdx.x * (long long)SEGMENT;
    const long long end = min(count, begin + SEGMENT);
    for (long long i = begin + threadIdx.x; i < end; i += THREADS) sum[i] = x[i] + y[i];
}
