// SPDX-License-Identifier: MIT
// Rung 6: the next tiles are on their way while one is multiplied.
//
// Idea      Asynchronous copies in stages: shared memory holds STAGES tiles, and cp.async brings
//           the next ones past the registers while the threads multiply. One barrier a tile instead
//           of two: whoever passes it knows that the tile before it has been read.
// Threads   As rung 5.
// Shared    144 STAGES (TILE_M + TILE_N) bytes, dynamic: 82,944 with the defaults.
// Source    PTX ISA, "cp.async".
#include "conv2d.cuh"
#include "ptx.cuh"

#define SPREAD 0
#ifndef WARPS_M
#define WARPS_M 2
#endif
#ifndef WARP_M
#define WARP_M 64
#endif
#ifndef VECTOR_OUT
#define VECTOR_OUT 4
#endif
#include "conv2d_gemm.cuh"
#include "conv2d_gemm_fprop.cuh"
#include "conv2d_simt.cuh"

extern "C" __global__ void __launch_bounds__(32 * WARPS_M * WARPS_N, 1)
conv2d_fprop_6_stages(const float* __restrict__ x, const float* __restrict__ w,
                      const float* __restrict__ bias, float* __restrict__ y, CONV2D_SIZES,
                      int splits)
{
    const long long rows = (long long)N * P * Q;
    const Part part(rows, K, R * S * C, splits);
    Pixels a({x, N, C, H, W, P, Q, pad_h, pad_w}, part, C);
    Filters b(w, part, C, K);
    ThreadTile tile;
    for_each_tile(a, b, part.count, [&](const float* tile_a, const float* tile_b) {
        tile.add<Pixels, Filters>(tile_a, tile_b);
    });
    tile.store(y, bias, part, rows, K);
}
