// SPDX-License-Identifier: MIT
// Rung 10, backwards to the input: the gradient of x from that of y.
//
// Idea      With a stride of 1 it is a convolution of dy with the filters turned by half a circle,
//           their channels for filters: the TMA walks dy as it walked x. The lines of w run along
//           channels, which are not summed over here: bf16 is multiplied across lines. For fp32
//           w was turned before; TF32 has the choice: where pixels are few (FILTERS_FIRST), w is
//           the first operand and turned on its way through registers.
// Threads   As in conv2d_fprop_10_wgmma, with input pixels and input channels.
// Shared    As in conv2d_fprop_10_wgmma.
// Source    As conv2d_fprop_10_wgmma.
#include "conv2d.cuh"
#include "ptx.cuh"
#include "hopper.cuh"
#include "conv2d_wgmma.cuh"

// Whether filters are the first operand and pixels columns: nothing need be ready before.
#ifndef FILTERS_FIRST
#define FILTERS_FIRST 0
#endif

#if FILTERS_FIRST
using Consumer = ThroughRegisters<true>;
#elif TERMS == 3
using Consumer = ThroughRegisters<false>;
#else
using Consumer = FromShared<0, BF16>;
#endif

extern "C" __global__ void CLUSTERED __launch_bounds__(THREADS, BLOCKS_PER_SM)
conv2d_dgrad_10_wgmma(const __grid_constant__ TensorMap dy, const __grid_constant__ TensorMap w,
                      Out* __restrict__ dx, CONV2D_SIZES, int splits)
{
    const long long pixels = (long long)N * H * W;
    const int tiles = R * S * K / TILE_D;
    // The pixels of dy that a tap of the turned filters meets, from one of dx on.
    const auto copy_dy = [&](unsigned char* to, uint64* barrier, long long pixel, int k, int tap) {
        const int v = pixel % W, h = pixel / W % H, n = pixel / W / H, r = tap / S, s = tap % S;
        load_im2col(to, dy, barrier, k, v - (S - 1 - pad_w), h - (R - 1 - pad_h), n, S - 1 - s,
                    R - 1 - r);
    };
    const auto copy = [&](unsigned char* a, unsigned char* b, uint64* barrier, const Item& item,
                          int tile) {
        const int tap = tile % (R * S), k = tile / (R * S) * TILE_D;
#if FILTERS_FIRST
        for (int i = 0; i < TILE_M; i += 32)
            load_box(a + i * 128, w, barrier, (int)item.row + i, tap, k);
        copy_dy(b, barrier, item.column, k, tap);
#else
        copy_dy(a, barrier, item.row, k, tap);
        const int c = (int)item.column;
#if BF16
        for (int i = 0; i < TILE_N; i += 64) load_box(b + i * 128, w, barrier, c + i, tap, k);
#else
        load_box(b, w, barrier, tap * K + k, c);
        if (TERMS == 3) load_box(b + BYTES_B, w, barrier, tap * K + k, C + c);
#endif
#endif
    };
#if FILTERS_FIRST
    run<Consumer, true>(Items(C, pixels, tiles, splits), copy, dx, nullptr, C, pixels);
#else
    run<Consumer, false>(Items(pixels, C, tiles, splits), copy, dx, nullptr, pixels, C);
#endif
}
