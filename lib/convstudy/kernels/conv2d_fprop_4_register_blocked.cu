// SPDX-License-Identifier: MIT
// Rung 4: each thread computes REG_K x REG_Q outputs from registers.
//
// Idea      Register blocking: what tiling alone leaves on the table. For one input channel and
//           one filter row a thread reads REG_Q + S - 1 pixels and S REG_K weights from shared
//           memory into registers and makes S REG_K REG_Q multiply-adds of them: with the
//           defaults 96 products for 30 words, where rung 3 reads 192.
// Threads   Thread (tq, tp, tk) computes filters k0 + REG_K tk ..., row p0 + tp, columns
//           q0 + REG_Q tq ...: a block covers TILE_K filters on TILE_P x TILE_Q pixels.
// Shared    4 TILE_C (IN_H PITCH + R S PITCH_K) bytes, static: 26,496 with the defaults.
//           Weights lie with k fastest, so that a thread's REG_K weights are one vector; rows of
//           k are 4 words longer than the tile, or all threads would store into one bank.
// Source    V. Volkov, "Better performance at lower occupancy", GTC 2010.
#include "conv2d.cuh"

#ifndef REG_K
#define REG_K 8
#endif
#ifndef REG_Q
#define REG_Q 4
#endif
#ifndef THREADS_Q
#define THREADS_Q 8
#endif
#ifndef THREADS_P
#define THREADS_P 4
#endif
#ifndef THREADS_K
#define THREADS_K 8
#endif
#ifndef TILE_C
#define TILE_C 8
#endif

constexpr int TILE_Q = THREADS_Q * REG_Q;
constexpr int TILE_P = THREADS_P;
constexpr int TILE_K = THREADS_K * REG_K;
constexpr int THREADS = THREADS_Q * THREADS_P * THREADS_K;
constexpr int IN_H = (TILE_P - 1) * STRIDE_H + R;
constexpr int IN_W = (TILE_Q - 1) * STRIDE_W + S;
// Rows start on 16 bytes, so that neighbouring pixels of a thread are read as one vector.
constexpr int PITCH = (IN_W + 3) / 4 * 4;
constexpr int PITCH_K = TILE_K + 4;
constexpr int WINDOW = (REG_Q - 1) * STRIDE_W + S;

// The 1 promises nothing but one block a multiprocessor: without it the assembler saves registers
// for more, and spills in some tiles.
extern "C" __global__ void __launch_bounds__(THREADS_Q * THREADS_P * THREADS_K, 1)
conv2d_fprop_4_register_blocked(const float* __restrict__ x, const float* __restrict__ w,
                                const float* __restrict__ bias, float* __restrict__ y,
                                CONV2D_SIZES)
{
    __shared__ __align__(16) float pixels[TILE_C][IN_H][PITCH];
    __shared__ __align__(16) float weights[TILE_C][R * S][PITCH_K];

    const int blocks_k = divide_up(K, TILE_K), blocks_q = divide_up(Q, TILE_Q);
    const int blocks_p = divide_up(P, TILE_P);
    const int block = blockIdx.x;
    const int k0 = block % blocks_k * TILE_K;
    const int q0 = block / blocks_k % blocks_q * TILE_Q;
    const int p0 = block / (blocks_k * blocks_q) % blocks_p * TILE_P;
    const int n = block / (blocks_k * blocks_q * blocks_p);

    const int thread = threadIdx.x;
    const int tq = thread % THREADS_Q;
    const int tp = thread / THREADS_Q % THREADS_P;
    const int tk = thread / (THREADS_Q * THREADS_P);
    const int h0 = p0 * STRIDE_H - pad_h, w0 = q0 * STRIDE_W - pad_w;

    float sum[REG_K][REG_Q] = {};
    for (int c0 = 0; c0 < C; c0 += TILE_C) {
        for (int i = thread; i < TILE_C * IN_H * IN_W; i += THREADS) {
            const int column = i % IN_W, row = i / IN_W % IN_H, c = i / (IN_W * IN_H);
            const int h = h0 + row, v = w0 + column;
            const bool inside = c0 + c < C && h >= 0 && h < H && v >= 0 && v < W;
            pixels[c][row][column] =
                inside ? x[(((size_t)n * C + c0 + c) * H + h) * W + v] : 0.0f;
        }
        // Threads count a filter's taps fastest, as they lie in w: the reads are coalesced and
        // the writes to shared memory scattered.
        for (int i = thread; i < TILE_C * R * S * TILE_K; i += THREADS) {
            const int tap = i % (R * S), c = i / (R * S) % TILE_C, k = i / (R * S * TILE_C);
            const bool inside = c0 + c < C && k0 + k < K;
            weights[c][tap][k] =
                inside ? w[((size_t)(k0 + k) * C + c0 + c) * (R * S) + tap] : 0.0f;
        }
        __syncthreads();  // the tile is complete before anyone reads it
        for (int c = 0; c < TILE_C; ++c)
#pragma unroll
            for (int r = 0; r < R; ++r) {
                float window[WINDOW];
#pragma unroll
                for (int j = 0; j < WINDOW; ++j)
                    window[j] = pixels[c][tp * STRIDE_H + r][tq * REG_Q * STRIDE_W + j];
#pragma unroll
                for (int s = 0; s < S; ++s) {
                    float tap[REG_K];
#pragma unroll
                    for (int k = 0; k < REG_K; ++k) tap[k] = weights[c][r * S + s][tk * REG_K + k];
#pragma unroll
                    for (int k = 0; k < REG_K; ++k)
#pragma unroll
                        for (int j = 0; j < REG_Q; ++j)
                            sum[k][j] = fmaf(window[j * STRIDE_W + s], tap[k], sum[k][j]);
                }
            }
        __syncthreads();  // everyone has read before the next tile overwrites it
    }

    const int p = p0 + tp;
    if (p >= P) return;
#pragma unroll
    for (int i = 0; i < REG_K; ++i) {
        const int k = k0 + tk * REG_K + i;
#pragma unroll
        for (int j = 0; j < REG_Q; ++j) {
            const int q = q0 + tq * REG_Q + j;
            if (k < K && q < Q)
                y[(((size_t)n * K + k) * P + p) * Q + q] =
                    bias ? sum[i][j] + bias[k] : sum[i][j];
        }
    }
}
