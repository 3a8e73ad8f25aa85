// SPDX-License-Identifier: MIT
// Rung 7: a warp owns a tile, dealt out among its lanes so that they read from banks of their own.
//
// Idea      Warp tiles. In rung 6 a thread's 8 pixels and 8 filters lie side by side, and lanes
//           that read together read lines 8 apart: 8 times 144 bytes is a multiple of all 32 banks.
//           Here they read neighbouring lines, 36 words apart, which fill the banks exactly.
// Threads   A warp computes 64 pixels x 32 filters; conv2d_simt.cuh (SPREAD 1) has the map.
// Shared    As rung 6, dynamic: 82,944 bytes with the defaults.
// Source    NVIDIA CUTLASS, "Efficient GEMM in CUDA" (warp tiles).
#include "conv2d.cuh"
#include "ptx.cuh"

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
conv2d_fprop_7_warp_tiles(const float* __restrict__ x, const float* __restrict__ w,
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
