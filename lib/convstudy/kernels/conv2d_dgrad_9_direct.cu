// SPDX-License-Identifier: MIT
// Rung 9, backwards to few input channels: lanes share the filters, dy passes once.
//
// Idea      As a matrix product this has 3 columns. Here 16 lanes share 64 filters, four each, and
//           keep the weights of these in registers; for every pixel of dx they sum what their
//           filters contribute, and in the end add up what they have. dy, by far the larger array,
//           goes line by line through a ring in shared memory and is read from there once for each
//           row of the filter: with the defaults 432 multiply-adds for 18 vectors.
// Threads   Lanes 16 g ... 16 g + 15 compute four neighbouring pixels and then the next four,
//           lane l of them filters 4 l ...; a block goes down `lines` lines of dy, TILE_W pixels
//           of dx wide. In adding up, each lane hands over half of its pixels, then half of the
//           rest, until it is left with one. Filters beyond 64 are left to further launches, each
//           from its k0 on, which add to what the first wrote.
// Strides   Pixels are counted with their padding: of every STRIDE_W of them, and of every
//           STRIDE_H lines, it is then known in advance which taps reach which.
// Shared    4 (68 R S C + 64 RING COLUMNS) bytes, dynamic: 74,928 with the defaults; of dy in bf16
//           half as many for the ring.
// Source    M. Harris, "Optimizing parallel reduction in CUDA", NVIDIA 2007, for the sums of a
//           warp.
#include "conv2d.cuh"
#include "overlap.cuh"
#include "ptx.cuh"
#include "conv2d_direct.cuh"

// So many blocks of a multiprocessor the registers are to allow.
#ifndef BLOCKS_PER_SM
#define BLOCKS_PER_SM 3
#endif

constexpr int LANES = 16;
constexpr int REG_W = 4;
constexpr int STEPS = 2;
constexpr int TILE_W = THREADS / LANES * STEPS * REG_W;
// Lines of dy that contribute to one of dx, and those on their way.
constexpr int LIVE = (R - 1) / STRIDE_H + 1;
constexpr int RING = LIVE + 1;
// Columns of dy that contribute to a thread's pixels, those of them that lie to the left of the
// first pixel's own, and columns of a block.
constexpr int LEFT = (S - 1) / STRIDE_W;
constexpr int WINDOW = (REG_W - 1) / STRIDE_W + LEFT + 1;
constexpr int COLUMNS = (TILE_W - 1) / STRIDE_W + LEFT + 1;
// As many weights as fit into registers; with more taps they are read whenever they are needed.
constexpr bool KEPT = TAPS <= 27;
static_assert(REG_W % STRIDE_W == 0, "a thread's pixels begin with the same tap");

// Adds up what 16 lanes have: lane l gets channel l % 4 of pixel l / 4.
__device__ __forceinline__ float reduce(float (&sum)[REG_W][CHANNELS], int lane)
{
#pragma unroll
    for (int half = REG_W / 2; half > 0; half /= 2) {
        const int bit = 4 * half;
#pragma unroll
        for (int j = 0; j < half; ++j)
#pragma unroll
            for (int c = 0; c < CHANNELS; ++c) {
                const float given = lane & bit ? sum[j][c] : sum[j + half][c];
                const float kept = lane & bit ? sum[j + half][c] : sum[j][c];
                sum[j][c] = kept + __shfl_xor_sync(0xffffffffu, given, bit);
            }
    }
    float mine = 0.0f;
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) {
        float total = sum[0][c];
        total += __shfl_xor_sync(0xffffffffu, total, 2);
        total += __shfl_xor_sync(0xffffffffu, total, 1);
        if (lane % 4 == c) mine = total;
    }
    return mine;
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, BLOCKS_PER_SM)
conv2d_dgrad_9_direct(const Output* __restrict__ dy, const Element* __restrict__ w,
                      Element* __restrict__ dx, CONV2D_SIZES, int lines, int k0)
{
    wait_for_others();
    let_others_begin();
    const int lane = threadIdx.x % LANES, group = threadIdx.x / LANES;
    // With their padding counted, pixels begin with these, and end before those.
    const int first_v = pad_w / STRIDE_W * STRIDE_W, first_p = pad_h / STRIDE_H;
    const int last_p = (pad_h + H - 1) / STRIDE_H;
    const int across = divide_up(pad_w + W - first_v, TILE_W);
    const int down = divide_up(last_p + 1 - first_p, lines);
    const int v0 = first_v + blockIdx.x % across * TILE_W;
    const int p0 = first_p + blockIdx.x / across % down * lines;
    const int p1 = min(p0 + lines, last_p + 1);
    const int n = blockIdx.x / across / down;
    dy += (size_t)n * P * Q * K;
    dx += (size_t)n * H * W * CHANNELS;
    Output* const ring = (Output*)(room + TAPS * PITCH_K);
    const auto slot = [&](int p) {
        return ring + (unsigned)(p + RING) % RING * (COLUMNS * TILE_K);
    };

    const auto fetch = [&](int p) {
        fetch_gradients<COLUMNS>(slot(p), dy + (size_t)p * Q * K, p >= 0 && p < P,
                                 v0 / STRIDE_W - LEFT, Q, k0, K);
    };
#pragma unroll 1
    for (int p = p0 - LIVE + 1; p <= p0; ++p) fetch(p);
    fetch_filters(room, w, k0, K);
    cp_async_commit();
    float kept[KEPT ? TAPS : 1][4];
    if (KEPT) {
        cp_async_wait<0>();
        __syncthreads();  // all filters are there
#pragma unroll
        for (int tap = 0; tap < (KEPT ? TAPS : 1); ++tap)
            read(kept[tap], room + tap * PITCH_K + 4 * lane);
    }

    // Adds what one line of dy contributes through row r of the filter.
    const auto add = [&](float (&sum)[REG_W][CHANNELS], int r, const Output* line) {
#pragma unroll
        for (int column = 0; column < WINDOW; ++column) {
            float given[4];
            read(given, line + column * TILE_K);
#pragma unroll
            for (int s = 0; s < S; ++s) {
                const int j = (column - LEFT) * STRIDE_W + s;
                if (j < 0 || j >= REG_W) continue;
#pragma unroll
                for (int c = 0; c < CHANNELS; ++c) {
                    const int tap = (r * S + s) * CHANNELS + c;
                    float weight[4];
                    if (!KEPT) read(weight, room + tap * PITCH_K + 4 * lane);
#pragma unroll
                    for (int i = 0; i < 4; ++i)
                        sum[j][c] = fmaf(given[i], KEPT ? kept[KEPT * tap][i] : weight[i],
                                         sum[j][c]);
                }
            }
        }
    };

    for (int p = p0; p < p1; ++p) {
        cp_async_wait<0>();
        __syncthreads();  // line p is there, and everyone is done with the oldest, in whose
                          // place the next is fetched
        if (p + 1 < p1) fetch(p + 1);
        cp_async_commit();
#pragma unroll(KEPT ? STRIDE_H : 1)
        for (int phase = 0; phase < STRIDE_H; ++phase) {
            const int h = p * STRIDE_H + phase - pad_h;
            if (h < 0 || h >= H) continue;
#pragma unroll 1
            for (int step = 0; step < STEPS; ++step) {
                const int first = (group * STEPS + step) * REG_W;
                float sum[REG_W][CHANNELS] = {};
#pragma unroll(KEPT ? LIVE : 1)
                for (int back = 0; back < LIVE; ++back)
                    if (phase + back * STRIDE_H < R)
                        add(sum, phase + back * STRIDE_H,
                            slot(p - back) + first / STRIDE_W * TILE_K + 4 * lane);
                const float value = reduce(sum, lane);
                const int v = v0 + first + lane / 4 - pad_w;
                if (lane % 4 >= CHANNELS || v < 0 || v >= W) continue;
                Element& to = dx[((size_t)h * W + v) * CHANNELS + lane % 4];
                to = k0 > 0 ? to + value : value;
            }
        }
    }
}
