// SPDX-License-Identifier: MIT
// Rung 10, backwards to the filters: the gradient of w from x and that of y.
//
// Idea      Sums run over pixels, and the lines of both operands across them. bf16 is multiplied
//           as it lies: filters are rows, taps and channels columns. fp32 and TF32 are not: there
//           taps and channels are rows, so that x can be turned on its way through registers,
//           and dy was turned before (and, for fp32, split); or, where that takes longer, is
//           turned where it lies (TURNERS). Sums are long, outputs few: nearly always `splits`
//           blocks share a tile.
// Threads   As in conv2d_fprop_10_wgmma.
// Shared    As in conv2d_fprop_10_wgmma.
// Source    As conv2d_fprop_10_wgmma.
#include "conv2d.cuh"
#include "conv2d_out.cuh"
#include "overlap.cuh"
#include "ptx.cuh"
#include "hopper.cuh"
#include "conv2d_wgmma.cuh"

// Whether taps and channels, and with them x, are rows.
constexpr bool X_FIRST = !BF16;

struct Copies {
    const TensorMap &x, &dy;
    int P, Q, C, K, pad_h, pad_w, k, pixel;
    Pixels at;
    Taps first;

    __device__ __forceinline__ void start(const Item& item)
    {
        const int of = X_FIRST ? item.row : item.column, tap = of / C;
        k = X_FIRST ? item.column : item.row;
        first = {tap % S, tap / S, of % C};
        pixel = item.first * TILE_D;
        at = Pixels(pixel, Q, P);
    }
    __device__ __forceinline__ void next(unsigned char* a, unsigned char* b, uint64* barrier)
    {
        Taps taps = first;
        for (int i = 0; i < (X_FIRST ? TILE_M : TILE_N); i += TILE_D) {
            load_im2col((X_FIRST ? a : b) + i * 128, x, barrier, taps.channel,
                        at.w * STRIDE_W - pad_w, at.h * STRIDE_H - pad_h, at.n, taps.s, taps.r);
            taps.next_channels(TILE_D, C);
        }
        if (X_FIRST && !TURNERS)
            load_box(b, dy, barrier, pixel, k);
        else
            for (int i = 0; i < (X_FIRST ? TILE_N : TILE_M); i += TILE_D)
                load_box((X_FIRST ? b : a) + i * 128, dy, barrier, k + i, pixel);
        if (TERMS == 3) load_box(b + BYTES_B, dy, barrier, pixel, K + k);
        pixel += TILE_D;
        for (at.w += TILE_D; at.w >= Q; at.w -= Q)
            if (++at.h == P) at.h = 0, ++at.n;
    }
};

extern "C" __global__ void CLUSTERED __launch_bounds__(THREADS, BLOCKS_PER_SM)
conv2d_wgrad_10_wgmma(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap dy,
#ifdef STREAM
                      Out* __restrict__ dw, float4* slots, float* flags, CONV2D_SIZES,
                      int splits)
#else
                      Out* __restrict__ dw, CONV2D_SIZES, int splits)
#endif
{
    const int pixels = N * P * Q, weights = R * S * C, tiles = (pixels - 1) / TILE_D + 1;
#if BF16
    using Consumer = FromShared<1, 1>;
#else
    using Consumer = ThroughRegisters<true>;
#endif
    const int rows = X_FIRST ? weights : K, columns = X_FIRST ? K : weights;
    run<Consumer, X_FIRST>(Items(rows, columns, tiles, splits),
                           Copies{x, dy, P, Q, C, K, pad_h, pad_w}, dw, nullptr, rows,
#ifdef STREAM
                           Slots{slots, flags},
#endif
                           View{columns});
}
