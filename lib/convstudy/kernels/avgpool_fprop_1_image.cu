// SPDX-License-Identifier: MIT
// Global average pooling of NHWC arrays: the mean of each channel of each image.
//
// Idea      The rows of a block share out an image's pixels, and merge their sums in a fixed order.
// Threads   Block (image, chunk), as pixels.cuh says.
// Shared    4 CHUNK bytes a warp, static: 1,024 with the defaults.
// Moves     Reads x once.
// Source    M. Lin, Q. Chen and S. Yan, "Network in network", ICLR 2014.
#include "overlap.cuh"
#include "ptx.cuh"
#include "vectors.cuh"
#include "pixels.cuh"
#include "rows.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
avgpool_fprop_1_image(const Element* __restrict__ x, Element* __restrict__ y, int C, int pixels,
                      int pitch)
{
    wait_for_others();
    let_others_begin();
    const Place place = my_place(C);
    const int from = readable(place, C), image = place.part * pixels;
    Sums<1> mine[VECTOR] = {};
#pragma unroll 4
    for (int pixel = place.row; pixel < pixels; pixel += ROWS) {
        const Packed in = load(x + offset(image + pixel, pitch, from));
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) mine[v].values[0] += at(in, v);
    }
    const Sums<1> all = merge_rows(mine);
    const int c = place.chunk + threadIdx.x;
    if (threadIdx.x < CHUNK && c < C)
        y[(size_t)place.part * C + c] = all.values[0] / float(pixels);
}
