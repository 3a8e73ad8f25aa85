// SPDX-License-Identifier: MIT
// Bilinear interpolation to twice the size, the corner pixels kept (align_corners).
//
// Idea      Output row i lies at i (H - 1) / (2 H - 1) of the input. The quotient of these
//           integers is the row above, their remainder the distance to it: no position is
//           rounded before it is used, however large the image.
// Threads   A block covers 1,024 outputs of one plane (n, c), thread t those at t, t + 256, ...
// Shared    None. Neighbours read the same four pixels, which L1 holds.
// Source    PyTorch's documentation of Upsample, the formula for align_corners=True.
#include "planes.cuh"

struct Between {
    int low, high;
    float share;
};

__device__ __forceinline__ Between locate(int i, int size)
{
    const long long position = (long long)i * (size - 1);
    const int last = 2 * size - 1;
    const int low = int(position / last);
    return {low, min(low + 1, size - 1), float(int(position % last)) / float(last)};
}

__device__ __forceinline__ float mix(float a, float b, float share)
{
    return fmaf(share, b - a, a);
}

extern "C" __global__ void __launch_bounds__(THREADS)
upsample_fprop_1_bilinear(const float* __restrict__ x, float* __restrict__ y, int H, int W)
{
    const Segment s = my_segment(4 * H * W);
    const float* plane = x + (size_t)s.plane * H * W;
    float* out = y + (size_t)s.plane * 4 * H * W;
    for (int i = s.begin + threadIdx.x; i < s.end; i += THREADS) {
        const Between row = locate(i / (2 * W), H), column = locate(i % (2 * W), W);
        const float* above = plane + row.low * W;
        const float* below = plane + row.high * W;
        out[i] = mix(mix(above[column.low], above[column.high], column.share),
                     mix(below[column.low], below[column.high], column.share), row.share);
    }
}
