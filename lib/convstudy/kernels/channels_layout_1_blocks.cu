// SPDX-License-Identifier: MIT
// Channels that ranks share: side by side in each pixel, or each rank's pixels in a block apart.
//
// Idea      What a rank has of an NHWC array is a block of pixels with fewer channels. A gather
//           leaves the blocks one after the other; a convolution wants all channels of a pixel
//           together, and a sum that is scattered the blocks again. Both are this copy, told how
//           far it is from pixel to pixel (the pitch) and from rank to rank, here and there.
// Threads   Block (part, chunk), as pixels.cuh says; thread (row, lane) does EACH pixels, ROWS
//           apart, counted through the ranks.
// Shared    None.
// Moves     Reads the channels and writes them.
// Source    None.
#include "overlap.cuh"
#include "ptx.cuh"
#include "vectors.cuh"
#include "pixels.cuh"

#ifndef EACH
#define EACH 4
#endif

extern "C" __global__ void __launch_bounds__(THREADS)
channels_layout_1_blocks(const Element* __restrict__ from, Element* __restrict__ to, int ranks,
                         int pixels, int C, int from_pitch, long long from_rank, int to_pitch,
                         long long to_rank)
{
    wait_for_others();
    let_others_begin();
    const Place place = my_place(C);
    const int first = place.part * ROWS * EACH + place.row;
    if (place.c >= C || first >= ranks * pixels) return;

    // Beyond the end the first pixel is read again: loads then need no condition.
    Packed copied[EACH];
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const int pixel = first + i * ROWS < ranks * pixels ? first + i * ROWS : first;
        copied[i] = load(from + pixel / pixels * from_rank +
                         offset(pixel % pixels, from_pitch, place.c));
    }
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const int pixel = first + i * ROWS;
        if (pixel < ranks * pixels)
            store(to + pixel / pixels * to_rank + offset(pixel % pixels, to_pitch, place.c),
                  copied[i]);
    }
}
