// SPDX-License-Identifier: MIT
// Rung 8, backwards to the input: the gradient of x from that of y, on tensor cores.
//
// Idea      The product of rung 8 the other way round. Rows of a are input pixels and hold the
//           values of dy to which each contributed, R S K of them; b holds the filters with their
//           channels as columns: N H W x C outputs. Where the stride is not 1, a tap reaches an
//           output from every stride-th pixel only, and the others count as zeros.
// Threads   As in conv2d_fprop_8_mma, with input pixels and input channels.
// Shared    4 STAGES (36 TILE_M + 32 (TILE_N + 8)) bytes, dynamic: 82,944 with the defaults.
// Source    As conv2d_fprop_8_mma.
#include "conv2d.cuh"
#include "conv2d_out.cuh"
#include "overlap.cuh"
#include "ptx.cuh"
#include "conv2d_gemm.cuh"
#include "conv2d_mma.cuh"

// a: row (n, h, w), depth (r, s, k).
struct AroundInput {
    const Element* dy;
    int N, H, W, K, P, Q, pad_h, pad_w;
    static constexpr bool IN_NUMBERS = false;

    __device__ __forceinline__ Row locate(long long row) const
    {
        const int v = row % W, h = row / W % H, n = row / W / H;
        // A row beyond the last lies above every image.
        return {dy + (size_t)n * P * Q * K, n < N ? h + pad_h : -1, v + pad_w};
    }
    __device__ __forceinline__ bool find(const Row& row, int r, int s, int& pixel) const
    {
        const int h = row.h - r, v = row.w - s;
        const int p = h / STRIDE_H, q = v / STRIDE_W;
        pixel = p * Q + q;
        return h >= 0 && v >= 0 && h % STRIDE_H == 0 && v % STRIDE_W == 0 && p < P && q < Q;
    }
};
using Gradients = Neighbours<AroundInput>;

// b: depth (r, s, k), column c.
struct Filters {
    using Tile = ::Tile<TILE_D, TILE_N, false, VECTOR_B>;
    const Element* w;
    int c, C;
    Count<Tile::STEP> depth;  // filter, tap, and how often beyond the last

    __device__ __forceinline__ Filters(const Element* w, const Part& part, int C, int K)
        : w(w), c(part.column + Tile::place()), C(C),
          depth(part.first * TILE_D + Tile::line(0), K, R * S)
    {
    }
    __device__ __forceinline__ void fetch(Element* tile)
    {
#pragma unroll
        for (int i = 0; i < Tile::EACH; ++i, depth.next()) {
            const size_t tap = (size_t)depth.first * (R * S) + depth.second;
            Tile::copy(tile, i, w + tap * C + c, depth.third == 0 && c < C);
        }
    }
};

extern "C" __global__ void __launch_bounds__(32 * WARPS_M * WARPS_N, 1)
conv2d_dgrad_8_mma(const Element* __restrict__ dy, const Element* __restrict__ w,
                   Result* __restrict__ dx, CONV2D_SIZES, int splits)
{
    wait_for_others();
    let_others_begin();
    const long long rows = (long long)N * H * W;
    const Part part(rows, C, R * S * K, splits);
    Gradients a({dy, N, H, W, K, P, Q, pad_h, pad_w}, part, K);
    Filters b(w, part, C, K);
    Product<Gradients, Filters> product;
    product.run(a, b, part.count);
    product.store(dx, nullptr, part, rows, View{C});
}
