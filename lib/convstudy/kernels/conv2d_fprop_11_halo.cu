// SPDX-License-Identifier: MIT
// Rung 11: the paper's tile with its halo again, on rung 10's tensor cores.
//
// Idea      Rung 10 fetches every pixel once a tap, nine times for a 3 x 3 filter; with few
//           filters that is more than comes from L2 in the time of the products. Here a patch of x
//           comes once, with its halo, and each tap multiplies it from another line on. Only w
//           goes through the stages.
// Threads   Two warpgroups that multiply, 128 pixels x TILE_N filters each, and one that copies.
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

constexpr int FILTERS_ACROSS = 0;
constexpr bool TURNED_TAPS = false;
#include "conv2d_halo.cuh"

struct Copies {
    const TensorMap &x, &w;
    int C, pad_h, pad_w;
    Item item;
    int tap, c;
    Round<PATCHES> patches;

    __device__ __forceinline__ void start(const Item& next)
    {
        item = next;
        tap = c = 0;
    }
    __device__ __forceinline__ void next(unsigned char*, unsigned char* b, uint64* barrier)
    {
        load_box(b, w, barrier, tap * C + c, item.column);
        if (tap == 0) {
            ask(patches, [&](unsigned char* to, uint64* barrier) {
                load_box(to, x, barrier, c, item.w - pad_w, item.h - pad_h, item.n);
            });
        }
        if (++tap == R * S) tap = 0, c += TILE_D;
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM)
conv2d_fprop_11_halo(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w,
#ifdef SUMMAND
                     const Out* __restrict__ residual,
#endif
#ifdef STATISTICS
                     const float* __restrict__ bias, Out* y, float* moments,
                     CONV2D_SIZES VIEW_SIZES)
#else
                     const float* __restrict__ bias, Out* __restrict__ y, CONV2D_SIZES VIEW_SIZES)
#endif
{
    run<FromPatches, false>(Items(N, P, Q, K, R * S * C / TILE_D), Copies{x, w, C, pad_h, pad_w}, y,
#ifdef STATISTICS
                            bias, N * P * Q, moments, VIEW_OF(K, P, Q));
#else
                            bias, N * P * Q, VIEW_OF(K, P, Q));
#endif
}
