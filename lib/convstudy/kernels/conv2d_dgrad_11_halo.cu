// SPDX-License-Identifier: MIT
// Rung 11, backwards to the input.
//
// Idea      As conv2d_fprop_11_halo, with patches of dy and the filters turned by half a circle;
//           for TF32 w was turned before, as for conv2d_dgrad_10_wgmma.
// Threads   Two warpgroups that multiply, 128 pixels x TILE_N channels each, and one that copies.
// Shared    2 patches of 41,472 bytes (3 x 3), STAGES (128 TILE_N + 16) and 16,448 bytes, dynamic.
// Source    As conv2d_fprop_10_wgmma; the paper's tile with halo.
#define CONSUMERS 2
#ifndef PINGPONG
#define PINGPONG 0
#endif
#if PINGPONG
#define ROWS_64 1
#define TILE_N 256
#else
#define ROWS_64 2
#endif
#define PATCHES 2
#ifndef TERMS
#define TERMS 1
#endif
#include "conv2d.cuh"
#include "conv2d_out.cuh"
#include "overlap.cuh"
#include "ptx.cuh"
#include "hopper.cuh"
#include "conv2d_wgmma.cuh"

constexpr int FILTERS_ACROSS = BF16;
constexpr bool TURNED_TAPS = true;
#include "conv2d_halo.cuh"

struct Copies {
    const TensorMap &dy, &w;
    int K, pad_h, pad_w;
    Item item;
    int tap, k;
    Round<PATCHES> patches;

    __device__ __forceinline__ void start(const Item& next)
    {
        item = next;
        tap = k = 0;
    }
    __device__ __forceinline__ void next(unsigned char*, unsigned char* b, uint64* barrier)
    {
#if BF16
        for (int i = 0; i < TILE_N; i += TILE_D)
            load_box(b + i * 128, w, barrier, item.column + i, tap, k);
#else
        load_box(b, w, barrier, tap * K + k, item.column);
#endif
        if (tap == 0) {
            ask(patches, [&](unsigned char* to, uint64* barrier) {
                load_box(to, dy, barrier, k, item.w - (S - 1 - pad_w), item.h - (R - 1 - pad_h),
                         item.n);
            });
        }
        if (++tap == R * S) tap = 0, k += TILE_D;
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM)
conv2d_dgrad_11_halo(const __grid_constant__ TensorMap dy, const __grid_constant__ TensorMap w,
                     Out* __restrict__ dx, CONV2D_SIZES)
{
    run<FromPatches, false>(Items(N, H, W, C, R * S * K / TILE_D), Copies{dy, w, K, pad_h, pad_w},
                            dx, nullptr, N * H * W, View{C});
}
