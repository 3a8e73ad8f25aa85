// SPDX-License-Identifier: MIT
// Batch norm's gradient, second half: that of x, back through pooling and ReLU.
//
// Idea      dx = a g - (p x - q): g, the gradient of a x + b, is made once more from dz, dpooled
//           and x, which costs no more memory traffic than to read it would. dx may be dz or x.
// Threads   Block (part, chunk), as pixels.cuh says; thread (row, lane) does EACH cells, ROWS
//           apart.
// Shared    None.
// Moves     Reads x and dz (and dpooled), writes dx.
// Source    S. Ioffe and C. Szegedy, "Batch normalization", ICML 2015, section 3.
#include "overlap.cuh"
#include "ptx.cuh"
#include "vectors.cuh"
#include "pixels.cuh"
#include "rows.cuh"
#include "batchnorm.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
batchnorm_dgrad_3_apply(const Element* dz, const Element* dpooled, const Element* x,
                        const float* __restrict__ factors, const float* __restrict__ coefficients,
                        Element* dx, int N, int H, int W, int C, int pitch_dz, int pitch_dpooled,
                        int pitch_x, int pitch_dx)
{
    wait_for_others();
    let_others_begin();
    const Place place = my_place(C);
    const int end = cells_in(N, H, W), first = place.part * ROWS * EACH + place.row;
    if (place.c >= C || first >= end) return;
    float a[VECTOR], b[VECTOR], p[VECTOR], q[VECTOR];
    read(a, factors + place.c);
    read(b, factors + C + place.c);
    read(p, coefficients + place.c);
    read(q, coefficients + C + place.c);
    const Backward backward = {dz, dpooled, x, H, W, pitch_dz, pitch_dpooled, pitch_x};
    backward.run(first, end, place.c, a, b, p, q, dx, pitch_dx);
}
