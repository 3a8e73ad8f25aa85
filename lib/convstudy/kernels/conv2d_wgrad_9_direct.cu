// SPDX-License-Identifier: MIT
// Rung 9, backwards to the filters of few input channels: all sums stay in registers.
//
// Idea      Few channels make few weights: 16 lanes hold the sums of 64 filters and all their taps,
//           four filters each, and add up pixel after pixel. They read dy once, four filters at a
//           time, and of x one line of REG_Q pixels with their halo for each row of the filter,
//           which serves all filters: with the defaults 432 multiply-adds for 19 vectors. At the
//           end the groups of a block add up what they have, and `slices` blocks, each of which
//           went over a part of the pixels, leave as many parts for conv2d_splits_1_sum.
// Threads   Lanes 16 g ... 16 g + 15 take REG_Q STEPS neighbouring pixels of a tile of
//           TILE_P x TILE_Q, lane l of them filters 4 l ...; rows of the filter beyond ROWS are
//           other blocks'.
// Shared    4 max(STAGES (64 TILE_P TILE_Q + IN_H PITCH), 68 WARPS ROWS S C) bytes, dynamic:
//           70,528 with the defaults; of dy in bf16 half as much for that.
// Source    Split-K, as in NVIDIA CUTLASS, "Efficient GEMM in CUDA".
#include "conv2d.cuh"
#include "overlap.cuh"
#include "ptx.cuh"
#include "conv2d_direct.cuh"

// So many blocks of a multiprocessor the registers are to allow.
#ifndef BLOCKS_PER_SM
#define BLOCKS_PER_SM 3
#endif
#ifndef REG_Q
#define REG_Q 4
#endif
#ifndef STEPS
#define STEPS 4
#endif
// Rows of the filter that one block sums.
#ifndef ROWS
#define ROWS FILTER_R
#endif

constexpr int LANES = 16;
constexpr int GROUPS_Q = 2;
constexpr int STAGES = 2;
constexpr int TILE_Q = GROUPS_Q * STEPS * REG_Q;
constexpr int TILE_P = WARPS;
constexpr int IN_H = (TILE_P - 1) * STRIDE_H + ROWS;
constexpr int PITCH = ((TILE_Q - 1) * STEP + LINE_TAPS + 3) / 4 * 4;
constexpr int WINDOW = ((REG_Q - 1) * STEP + LINE_TAPS + 3) / 4 * 4;
// In words of 4 bytes, and that of which the gradients take.
constexpr int GIVEN = TILE_P * TILE_Q * TILE_K * sizeof(Output) / sizeof(Element);
constexpr int STAGE = GIVEN + IN_H * PITCH;
constexpr int SUMS = ROWS * LINE_TAPS;
static_assert(REG_Q % 4 == 0, "a thread's pixels start on 16 bytes");

extern "C" __global__ void __launch_bounds__(32 * WARPS, BLOCKS_PER_SM)
conv2d_wgrad_9_direct(const Element* __restrict__ x, const Output* __restrict__ dy,
                      float* __restrict__ dw, CONV2D_SIZES, int slices)
{
    wait_for_others();
    let_others_begin();
    const int lane = threadIdx.x % LANES, group = threadIdx.x / LANES, warp = threadIdx.x / 32;
    const int blocks_k = divide_up(K, TILE_K), blocks_r = divide_up(R, ROWS);
    const int k0 = blockIdx.x % blocks_k * TILE_K;
    const int r0 = blockIdx.x / blocks_k % blocks_r * ROWS;
    const int slice = blockIdx.x / blocks_k / blocks_r;
    const int across = divide_up(Q, TILE_Q), down = divide_up(P, TILE_P);
    const int tiles = N * down * across, each = divide_up(tiles, slices);
    const int first = min(slice * each, tiles), last = min(first + each, tiles);

    const auto fetch = [&](int tile) {
        if (tile < last) {
            Element* const to = room + tile % STAGES * STAGE;
            const int q = tile % across * TILE_Q, p = tile / across % down * TILE_P;
            const int n = tile / across / down;
#pragma unroll 1
            for (int line = 0; line < TILE_P; ++line)
                fetch_gradients<TILE_Q>((Output*)to + line * (TILE_Q * TILE_K),
                                        dy + ((size_t)n * P + p + line) * Q * K, p + line < P, q,
                                        Q, k0, K);
            fetch_lines<IN_H, PITCH, PITCH>(
                to + GIVEN, x + (size_t)n * H * W * CHANNELS,
                p * STRIDE_H - pad_h + r0, (q * STRIDE_W - pad_w) * CHANNELS, H, W * CHANNELS);
        }
        cp_async_commit();
    };

    float sum[SUMS][4] = {};
    for (int i = 0; i < STAGES - 1; ++i) fetch(first + i);
    for (int tile = first; tile < last; ++tile) {
        cp_async_wait<STAGES - 2>();
        __syncthreads();  // this tile is there, and everyone is done with the one before it, in
                          // whose place the next is fetched
        fetch(tile + STAGES - 1);
        const Element* const stage = room + tile % STAGES * STAGE;
        const Output* gradients =
            (const Output*)stage + (group * STEPS * REG_Q) * TILE_K + 4 * lane;
        const Element* lines = stage + GIVEN + warp * STRIDE_H * PITCH
                               + group % GROUPS_Q * (STEPS * REG_Q * STEP);
#pragma unroll 1
        for (int part = 0; part < STEPS; ++part) {
            float given[REG_Q][4];
#pragma unroll
            for (int j = 0; j < REG_Q; ++j) read(given[j], gradients + j * TILE_K);
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                float window[WINDOW];
                read(window, lines + r * PITCH);
#pragma unroll
                for (int j = 0; j < REG_Q; ++j)
#pragma unroll
                    for (int tap = 0; tap < LINE_TAPS; ++tap)
#pragma unroll
                        for (int i = 0; i < 4; ++i) {
                            float& s = sum[r * LINE_TAPS + tap][i];
                            s = fmaf(window[j * STEP + tap], given[j][i], s);
                        }
            }
            gradients += REG_Q * TILE_K;
            lines += REG_Q * STEP;
        }
    }

    cp_async_wait<0>();
    __syncthreads();  // everyone is done with the tiles, in whose place the sums of warps go
#pragma unroll
    for (int tap = 0; tap < SUMS; ++tap) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[tap][i] += __shfl_xor_sync(0xffffffffu, sum[tap][i], LANES);
        if (group % GROUPS_Q == 0)
            *(float4*)(room + (warp * SUMS + tap) * PITCH_K + 4 * lane) =
                make_float4(sum[tap][0], sum[tap][1], sum[tap][2], sum[tap][3]);
    }
    __syncthreads();  // the sums of all warps are there
    dw += ((size_t)slice * K + k0) * TAPS + r0 * LINE_TAPS;
    for (int i = threadIdx.x; i < SUMS * TILE_K; i += THREADS) {
        const int tap = i % SUMS, k = i / SUMS;
        if (k0 + k >= K || r0 * LINE_TAPS + tap >= TAPS) continue;
        float total = 0.0f;
#pragma unroll
        for (int from = 0; from < WARPS; ++from) total += room[(from * SUMS + tap) * PITCH_K + k];
        dw[(size_t)k * TAPS + tap] = total;
    }
}
