// SPDX-License-Identifier: MIT
// Batch norm's gradient in one launch, for small images: a block has all pixels of its channels.
//
// Idea      As forward: one block finds the sums of its channels, and then the gradient of x, for
//           which it reads once more what the caches still hold. dx may be dz or x.
// Adds      To rungs 1 to 3: two launches less.
// Threads   Block (chunk), as pixels.cuh says, LANES being few; rows are merged in a fixed order.
// Shared    8 CHUNK bytes a warp and 8 CHUNK, static: 2,304 with the defaults.
// Moves     Reads x and dz (and dpooled) twice, the second time from L1 or L2, writes dx.
// Source    S. Ioffe and C. Szegedy, "Batch normalization", ICML 2015, section 3.
#include "overlap.cuh"
#include "ptx.cuh"
#include "vectors.cuh"
#include "pixels.cuh"
#include "rows.cuh"
#include "batchnorm.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
batchnorm_dgrad_4_whole(const Element* dz, const Element* dpooled, const Element* x,
                        const float* factors, const float* statistics, float* dweight, float* dbias,
                        Element* dx, int N, int H, int W, int C, int pitch_dz, int pitch_dpooled,
                        int pitch_x, int pitch_dx, int training)
{
    wait_for_others();
    let_others_begin();
    __shared__ __align__(16) float own[2][CHUNK];
    const Place place = my_place(C);
    const int end = cells_in(N, H, W);
    const Backward backward = {dz, dpooled, x, H, W, pitch_dz, pitch_dpooled, pitch_x};
    const Sums<2> all = backward.sums(place, C, 0, end, factors, statistics);
    const int t = threadIdx.x, c = place.chunk + t;
    if (t < CHUNK && c < C) {
        const Taken taken = taken_back(all, statistics[c], statistics[C + c], factors[c],
                                       N * H * W, training);
        dweight[c] = taken.dweight;
        dbias[c] = taken.dbias;
        own[0][t] = taken.p;
        own[1][t] = taken.q;
    }
    __syncthreads();  // the coefficients are there, and all has been read, before anyone goes on

    if (place.c >= C) return;
    float a[VECTOR], b[VECTOR], p[VECTOR], q[VECTOR];
    read(a, factors + place.c);
    read(b, factors + C + place.c);
    read(p, own[0] + place.c - place.chunk);
    read(q, own[1] + place.c - place.chunk);
    for (int first = place.row; first < end; first += ROWS * EACH)
        backward.run(first, end, place.c, a, b, p, q, dx, pitch_dx);
}
