// SPDX-License-Identifier: MIT
// Rung 3: the paper's kernel. The input tile and the filter weights lie in shared memory.
//
// Idea      Tiling. A block computes TILE_K filters on TILE_P x TILE_Q pixels. For TILE_C input
//           channels at a time its threads fetch together the pixels that the tile needs, halo
//           included, and the weights; then every product reads both operands from shared memory.
//           A pixel fetched once serves R S taps of TILE_K filters, a weight TILE_P TILE_Q pixels.
// Threads   Thread (q, p, k) of the block computes output (k0 + k, p0 + p, q0 + q), still one
//           output a thread. A warp shares one filter, so its weights are broadcast.
// Shared    4 TILE_C (IN_H IN_W + TILE_K TAPS) bytes, static: 7,296 with the defaults.
// Leaves    Two shared loads for one multiply-add: shared memory gives a multiprocessor one word
//           a lane and cycle, its units could do four multiply-adds. Rung 4 takes this up.
// Source    Section 2 of the paper, technique 1 and Fig. 2.
#include "conv2d.cuh"

#ifndef TILE_Q
#define TILE_Q 16
#endif
#ifndef TILE_P
#define TILE_P 8
#endif
#ifndef TILE_K
#define TILE_K 4
#endif
#ifndef TILE_C
#define TILE_C 8
#endif

constexpr int THREADS = TILE_Q * TILE_P * TILE_K;
constexpr int IN_H = (TILE_P - 1) * STRIDE_H + R;
constexpr int IN_W = (TILE_Q - 1) * STRIDE_W + S;
// A filter's taps, filled up to whole 16-byte words: the compiler then reads four at once.
constexpr int TAPS = (R * S + 3) / 4 * 4;

// 1024 threads a multiprocessor leave a thread 64 registers. With all that it wants (96, to have
// more of the tile's loads in flight) fewer warps hide each other's waiting: U-Net's 18 layers
// took 8.6 ms for 6.7 ms (H200).
extern "C" __global__ void __launch_bounds__(TILE_Q * TILE_P * TILE_K, 1024 / THREADS)
conv2d_fprop_3_tiled(const float* __restrict__ x, const float* __restrict__ w,
                     const float* __restrict__ bias, float* __restrict__ y, CONV2D_SIZES)
{
    __shared__ float pixels[TILE_C][IN_H][IN_W];
    __shared__ __align__(16) float weights[TILE_C][TILE_K][TAPS];

    // Blocks count filters fastest: those that run together share the pixels in L2.
    const int blocks_k = divide_up(K, TILE_K), blocks_q = divide_up(Q, TILE_Q);
    const int blocks_p = divide_up(P, TILE_P);
    const int block = blockIdx.x;
    const int k0 = block % blocks_k * TILE_K;
    const int q0 = block / blocks_k % blocks_q * TILE_Q;
    const int p0 = block / (blocks_k * blocks_q) % blocks_p * TILE_P;
    const int n = block / (blocks_k * blocks_q * blocks_p);

    const int thread = threadIdx.x;
    const int tq = thread % TILE_Q;
    const int tp = thread / TILE_Q % TILE_P;
    const int tk = thread / (TILE_Q * TILE_P);
    const int h0 = p0 * STRIDE_H - pad_h, w0 = q0 * STRIDE_W - pad_w;

    float sum = 0.0f;
    for (int c0 = 0; c0 < C; c0 += TILE_C) {
        for (int i = thread; i < TILE_C * IN_H * IN_W; i += THREADS) {
            const int column = i % IN_W, row = i / IN_W % IN_H, c = i / (IN_W * IN_H);
            const int h = h0 + row, v = w0 + column;
            const bool inside = c0 + c < C && h >= 0 && h < H && v >= 0 && v < W;
            pixels[c][row][column] =
                inside ? x[(((size_t)n * C + c0 + c) * H + h) * W + v] : 0.0f;
        }
        for (int i = thread; i < TILE_C * TILE_K * R * S; i += THREADS) {
            const int tap = i % (R * S), c = i / (R * S) % TILE_C, k = i / (R * S * TILE_C);
            const bool inside = c0 + c < C && k0 + k < K;
            weights[c][k][tap] =
                inside ? w[((size_t)(k0 + k) * C + c0 + c) * (R * S) + tap] : 0.0f;
        }
        __syncthreads();  // the tile is complete before anyone reads it
#pragma unroll 4
        for (int c = 0; c < TILE_C; ++c)
#pragma unroll
            for (int r = 0; r < R; ++r)
#pragma unroll
                for (int s = 0; s < S; ++s)
                    sum = fmaf(pixels[c][tp * STRIDE_H + r][tq * STRIDE_W + s],
                               weights[c][tk][r * S + s], sum);
        __syncthreads();  // everyone has read before the next tile overwrites it
    }

    const int k = k0 + tk, p = p0 + tp, q = q0 + tq;
    if (k < K && p < P && q < Q)
        y[(((size_t)n * K + k) * P + p) * Q + q] = bias ? sum + bias[k] : sum;
}
