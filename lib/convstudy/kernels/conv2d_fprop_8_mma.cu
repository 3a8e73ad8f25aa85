// SPDX-License-Identifier: MIT
// Rung 8: the convolution as a matrix product on tensor cores (mma.sync), its operands fetched ahead.
//
// Idea      Implicit GEMM. Rows of a are output pixels and hold the R S C values under the filter,
//           b holds a filter in each column: N P Q x K outputs, R S C products each. Tensor cores
//           do a warp's 16 x 8 x 8 products in one instruction; conv2d_mma.cuh says how fp32 comes
//           out of their TF32.
// Threads   Warps of WARP_M pixels x WARP_N filters. Lane l of a warp holds, of each 16 x 8 of
//           them, pixels l / 4 and l / 4 + 8, filters 2 (l % 4) and the next.
// Shared    4 STAGES 36 (TILE_M + TILE_N) bytes, dynamic: 82,944 with the defaults.
// Source    Chetlur et al., "cuDNN: Efficient Primitives for Deep Learning", 2014 (implicit GEMM);
//           PTX ISA, "mma.m16n8k8" and "cp.async"; Ootomo and Yokota, "Recovering single precision
//           accuracy from Tensor Cores", 2022 (two TF32 numbers, a sum outside).
#include "conv2d.cuh"
#include "ptx.cuh"
#include "conv2d_mma.cuh"

// a: row (n, p, q), depth (r, s, c).
struct Pixels {
    using Tile = ::Tile<TILE_M, TILE_D, true, VECTOR_A>;
    const float* image[Tile::EACH];
    int h0[Tile::EACH], w0[Tile::EACH];
    Taps taps;
    int H, W;

    __device__ __forceinline__ Pixels(const float* x, const Part& part, CONV2D_SIZES)
        : taps(part.first * TILE_D + Tile::place(), C), H(H), W(W)
    {
#pragma unroll
        for (int i = 0; i < Tile::EACH; ++i) {
            const long long row = part.row + Tile::line(i);
            const int q = row % Q, p = row / Q % P, n = row / Q / P;
            // A row beyond the last lies above every image.
            h0[i] = n < N ? p * STRIDE_H - pad_h : -R - 1;
            w0[i] = q * STRIDE_W - pad_w;
            image[i] = x + (size_t)n * H * W * C;
        }
    }
    __device__ __forceinline__ void fetch(float* tile)
    {
#pragma unroll
        for (int i = 0; i < Tile::EACH; ++i) {
            const int h = h0[i] + taps.r, v = w0[i] + taps.s;
            const bool inside = taps.r < R && h >= 0 && h < H && v >= 0 && v < W;
            Tile::copy(tile, i, image[i] + ((size_t)h * W + v) * taps.channels + taps.channel,
                       inside);
        }
        taps.next();
    }
};

// b: depth (r, s, c), column k. A filter lies as its column runs.
struct Filters {
    using Tile = ::Tile<TILE_N, TILE_D, true, VECTOR_B>;
    const float* w;
    int k0, K, depth, length;

    __device__ __forceinline__ Filters(const float* w, const Part& part, int C, int K)
        : w(w), k0(part.column), K(K), depth(part.first * TILE_D + Tile::place()), length(R * S * C)
    {
    }
    __device__ __forceinline__ void fetch(float* tile)
    {
#pragma unroll
        for (int i = 0; i < Tile::EACH; ++i) {
            const int k = k0 + Tile::line(i);
            Tile::copy(tile, i, w + (size_t)k * length + depth, k < K && depth < length);
        }
        depth += TILE_D;
    }
};

extern "C" __global__ void __launch_bounds__(32 * WARPS_M * WARPS_N, 1)
conv2d_fprop_8_mma(const float* __restrict__ x, const float* __restrict__ w,
                   const float* __restrict__ bias, float* __restrict__ y, CONV2D_SIZES, int splits)
{
    const long long rows = (long long)N * P * Q;
    const Part part(rows, K, R * S * C, splits);
    Pixels a(x, part, N, C, H, W, K, P, Q, pad_h, pad_w);
    Filters b(w, part, C, K);
    Product<Pixels, Filters> product;
    product.run(a, b, part.count);
    product.store(y, bias, part, rows, K);
}
