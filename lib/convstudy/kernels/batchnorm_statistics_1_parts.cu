// SPDX-License-Identifier: MIT
// Batch norm's statistics, first half: mean and squared distances of each part of the pixels.
//
// Idea      The statistics of all pixels are put together from those of parts, whichever kernel
//           made them: (parts, 2, C) numbers, the mean and the sum of squared distances from it.
//           A part is `rows` pixels, the last one what is left.
// Threads   Block (part, chunk), as pixels.cuh says; it merges its rows in a fixed order.
// Shared    12 CHUNK bytes a warp, static: 3,072 with the defaults.
// Moves     Reads x once.
// Source    moments.cuh; S. Ioffe and C. Szegedy, "Batch normalization", ICML 2015, algorithm 1.
#include "overlap.cuh"
#include "ptx.cuh"
#include "vectors.cuh"
#include "pixels.cuh"
#include "rows.cuh"
#include "moments.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
batchnorm_statistics_1_parts(const Element* x, float* parts, int pixels, int C, int pitch, int rows)
{
    wait_for_others();
    let_others_begin();
    const Place place = my_place(C);
    const int begin = place.part * rows, end = min(pixels, begin + rows);
    const Moments all = moments_of(x, place, C, pitch, begin, end);
    const int c = place.chunk + threadIdx.x;
    if (threadIdx.x < CHUNK && c < C) {
        float* to = parts + (size_t)place.part * 2 * C + c;
        to[0] = all.values[1];
        to[C] = all.values[2];
    }
}
