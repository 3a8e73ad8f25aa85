// SPDX-License-Identifier: MIT
// Batch norm in training in one launch, for small images: a block has all pixels of its channels.
//
// Idea      Channels do not depend on each other. Where their pixels are few, one block finds the
//           statistics of some and then normalises them, ReLU, residual and pooling and all; the
//           second reading finds them in the caches. What would be three launches takes longer to
//           begin than to do.
// Adds      To rung 2: no launch for the statistics.
// Threads   Block (chunk), as pixels.cuh says, LANES being few; rows are merged in a fixed order.
// Shared    12 CHUNK bytes a warp and 8 CHUNK, static: 6,400 with the defaults.
// Moves     Reads x twice, the second time from L1 or L2 (and the residual), writes y (and pooled).
// Source    S. Ioffe and C. Szegedy, "Batch normalization", ICML 2015, algorithm 1.
#ifndef THREADS
#define THREADS 512
#endif
#include "overlap.cuh"
#include "ptx.cuh"
#include "vectors.cuh"
#include "pixels.cuh"
#include "rows.cuh"
#include "moments.cuh"
#include "batchnorm.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
batchnorm_fprop_3_whole(const Element* x, const float* weight, const float* bias,
                        float* running_mean, float* running_var, float* statistics, float* factors,
                        const Element* residual, Element* y, Element* pooled, int N, int H, int W,
                        int C, int pitch_x, int pitch_residual, int pitch_y, int pitch_pooled,
                        float eps, float momentum)
{
    wait_for_others();
    let_others_begin();
    __shared__ __align__(16) float own[2][CHUNK];
    const Place place = my_place(C);
    const int pixels = N * H * W;
    const Moments all = moments_of(x, place, C, pitch_x, 0, pixels);
    const int t = threadIdx.x, c = place.chunk + t;
    if (t < CHUNK && c < C) {
        const Learnt learnt = {running_mean, running_var, statistics, factors};
        learnt.keep(all, true, c, C, pixels, weight[c], bias[c], eps, momentum);
        own[0][t] = factors[c];
        own[1][t] = factors[C + c];
    }
    __syncthreads();  // the factors are there, and x has been read, before anyone goes on

    if (place.c >= C) return;
    float a[VECTOR], b[VECTOR];
    read(a, own[0] + place.c - place.chunk);
    read(b, own[1] + place.c - place.chunk);
    const Forward forward = {x, residual, y, pooled, H, W,
                             pitch_x, pitch_residual, pitch_y, pitch_pooled};
    const int end = cells_in(N, H, W);
    for (int first = place.row; first < end; first += ROWS * EACH)
        forward.run(first, end, place.c, a, b);
}
