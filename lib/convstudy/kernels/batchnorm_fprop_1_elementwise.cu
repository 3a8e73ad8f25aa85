// SPDX-License-Identifier: MIT
// Batch normalisation at inference: one pass over the pixels, nothing kept.
//
// Idea      y = (x - mean) / sqrt(var + eps) * weight + bias, with the statistics of the training.
//           The channel's factor is one number, so a thread computes it once for its pixels.
// Threads   A block covers 1,024 pixels of one plane (n, c), thread t those at t, t + 256, ...
//           y may be x.
// Shared    None.
// Leaves    A pass of its own over memory, which a convolution's last step could save.
// Source    S. Ioffe and C. Szegedy, "Batch normalization", ICML 2015, algorithm 2.
#include "planes.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
batchnorm_fprop_1_elementwise(const float* x, const float* __restrict__ weight,
                              const float* __restrict__ bias, const float* __restrict__ mean,
                              const float* __restrict__ var, float* y, int C, int pixels,
                              float eps)
{
    const Segment s = my_segment(pixels);
    const int c = s.plane % C;
    const float factor = weight[c] / sqrtf(var[c] + eps);
    const size_t plane = (size_t)s.plane * pixels;
    // The mean is taken off first: folding it into the bias would cancel where it is large.
    for (int i = s.begin + threadIdx.x; i < s.end; i += THREADS)
        y[plane + i] = fmaf(x[plane + i] - mean[c], factor, bias[c]);
}
