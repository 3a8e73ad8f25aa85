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
#include "windows.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
batchnorm_dgrad_1_parts(const Element* dz, const Element* dpooled, const Element* x,
                        const float* __restrict__ factors, const float* __restrict__ statistics,
                        float* parts, int N, int H, int W, int C, int pitch_dz,
                        int pitch_dpooled, int pitch_x, int rows)
{
    wait_for_others();
    let_others_begin();
    const Place place = my_place(C);
    const int from = readable(place.c, C);
    const int begin = place.part * rows, end = min(cells_in(N, H, W), begin + rows);
    float a[VECTOR], b[VECTOR], mean[VECTOR];
    read(a, factors + from);
    read(b, factors + C + from);
    read(mean, statistics + from);

    Sums<2> mine[VECTOR] = {};
    for (int first = begin; first < end; first += ROWS * EACH) {
        Loaded loaded[EACH];
#pragma unroll
        for (int i = 0; i < EACH; ++i)
            loaded[i].fetch(dz, dpooled, x,
                            cell_at(first + place.row + i * ROWS, end, begin, H, W), from, pitch_dz,
                            pitch_dpooled, pitch_x);
        loads_end();
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            const Cell cell = cell_at(first + place.row + i * ROWS, end, begin, H, W);
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) {
                float g[TAPS], value[TAPS];
                loaded[i].step_back(g, value, cell, v, a[v], b[v]);
#pragma unroll
                for (int t = 0; t < TAPS; ++t) {
                    mine[v].values[0] += g[t];
                    mine[v].values[1] = fmaf(g[t], value[t] - mean[v], mine[v].values[1]);
                }
            }
        }
    }
    const Sums<2> all = merge_rows(mine);
    const int c = place.chunk + threadIdx.x;
    if (threadIdx.x < CHUNK && c < C) {
        float* to = parts + (size_t)place.part * 2 * C + c;
        to[0] = all.values[0];
        to[C] = all.values[1];
    }
}
