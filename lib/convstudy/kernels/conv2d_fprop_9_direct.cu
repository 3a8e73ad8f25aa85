// SPDX-License-Identifier: MIT
// Rung 9: few input channels, no matrix product: 8 pixels x 8 filters a thread.
//
// Idea      With 3 channels a filter has 27 weights: too little depth for a matrix product, whose
//           tiles of it are mostly padding, fetched word by word. Here the weights of 64 filters
//           stay in shared memory while the block goes down the image. For one row of the filter a
//           thread reads one line of x, of REG_Q pixels with their halo, and of each tap 8
//           weights: with the defaults 576 multiply-adds for 26 vectors. It stores vectors of
//           neighbouring filters, eight lanes 128 bytes side by side.
// Threads   Lane l of a warp computes filters 4 (l % 8) ... and the four 32 further, of row
//           p0 + l / 8, columns q0 + REG_Q warp ...: a block covers 64 filters on 4 x TILE_Q
//           pixels, and then on the tile below, `tiles` of them.
// Shared    4 (68 R S C + 2 IN_H PITCH) bytes, dynamic: 12,336 with the defaults.
// Source    V. Volkov, "Better performance at lower occupancy", GTC 2010.
#include "conv2d.cuh"
#include "conv2d_out.cuh"
#include "overlap.cuh"
#include "ptx.cuh"
#include "conv2d_direct.cuh"

// So many blocks of a multiprocessor the registers are to allow.
#ifndef BLOCKS_PER_SM
#define BLOCKS_PER_SM 4
#endif
#ifndef REG_Q
#define REG_Q 8
#endif

constexpr int TILE_P = 4;
constexpr int TILE_Q = WARPS * REG_Q;
constexpr int IN_H = (TILE_P - 1) * STRIDE_H + R;
constexpr int LENGTH = (((TILE_Q - 1) * STEP + LINE_TAPS) + 3) / 4 * 4;
// 8 or 24 words beyond a multiple of 32: the four rows of a warp are read from banks of their own.
constexpr int PITCH = (LENGTH + 7) / 16 * 16 + 8;
constexpr int WINDOW = ((REG_Q - 1) * STEP + LINE_TAPS + 3) / 4 * 4;
static_assert(REG_Q % 4 == 0, "a thread's pixels start on 16 bytes");

__device__ __forceinline__ void store(Output* to, const float* value, int left)
{
#if BF16
    if (left > 0)
        *(uint2*)to = make_uint2(to_bf16x2(value[0], value[1]), to_bf16x2(value[2], value[3]));
#else
    if (VECTOR == 4) {
        if (left > 0) *(float4*)to = make_float4(value[0], value[1], value[2], value[3]);
    } else {
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (i < left) to[i] = value[i];
    }
#endif
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, BLOCKS_PER_SM)
conv2d_fprop_9_direct(const Element* __restrict__ x, const Element* __restrict__ w,
                      const float* __restrict__ bias, Output* __restrict__ y, CONV2D_SIZES,
                      int tiles)
{
    wait_for_others();
    let_others_begin();
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int blocks_k = divide_up(K, TILE_K), across = divide_up(Q, TILE_Q);
    const int down = divide_up(P, tiles * TILE_P);
    const int k0 = blockIdx.x % blocks_k * TILE_K;
    const int q0 = blockIdx.x / blocks_k % across * TILE_Q;
    const int p0 = blockIdx.x / (blocks_k * across) % down * (tiles * TILE_P);
    const int n = blockIdx.x / (blocks_k * across * down);
    const int p1 = min(p0 + tiles * TILE_P, P);
    x += (size_t)n * H * W * CHANNELS;
    y += (size_t)n * P * Q * K;
    Element* const lines = room + TAPS * PITCH_K;

    const auto fetch = [&](int p, int stage) {
        fetch_lines<IN_H, LENGTH, PITCH>(lines + stage * IN_H * PITCH, x, p * STRIDE_H - pad_h,
                                         (q0 * STRIDE_W - pad_w) * CHANNELS, H, W * CHANNELS);
        cp_async_commit();
    };
    fetch_filters(room, w, k0, K);
    fetch(p0, 0);

    for (int tile = p0, stage = 0; tile < p1; tile += TILE_P, stage ^= 1) {
        cp_async_wait<0>();
        __syncthreads();  // this tile is there, and with the first the filters, and everyone is
                          // done with the one before, in whose place the next is fetched
        if (tile + TILE_P < p1) fetch(tile + TILE_P, stage ^ 1);

        float sum[REG_Q][8] = {};
        const Element* line =
            lines + (stage * IN_H + lane / 8 * STRIDE_H) * PITCH + warp * REG_Q * STEP;
        const Element* filters = room + lane % 8 * 4;
#pragma unroll 1
        for (int r = 0; r < R; ++r) {
            float window[WINDOW];
            read(window, line);
#pragma unroll
            for (int tap = 0; tap < LINE_TAPS; ++tap) {
                float near[4], far[4];
                read(near, filters);
                read(far, filters + 32);
#pragma unroll
                for (int j = 0; j < REG_Q; ++j)
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        sum[j][i] = fmaf(window[j * STEP + tap], near[i], sum[j][i]);
                        sum[j][4 + i] = fmaf(window[j * STEP + tap], far[i], sum[j][4 + i]);
                    }
                filters += PITCH_K;
            }
            line += PITCH;
        }

        const int p = tile + lane / 8, q = q0 + warp * REG_Q, k = k0 + lane % 8 * 4;
        if (bias)
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                const int filter = k + i % 4 + i / 4 * 32;
                const float add = filter < K ? bias[filter] : 0.0f;
#pragma unroll
                for (int j = 0; j < REG_Q; ++j) sum[j][i] += add;
            }
        if (RELU)
#pragma unroll
            for (int i = 0; i < 8; ++i)
#pragma unroll
                for (int j = 0; j < REG_Q; ++j) sum[j][i] = activated(sum[j][i]);
        Output* to = y + ((long long)p * Q + q) * K + k;
#pragma unroll
        for (int j = 0; j < REG_Q; ++j) {
            if (p < P && q + j < Q) {
                store(to, sum[j], K - k);
                store(to + 32, sum[j] + 4, K - k - 32);
            }
            to += K;
        }
    }
}
