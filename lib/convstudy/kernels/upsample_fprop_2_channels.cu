// SPDX-License-Identifier: MIT
// Bilinear interpolation of NHWC arrays to twice the size, into a larger image.
//
// Idea      A thread finds its four pixels once for 16 bytes of channels. The result's corner is at
//           (top, left) of a P x Q image, which is 0 around it: what is padded and concatenated is
//           written where it will be read.
// Adds      To rung 1: vectors of channels; no pass of its own for padding.
// Threads   Block (part, chunk), as pixels.cuh says; a thread makes one vector of outputs.
// Shared    None. Neighbours read the same pixels, which L1 and L2 hold.
// Moves     Reads x, writes y.
// Source    PyTorch's documentation of Upsample, the formula for align_corners=True.
#include "overlap.cuh"
#include "ptx.cuh"
#include "vectors.cuh"
#include "pixels.cuh"
#include "bilinear.cuh"

__device__ __forceinline__ float mix(float a, float b, float share)
{
    return fmaf(share, b - a, a);
}

extern "C" __global__ void __launch_bounds__(THREADS)
upsample_fprop_2_channels(const Element* __restrict__ x, Element* __restrict__ y, int N, int H,
                          int W, int C, int P, int Q, int top, int left, int pitch_x, int pitch_y)
{
    wait_for_others();
    let_others_begin();
    const Place place = my_place(C);
    const int pixel = place.part * ROWS + place.row;
    if (place.c >= C || pixel >= N * P * Q) return;
    const int line = pixel / Q, i = line % P - top, j = pixel % Q - left, n = line / P;

    float out[VECTOR] = {};
    if (i >= 0 && i < 2 * H && j >= 0 && j < 2 * W) {
        const Between row = locate(i, H), column = locate(j, W);
        const int above = (n * H + row.low) * W, below = (n * H + row.high) * W;
        const Packed corners[4] = {load(x + offset(above + column.low, pitch_x, place.c)),
                                   load(x + offset(above + column.high, pitch_x, place.c)),
                                   load(x + offset(below + column.low, pitch_x, place.c)),
                                   load(x + offset(below + column.high, pitch_x, place.c))};
#pragma unroll
        for (int v = 0; v < VECTOR; ++v)
            out[v] = mix(mix(at(corners[0], v), at(corners[1], v), column.share),
                         mix(at(corners[2], v), at(corners[3], v), column.share), row.share);
    }
    store(y + offset(pixel, pitch_y, place.c), pack(out));
}
