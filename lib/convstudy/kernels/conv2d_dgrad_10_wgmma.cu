// SPDX-License-Identifier: MIT
// Rung 10, backwards to the input: the gradient of x from that of y.
//
// Idea      With a stride of 1 it is a convolution of dy with the filters turned by half a circle,
//           their channels for filters: the TMA walks dy as it walked x. The lines of w run along
//           channels, which are not summed over here: bf16 is multiplied across lines; for fp32
//           and TF32, which are not, w was turned before.
// Threads   As in conv2d_fprop_10_wgmma, with input pixels and input channels.
// Shared    As in conv2d_fprop_10_wgmma.
// Source    As conv2d_fprop_10_wgmma.
#include "conv2d.cuh"
#include "ptx.cuh"
#include "hopper.cuh"
#include "conv2d_wgmma.cuh"

#if TERMS == 3
using Consumer = ThroughRegisters<false>;
#else
using Consumer = FromShared<0, BF16>;
#endif

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM)
conv2d_dgrad_10_wgmma(const __grid_constant__ TensorMap dy, const __grid_constant__ TensorMap w,
                      Out* __restrict__ dx, CONV2D_SIZES, int splits)
{
    const long long rows = (long long)N * H * W;
    const auto copy = [&](unsigned char* a, unsigned char* b, uint64* barrier, const Item& item,
                          int tile) {
        const int tap = tile % (R * S), k = tile / (R * S) * TILE_D, r = tap / S, s = tap % S;
        const int v = item.row % W, h = item.row / W % H, n = item.row / W / H;
        load_im2col(a, dy, barrier, k, v - (S - 1 - pad_w), h - (R - 1 - pad_h), n, S - 1 - s,
                    R - 1 - r);
#if BF16
        for (int i = 0; i < TILE_N / 64; ++i)
            load_box(b + i * TILE_D * 128, w, barrier, item.column + 64 * i, tap, k);
#else
        load_box(b, w, barrier, tap * K + k, item.column);
        if (TERMS == 3) load_box(b + BYTES_B, w, barrier, tap * K + k, C + item.column);
#endif
    };
    run<Consumer, false>(Items(rows, C, R * S * K / TILE_D, splits), copy, dx, nullptr, rows, C);
}
