// SPDX-License-Identifier: MIT
// Batch norm's gradient, between its halves: the sums of all parts, and what follows from them.
//
// Idea      dbias and dweight are the sums, up to a factor. What the statistics take back of the
//           gradient of x is p x - q with a p and a q of the channel: `coefficients` (2, C). Where
//           the statistics were given (training = 0) they take nothing back, and both are 0.
// Threads   A block has LANES channels. Thread (row, lane) adds parts row, row + ROWS, ...
// Shared    8 LANES bytes a warp, static: 512 with the defaults.
// Moves     Reads the parts once.
// Source    S. Ioffe and C. Szegedy, "Batch normalization", ICML 2015, section 3.
#define VECTOR 1
#include "overlap.cuh"
#include "ptx.cuh"
#include "vectors.cuh"
#include "pixels.cuh"
#include "rows.cuh"
#include "batchnorm.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
batchnorm_dgrad_2_combine(const float* __restrict__ parts, const float* __restrict__ statistics,
                          const float* __restrict__ factors, float* __restrict__ dweight,
                          float* __restrict__ dbias, float* __restrict__ coefficients, int C,
                          int count, int pixels, int training)
{
    wait_for_others();
    let_others_begin();
    const Place place = my_place(C);
    Sums<2> mine[1] = {};
    if (place.c < C)
#pragma unroll 4
        for (int part = place.row; part < count; part += ROWS) {
            const float* from = parts + (size_t)part * 2 * C + place.c;
            mine[0].merge({from[0], from[C]});
        }
    const Sums<2> all = merge_rows(mine);
    const int c = place.c;
    if (place.row > 0 || c >= C) return;

    const Taken taken =
        taken_back(all, statistics[c], statistics[C + c], factors[c], pixels, training);
    dweight[c] = taken.dweight;
    dbias[c] = taken.dbias;
    coefficients[c] = taken.p;
    coefficients[C + c] = taken.q;
}
