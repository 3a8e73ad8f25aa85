// SPDX-License-Identifier: MIT
// Rung 5: channels last, so that everything moves in vectors.
//
// Idea      Implicit GEMM over NHWC: what lies under the filter at one pixel is R S runs of C
//           floats, and a filter is one run of R S C, so that both come as float4, from memory and
//           from shared memory. Rung 4 could not: rows of 191 pixels start anywhere.
//           conv2d_gemm.cuh says how the product is cut.
// Threads   Thread t computes 8 pixels x 8 filters side by side.
// Shared    144 (TILE_M + TILE_N) bytes, dynamic: 27,648 with the defaults.
// Leaves    Nothing is computed while a tile is fetched, and the eight lanes that read filters
//           together read eight lines that fall into the same banks.
// Source    CUDA C++ Programming Guide, "Device Memory Accesses"; Chetlur et al., "cuDNN: Efficient
//           Primitives for Deep Learning", 2014 (implicit GEMM).
#include "conv2d.cuh"
#include "ptx.cuh"

#define COPY_THROUGH_REGISTERS
#define STAGES 1
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
conv2d_fprop_5_vectors(const float* __restrict__ x, const float* __restrict__ w,
                       const float* __restrict__ bias, float* __restrict__ y, CONV2D_SIZES,
                       int splits)
{
    const long long rows = (long long)N * P * Q;
    const Part part(rows, K, R * S * C, splits);
    Pixels a({x, N, C, H, W, P, Q, pad_h, pad_w}, part, C);
    Filters b(w, part, C, K);
    ThreadTile tile;
    for (int i = 0; i < part.count; ++i) {
        fetch(a, b, room);
        __syncthreads();  // the tiles are complete before anyone reads them
        tile.add<Pixels, Filters>(room, room + Pixels::Tile::WORDS);
        __syncthreads();  // everyone has read before the next tiles overwrite them
    }
    tile.store(y, bias, part, rows, K);
}
