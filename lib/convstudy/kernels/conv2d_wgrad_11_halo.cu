// SPDX-License-Identifier: MIT
// Rung 11, backwards to the filters: one window of pixels for all taps of a row.
//
// Idea      Rung 10 fetches x once a tap; with 64 filters to multiply it by, that is twice what
//           comes from L2 in the time of the products. Here a stage has TILE_D pixels of a line of
//           dy, and of x what the filter's rows meet there: windows with two pixels more, which
//           each tap reads from another line on. Beyond a line's end dy is zero, so that no window
//           runs over it. bf16 is multiplied as it lies. Of TF32, x is turned on its way through
//           registers. dy is turned where it lies, by warps that have nothing else to do, if each
//           number serves nine taps: a launch before took up to a third of the time for it. For
//           three taps that launch is faster (64 images of dec1a: 0.70 ms, and 0.81 without):
//           shared memory, which feeds the products, has little to spare.
// Ahead     While TF32's products are under way, the pixels of the next are read; not over the end
//           of a stage, where the compiler would wait for each product (C7513). One product ahead
//           instead of three took 1% to 3% longer; addresses worked out anew for each product, 1.5
//           times as long: the warps had no cycles left to issue it.
// Threads   Three warpgroups that multiply, WINDOWS taps of 64 channels x TILE_N filters each, and
//           one that copies and turns. WINDOWS 3: all taps at once; 1: a row of them.
// Shared    STAGES (10,240 WINDOWS + 128 TILE_N + 24) and 24,592 bytes, dynamic; bf16: 9,216.
// Source    As conv2d_fprop_10_wgmma; the paper's tile with halo.
#define CONSUMERS 3
// Rows of taps that a block has.
#ifndef WINDOWS
#define WINDOWS 1
#endif
#define ROWS_64 WINDOWS
#define TERMS 1
#define TURNERS (BF16 || WINDOWS == 1 ? 0 : 2)
// C: where a tap's rows of out begin depends on it.
#ifndef CHANNELS
#define CHANNELS 64
#endif
#ifndef PARTS
#define PARTS 1
#endif
#include "conv2d.cuh"
#include "conv2d_out.cuh"
#include "overlap.cuh"
#include "ptx.cuh"
#include "hopper.cuh"
#include "conv2d_wgmma.cuh"

static_assert(R == 3 && S == CONSUMERS, "a warpgroup has a tap, or a row of them");
static_assert(OUT_BYTES == 4, "out lies column by column, as floats");

// Of a tile of out: which channels it has, 64 of them, and its first row of taps.
struct Corner {
    int channel, r;

    __device__ __forceinline__ explicit Corner(const Item& item)
    {
        const int tile = item.row / TILE_M;
        channel = tile / (R / WINDOWS) * 64;
        r = tile % (R / WINDOWS) * WINDOWS;
    }
    // Of out: the first of a tap's rows.
    __device__ __forceinline__ int row(int tap) const
    {
        return (r * S + tap) * CHANNELS + channel;
    }
};

#if BF16
struct FromWindows {
    static __device__ __forceinline__ int place(const Item& item, int block, int i)
    {
        return Corner(item).row(block) + threadIdx.x / 32 % 4 * 16 + i / 4 % 2 * 8 + i / 8 * 4 +
               i % 4;
    }
    __device__ __forceinline__ void multiply(Sums& sums, const unsigned char* stage)
    {
        const uint64 b = describe(stage + BYTES_A, 1024, TILE_D * 128);
#pragma unroll
        for (int m = 0; m < ROWS_64; ++m) {
            const int tap = threadIdx.x / 128 * ROWS_64 + m;
            const uint64 a = describe(stage + tap / S * BYTES_LINES + tap % S * 128, 1024, 0);
#pragma unroll
            for (int k = 0; k < 4; ++k)
                wgmma_bf16<1, 1>(sums.d[m], move(a, k * 2048), move(b, k * 2048), 1);
        }
    }
    __device__ __forceinline__ void run(Sums& sums, int tiles, Turn& turn)
    {
        sums.clear();
        int before = 0;
        for (int tile = 0; tile < tiles; ++tile, turn.next()) {
            barrier_wait(full(turn.stage), turn.parity);
            sums.keep();
            wgmma_fence();
            multiply(sums, stage_of(turn.stage));
            wgmma_commit();
            if (tile) {
                wgmma_wait<1>();
                release(empty(before));
            }
            before = turn.stage;
        }
        wgmma_wait<0>();
        if (tiles) release(empty(before));
        sums.keep();
    }
};
#else
// Of a warp's 16 rows, the second 8 are in the second half of a window's channels. Among 8, lanes of
// the other four are 64 bytes from the first, which the exchange of chunks leaves in other banks.
struct FromWindows {
    int from[ROWS_64];  // of a stage, where each tap's first pixels begin for this thread

    static __device__ __forceinline__ int place(const Item& item, int block, int i)
    {
        return Corner(item).row(block) + i / 4 % 2 * 32 + i / 8 * 16 + threadIdx.x / 32 % 4 * 4 +
               i % 4;
    }
    __device__ __forceinline__ FromWindows()
    {
        const int warp = threadIdx.x / 32 % 4, g = threadIdx.x % 32 / 4;
#pragma unroll
        for (int m = 0; m < ROWS_64; ++m) {
            const int tap = threadIdx.x / 128 * ROWS_64 + m, line = threadIdx.x % 4 + tap % S;
            const int chunk = (g / 4 * 4 + warp) ^ (line % 8);
            from[m] = tap / S * 2 * BYTES_LINES + line * 128 + chunk * 16 + g % 4 * 4;
        }
    }
    // Reads 8 pixels for one of this warpgroup's taps. The copies have rounded them.
    __device__ __forceinline__ void fetch(unsigned (&x)[4], const unsigned char* stage,
                                          int product, int m)
    {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int first = i / 2 ? (from[m] ^ 64) + 4 * 128 : from[m];
            x[i] = *(const unsigned*)(stage + first + product * 8 * 128 + i % 2 * BYTES_LINES);
        }
    }
    __device__ __forceinline__ void run(Sums& sums, int tiles, Turn& turn)
    {
        constexpr int PRODUCTS = 4 * ROWS_64, AHEAD = 4;
        unsigned x[AHEAD][4];
        sums.clear();
        for (int tile = 0; tile < tiles; ++tile, turn.next()) {
            barrier_wait(full(turn.stage), turn.parity);
            if (TURNERS) barrier_wait(turned(turn.stage), turn.parity);
            const unsigned char* stage = stage_of(turn.stage);
            const uint64 b = describe(stage + BYTES_A, 1024, 0);
            fetch(x[0], stage, 0, 0);
            sums.keep();
#pragma unroll
            for (int i = 0; i < PRODUCTS; ++i) {
                wgmma_fence();
                wgmma_tf32(sums.d[i % ROWS_64], x[i % AHEAD], move(b, i / ROWS_64 * 32), 1);
                wgmma_commit();
                const int next = i + 1;
                if (next == PRODUCTS) break;
                if (next >= AHEAD) wgmma_wait<AHEAD - 1>();
                fetch(x[next % AHEAD], stage, next / ROWS_64, next % ROWS_64);
            }
            wgmma_wait<0>();
            sums.keep();
            release(empty(turn.stage));
        }
    }
};
#endif

struct Copies {
    const TensorMap &x, &dy;
    int P, tiles, pad_h, pad_w;  // tiles of a line
    Corner corner;
    int k, place, q, p, n;

    __device__ __forceinline__ void start(const Item& item)
    {
        corner = Corner(item);
        k = item.column;
        place = item.first;
        q = place % tiles;
        p = place / tiles % P;
        n = place / tiles / P;
    }
    __device__ __forceinline__ void next(unsigned char* a, unsigned char* b, uint64* barrier)
    {
        for (int i = 0; i < WINDOWS * LINES_64; ++i)
            load_box(a + i * BYTES_LINES, x, barrier, corner.channel + i % LINES_64 * TILE_D,
                     q * TILE_D - pad_w, p + corner.r + i / LINES_64 - pad_h, n);
#if BF16 || TURNERS
        for (int i = 0; i < TILE_N; i += TILE_D)
            load_box(b + i * 128, dy, barrier, k + i, q * TILE_D, p, n);
#else
        load_box(b, dy, barrier, place * TILE_D, k);
        ++place;
#endif
        if (++q < tiles) return;
        q = 0;
        if (++p == P) p = 0, ++n;
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, 1)
conv2d_wgrad_11_halo(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap dy,
                     Out* __restrict__ dw, CONV2D_SIZES, int splits)
{
    const int rows = R * S * CHANNELS, tiles = (Q - 1) / TILE_D + 1;
    run<FromWindows, true>(Items(rows, K, N * P * tiles, splits),
                           Copies{x, dy, P, tiles, pad_h, pad_w, Corner(Item{})}, dw, nullptr, rows,
                           View{K});
}
