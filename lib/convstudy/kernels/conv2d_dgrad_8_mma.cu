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
#include "ptx.cuh"
#include "conv2d_gemm.cuh"
#include "conv2d_mma.cuh"

// a: row (n, h, w), depth (r, s, k).
struct Gradients {
    using Tile = ::Tile<TILE_M, TILE_D, true, VECTOR_A>;
    struct Row {
        const float* image;
        int h, w;
    };
    // As in conv2d_gemm_fprop.cuh.
    static constexpr bool KEPT = VECTOR_A > 1;
    Row rows[KEPT ? Tile::EACH : 1];
    Taps taps;
    const float* dy;
    int row, N, H, W, K, P, Q, pad_h, pad_w;

    __device__ __forceinline__ Gradients(const float* dy, const Part& part, CONV2D_SIZES)
        : taps(part.first * TILE_D + Tile::place(), K), dy(dy), row(part.row), N(N), H(H), W(W),
          K(K), P(P), Q(Q), pad_h(pad_h), pad_w(pad_w)
    {
        if (KEPT)
#pragma unroll
            for (int i = 0; i < Tile::EACH; ++i) rows[i * KEPT] = locate(i);
    }
    __device__ __forceinline__ Row locate(int i) const
    {
        const long long at = (long long)row + Tile::line(i);
        const int v = at % W, h = at / W % H, n = at / W / H;
        // A row beyond the last lies above every image.
        return {dy + (size_t)n * P * Q * K, n < N ? h + pad_h : -1, v + pad_w};
    }
    __device__ __forceinline__ void fetch(float* tile)
    {
#pragma unroll(KEPT ? Tile::EACH : 1)
        for (int i = 0; i < Tile::EACH; ++i) {
            const Row& from = KEPT ? rows[i * KEPT] : locate(i);
            const int h = from.h - taps.r, v = from.w - taps.s;
            const int p = h / STRIDE_H, q = v / STRIDE_W;
            const bool inside = taps.r < R && h >= 0 && v >= 0 && p < P && q < Q &&
                                h % STRIDE_H == 0 && v % STRIDE_W == 0;
            Tile::copy(tile, i, from.image + ((size_t)p * Q + q) * K + taps.channel, inside);
        }
        taps.next();
    }
};

// b: depth (r, s, k), column c.
struct Filters {
    using Tile = ::Tile<TILE_D, TILE_N, false, VECTOR_B>;
    const float* w;
    int c, C, K, depth;

    __device__ __forceinline__ Filters(const float* w, const Part& part, int C, int K)
        : w(w), c(part.column + Tile::place()), C(C), K(K), depth(part.first * TILE_D)
    {
    }
    __device__ __forceinline__ void fetch(float* tile)
    {
#pragma unroll
        for (int i = 0; i < Tile::EACH; ++i) {
            const int d = depth + Tile::line(i), k = d % K, tap = d / K;
            Tile::copy(tile, i, w + ((size_t)k * (R * S) + tap) * C + c, tap < R * S && c < C);
        }
        depth += TILE_D;
    }
};

extern "C" __global__ void __launch_bounds__(32 * WARPS_M * WARPS_N, 1)
conv2d_dgrad_8_mma(const float* __restrict__ dy, const float* __restrict__ w,
                   float* __restrict__ dx, CONV2D_SIZES, int splits)
{
    const long long rows = (long long)N * H * W;
    const Part part(rows, C, R * S * K, splits);
    Gradients a(dy, part, N, C, H, W, K, P, Q, pad_h, pad_w);
    Filters b(w, part, C, K);
    Product<Gradients, Filters> product;
    product.run(a, b, part.count);
    product.store(dx, nullptr, part, rows, C);
}
