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
#include "conv2d_out.cuh"
#include "overlap.cuh"
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

struct Copies {
    const TensorMap &dy, &w;
    int H, W, C, K, pad_h, pad_w, c;
    Pixels at;
    Taps taps;

    __device__ __forceinline__ void start(const Item& item)
    {
        at = Pixels(FILTERS_FIRST ? item.column : item.row, W, H);
        const int tap = item.first % (R * S);
        taps = {tap % S, tap / S, item.first / (R * S) * TILE_D};
        c = FILTERS_FIRST ? item.row : item.column;
    }
    __device__ __forceinline__ void next(unsigned char* a, unsigned char* b, uint64* barrier)
    {
        const int tap = taps.r * S + taps.s, k = taps.channel;
        load_im2col(FILTERS_FIRST ? b : a, dy, barrier, k, at.w - (S - 1 - pad_w),
                    at.h - (R - 1 - pad_h), at.n, S - 1 - taps.s, R - 1 - taps.r);
#if FILTERS_FIRST
        for (int i = 0; i < TILE_M; i += TILE_D) load_box(a + i * 128, w, barrier, c + i, tap, k);
#elif BF16
        for (int i = 0; i < TILE_N; i += TILE_D) load_box(b + i * 128, w, barrier, c + i, tap, k);
#else
        load_box(b, w, barrier, tap * K + k, c);
        if (TERMS == 3) load_box(b + BYTES_B, w, barrier, tap * K + k, C + c);
#endif
        taps.next_tap();
    }
};

extern "C" __global__ void CLUSTERED __launch_bounds__(THREADS, BLOCKS_PER_SM)
conv2d_dgrad_10_wgmma(const __grid_constant__ TensorMap dy, const __grid_constant__ TensorMap w,
#ifdef STREAM
                      Out* __restrict__ dx, float4* slots, float* flags, CONV2D_SIZES,
                      int splits)
#else
                      Out* __restrict__ dx, CONV2D_SIZES, int splits)
#endif
{
    const int pixels = N * H * W;
    const int rows = FILTERS_FIRST ? C : pixels, columns = FILTERS_FIRST ? pixels : C;
    run<Consumer, FILTERS_FIRST>(Items(rows, columns, R * S * K / TILE_D, splits),
                                 Copies{dy, w, H, W, C, K, pad_h, pad_w}, dx, nullptr, rows,
#ifdef STREAM
                                 Slots{slots, flags},
#endif
                                 View{columns});
}
