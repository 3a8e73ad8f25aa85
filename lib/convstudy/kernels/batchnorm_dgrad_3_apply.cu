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
#include "windows.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
batchnorm_dgrad_3_apply(const Element* dz, const Element* dpooled, const Element* x,
                        const float* __restrict__ factors, const float* __restrict__ coefficients,
                        Element* dx, int N, int H, int W, int C, int pitch_dz, int pitch_dpooled,
                        int pitch_x, int pitch_dx)
{
    wait_for_others();
    let_others_begin();
    const Place place = my_place(C);
    const int cells = cells_in(N, H, W), first = place.part * ROWS * EACH + place.row;
    if (place.c >= C || first >= cells) return;
    float a[VECTOR], b[VECTOR], p[VECTOR], q[VECTOR];
    read(a, factors + place.c);
    read(b, factors + C + place.c);
    read(p, coefficients + place.c);
    read(q, coefficients + C + place.c);

    Loaded loaded[EACH];
#pragma unroll
    for (int i = 0; i < EACH; ++i)
        loaded[i].fetch(dz, dpooled, x, cell_at(first + i * ROWS, cells, first, H, W), place.c,
                        pitch_dz, pitch_dpooled, pitch_x);
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const Cell cell = cell_at(first + i * ROWS, cells, first, H, W);
        float out[TAPS][VECTOR];
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) {
            float g[TAPS], value[TAPS];
            loaded[i].step_back(g, value, cell, v, a[v], b[v]);
#pragma unroll
            for (int t = 0; t < TAPS; ++t)
                out[t][v] = fmaf(a[v], g[t], fmaf(-p[v], value[t], q[v]));
        }
#pragma unroll
        for (int t = 0; t < TAPS; ++t)
            if (cell.inside[t]) store(dx + offset(cell.pixel[t], pitch_dx, place.c), pack(out[t]));
    }
}
