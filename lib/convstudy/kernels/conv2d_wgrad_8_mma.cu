// SPDX-License-Identifier: MIT
// Rung 8, backwards to the filters: the gradient of w from x and that of y, on tensor cores.
//
// Idea      Rows of a are filters and hold dy at every output pixel; the columns of b are taps and
//           channels and hold x under that tap: K x R S C outputs, N P Q products each. Outputs
//           are few and sums long, so nearly always `splits` blocks share a tile.
// Threads   As in conv2d_fprop_8_mma, with filters, and taps times channels.
// Shared    4 STAGES 32 (TILE_M + TILE_N + 16) bytes, dynamic: 79,872 with the defaults.
// Source    As conv2d_fprop_8_mma.
#include "conv2d.cuh"
#include "conv2d_out.cuh"
#include "overlap.cuh"
#include "ptx.cuh"
#include "conv2d_gemm.cuh"
#include "conv2d_mma.cuh"

// a: row k, depth (n, p, q). All filters of one pixel lie side by side.
struct Gradients {
    using Tile = ::Tile<TILE_D, TILE_M, false, VECTOR_A>;
    const Element* dy;
    int k, K;
    long long pixel, pixels;

    __device__ __forceinline__ Gradients(const Element* dy, const Part& part, int K,
                                         long long pixels)
        : dy(dy), k(part.row + Tile::place()), K(K), pixel((long long)part.first * TILE_D),
          pixels(pixels)
    {
    }
    __device__ __forceinline__ void fetch(Element* tile)
    {
#pragma unroll
        for (int i = 0; i < Tile::EACH; ++i) {
            const long long at = pixel + Tile::line(i);
            Tile::copy(tile, i, dy + at * K + k, at < pixels && k < K);
        }
        pixel += TILE_D;
    }
};

// b: depth (n, p, q), column (r, s, c).
struct Pixels {
    using Tile = ::Tile<TILE_D, TILE_N, false, VECTOR_B>;
    const Element* x;
    int h0, w0, c, N, C, H, W;
    bool is_tap;
    Count<Tile::STEP> pixel;  // q, p, n

    __device__ __forceinline__ Pixels(const Element* x, const Part& part, CONV2D_SIZES)
        : x(x), N(N), C(C), H(H), W(W),
          pixel((long long)part.first * TILE_D + Tile::line(0), Q, P)
    {
        const int column = part.column + Tile::place(), tap = column / C;
        c = column % C;
        h0 = tap / S - pad_h;
        w0 = tap % S - pad_w;
        is_tap = tap < R * S;
    }
    __device__ __forceinline__ void fetch(Element* tile)
    {
#pragma unroll
        for (int i = 0; i < Tile::EACH; ++i, pixel.next()) {
            const int n = pixel.third;
            const int h = pixel.second * STRIDE_H + h0, v = pixel.first * STRIDE_W + w0;
            const bool inside = is_tap && n < N && h >= 0 && h < H && v >= 0 && v < W;
            const size_t at = SOURCE ? (size_t)n * SOURCE_IMAGE + h * SOURCE_LINE + v * SOURCE_PITCH
                                     : (((size_t)n * H + h) * W + v) * C;
            Tile::copy(tile, i, x + at + c, inside);
        }
    }
};

extern "C" __global__ void __launch_bounds__(32 * WARPS_M * WARPS_N, 1)
conv2d_wgrad_8_mma(const Element* __restrict__ x, const Element* __restrict__ dy,
                   Result* __restrict__ dw, CONV2D_SIZES, int splits)
{
    wait_for_others();
    let_others_begin();
    const long long pixels = (long long)N * P * Q;
    const Part part(K, R * S * C, pixels, splits);
    Gradients a(dy, part, K, pixels);
    Pixels b(x, part, N, C, H, W, K, P, Q, pad_h, pad_w);
    Product<Gradients, Pixels> product;
    product.run(a, b, part.count);
    product.store(dw, nullptr, part, K, View{R * S * C});
}
