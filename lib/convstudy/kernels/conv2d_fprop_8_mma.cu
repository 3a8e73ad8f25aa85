// SPDX-License-Identifier: MIT
// Rung 8: the same matrix product on tensor cores (mma.sync), sums split over blocks.
//
// Idea      Implicit GEMM. Rows of a are output pixels and hold the R S C values under the filter,
//           b holds a filter in each column: N P Q x K outputs, R S C products each. Tensor cores
//           do a warp's 16 x 8 x 8 products (16 x 8 x 16 of bf16) in one instruction;
//           conv2d_mma.cuh says how fp32 comes out of their TF32.
// Threads   Warps of WARP_M pixels x WARP_N filters. Lane l of a warp holds, of each 16 x 8 of
//           them, pixels l / 4 and l / 4 + 8, filters 2 (l % 4) and the next.
// Shared    4 STAGES 36 (TILE_M + TILE_N) bytes, dynamic: 82,944 with the defaults.
// Source    Chetlur et al., "cuDNN: Efficient Primitives for Deep Learning", 2014 (implicit GEMM);
//           PTX ISA, "mma.m16n8k8", "ldmatrix" and "cp.async"; Ootomo and Yokota, "Recovering
//           single precision accuracy from Tensor Cores", 2022 (two TF32 numbers, a sum outside).
#include "conv2d.cuh"
#include "conv2d_out.cuh"
#include "overlap.cuh"
#include "ptx.cuh"
#include "conv2d_gemm.cuh"
#include "conv2d_gemm_fprop.cuh"
#include "conv2d_mma.cuh"

extern "C" __global__ void __launch_bounds__(32 * WARPS_M * WARPS_N, 1)
conv2d_fprop_8_mma(const Element* __restrict__ x, const Element* __restrict__ w,
                   const float* __restrict__ bias, Result* __restrict__ y, CONV2D_SIZES,
                   int splits VIEW_SIZES)
{
    wait_for_others();
    let_others_begin();
    const long long rows = (long long)N * P * Q;
    const Part part(rows, K, R * S * C, splits);
    Pixels a({x, N, C, H, W, P, Q, pad_h, pad_w}, part, C);
    Filters b(w, part, C, K);
    Product<Pixels, Filters> product;
    product.run(a, b, part.count);
    product.store(y, bias, part, rows, VIEW_OF(K, P, Q));
}
