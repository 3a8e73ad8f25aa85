// SPDX-License-Identifier: MIT
// Rung 10, backwards to the filters: the gradient of w from x and that of y.
//
// Idea      Sums run over pixels, and the lines of both operands across them. bf16 is multiplied
//           as it lies: filters are rows, taps and channels columns. fp32 and TF32 are not: there
//           taps and channels are rows, so that x can be turned on its way through registers,
//           and dy was turned before (and, for fp32, split). Sums are long, outputs few: nearly
//           always `splits` blocks share a tile.
// Threads   As in conv2d_fprop_10_wgmma.
// Shared    As in conv2d_fprop_10_wgmma.
// Source    As conv2d_fprop_10_wgmma.
#include "conv2d.cuh"
#include "ptx.cuh"
#include "hopper.cuh"
#include "conv2d_wgmma.cuh"

extern "C" __global__ void CLUSTERED __launch_bounds__(THREADS, BLOCKS_PER_SM)
conv2d_wgrad_10_wgmma(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap dy,
                      Out* __restrict__ dw, CONV2D_SIZES, int splits)
{
    const long long pixels = (long long)N * P * Q;
    const int weights = R * S * C, tiles = (int)((pixels + TILE_D - 1) / TILE_D);
    // The tile of x under the tap and channels of one row or column, `of`.
    const auto copy_x = [&](unsigned char* to, uint64* barrier, int of, int tile) {
        const int pixel = tile * TILE_D, q = pixel % Q, p = pixel / Q % P, n = pixel / Q / P;
        const int tap = of / C;
        load_im2col(to, x, barrier, of % C, q - pad_w, p - pad_h, n, tap % S, tap / S);
    };
#if BF16
    const auto copy = [&](unsigned char* a, unsigned char* b, uint64* barrier, const Item& item,
                          int tile) {
        for (int i = 0; i < TILE_M; i += 64)
            load_box(a + i * 128, dy, barrier, (int)item.row + i, tile * TILE_D);
        for (int i = 0; i < TILE_N; i += 64) copy_x(b + i * 128, barrier, (int)item.column + i, tile);
    };
    run<FromShared<1, 1>, false>(Items(K, weights, tiles, splits), copy, dw, nullptr, K, weights);
#else
    const auto copy = [&](unsigned char* a, unsigned char* b, uint64* barrier, const Item& item,
                          int tile) {
        for (int i = 0; i < TILE_M; i += 32) copy_x(a + i * 128, barrier, (int)item.row + i, tile);
        load_box(b, dy, barrier, tile * TILE_D, (int)item.column);
        if (TERMS == 3) load_box(b + BYTES_B, dy, barrier, tile * TILE_D, K + (int)item.column);
    };
    run<ThroughRegisters<true>, true>(Items(weights, K, tiles, splits), copy, dw, nullptr, weights,
                                      K);
#endif
}
