// SPDX-License-Identifier: MIT
// Padding and concatenation in one pass: the decoder's joint.
//
// Idea      y = skip's channels, then x's, x lying inside a frame of zeros. Every output is
//           written once; two passes would write the padded x only to read it again.
// Threads   A block covers 1,024 pixels of one plane of y, thread t those at t, t + 256, ...
// Shared    None.
// Source    O. Ronneberger et al., "U-Net", MICCAI 2015, which crops the skip; padding x instead
//           keeps the image's size.
#include "planes.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
concat_fprop_1_pad(const float* __restrict__ skip, const float* __restrict__ x,
                   float* __restrict__ y, int C, int D, int H, int W, int small_h, int small_w,
                   int top, int left)
{
    const Segment s = my_segment(H * W);
    const int n = s.plane / (C + D), channel = s.plane % (C + D);
    float* out = y + (size_t)s.plane * H * W;
    if (channel < C) {
        const float* from = skip + ((size_t)n * C + channel) * H * W;
        for (int i = s.begin + threadIdx.x; i < s.end; i += THREADS) out[i] = from[i];
        return;
    }
    const float* from = x + ((size_t)n * D + channel - C) * small_h * small_w;
    for (int i = s.begin + threadIdx.x; i < s.end; i += THREADS) {
        const int h = i / W - top, w = i % W - left;
        const bool inside = h >= 0 && h < small_h && w >= 0 && w < small_w;
        out[i] = inside ? from[h * small_w + w] : 0.0f;
    }
}
