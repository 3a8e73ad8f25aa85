// SPDX-License-Identifier: MIT
// Batch norm's gradient, first half: two sums over each part of the pixels.
//
// Idea      Of the gradient g of a x + b, the sums of g and of g (x - mean) are all that the
//           gradients of weight, bias and x need of other pixels. g is made here from what comes
//           from above, dz and dpooled: ReLU and pooling have no passes of their own. Nothing but
//           x was kept for that; which pixel won its window is found again. Without
//           DIRECT, dz is null: only the pooled image was used. Parts are (parts, 2, C), of `rows`
//           cells each.
// Threads   Block (part, chunk), as pixels.cuh says; it merges its rows in a fixed order.
// Shared    8 CHUNK bytes a warp, static: 2,048 with the defaults.
// Moves     Reads x and dz once, and dpooled.
// Source    S. Ioffe and C. Szegedy, "Batch normalization", ICML 2015, section 3.
#include "overlap.cuh"
#include "ptx.cuh"
#include "vectors.cuh"
#include "pixels.cuh"
#include "rows.cuh"
#include "batchnorm.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
batchnorm_dgrad_1_parts(const Element* dz, const Element* dpooled, const Element* x,
                        const float* __restrict__ factors, const float* __restrict__ statistics,
                        float* parts, int N, int H, int W, int C, int pitch_dz, int pitch_dpooled,
                        int pitch_x, int rows)
{
    wait_for_others();
    let_others_begin();
    const Place place = my_place(C);
    const int begin = place.part * rows, end = min(cells_in(N, H, W), begin + rows);
    const Backward backward = {dz, dpooled, x, H, W, pitch_dz, pitch_dpooled, pitch_x};
    const Sums<2> all = backward.sums(place, C, begin, end, factors, statistics);
    const int c = place.chunk + threadIdx.x;
    if (threadIdx.x < CHUNK && c < C) {
        float* to = parts + (size_t)place.part * 2 * C + c;
        to[0] = all.values[0];
        to[C] = all.values[1];
    }
}
