// SPDX-License-Identifier: MIT
// Rung 11: what its passes share. Rows are patches of 16 x 16 pixels, and the first operand is such
// a patch with its halo: it comes once for all taps, which read it from different lines on.
//
// A warpgroup's 64 rows are 8 x 8 pixels: eight neighbouring pixels are eight neighbouring lines,
// as the hardware wants them, and the next eight rows begin a line of the image further down.

struct FromPatches {
    Round<PATCHES> patches;

    // The pixel of out at one of 16 places that this warp holds of a block of 8 x 8; beyond the
    // last where it lies outside.
    static __device__ __forceinline__ int place(const Item& item, int block, int i)
    {
        const int w = item.w + block % 2 * 8 + i % 8;
        const int h = item.h + block / 2 * 8 + threadIdx.x / 32 % 4 * 2 + i / 8;
        return w < item.width && h < item.height ? (item.n * item.height + h) * item.width + w
                                                 : 0x7fffffff;
    }
    __device__ __forceinline__ void multiply(Sums& sums, const unsigned char* from,
                                             const unsigned char* stage)
    {
        const uint64 b = describe(stage, 1024, TILE_D * 128);
#pragma unroll
        for (int m = 0; m < ROWS_64; ++m) {
            const int block = threadIdx.x / 128 * ROWS_64 + m;
            const uint64 a = describe(from + (block / 2 * 8 * PITCH + block % 2 * 8) * 128,
                                      PITCH * 128, 0);
#pragma unroll
            for (int k = 0; k < 4; ++k) {
#if BF16
                wgmma_bf16<0, ACROSS_B>(sums.d[m], move(a, k * 32),
                                        move(b, k * (ACROSS_B ? 2048 : 32)), 1);
#else
                wgmma_tf32(sums.d[m], move(a, k * 32), move(b, k * 32), 1);
#endif
            }
        }
    }
    __device__ __forceinline__ void run(Sums& sums, int tiles, Turn& turn)
    {
        sums.clear();
        int before = 0, patch_before = 0;
        for (int tile = 0; tile < tiles; ++tile, turn.next()) {
            const int tap = tile % (R * S);
            if (tap == 0) barrier_wait(patch_full(patches.stage), patches.parity);
            barrier_wait(full(turn.stage), turn.parity);
            const int at = TURNED_TAPS ? R * S - 1 - tap : tap;
            sums.keep();
            wgmma_fence();
            multiply(sums, patch(patches.stage) + (at / S * PITCH + at % S) * 128,
                     stage_of(turn.stage));
            wgmma_commit();
            if (tile) {
                wgmma_wait<1>();
                release(empty(before));
                if (tap == 0) release(patch_empty(patch_before));
            }
            before = turn.stage;
            if (tap == R * S - 1) {
                patch_before = patches.stage;
                patches.next();
            }
        }
        wgmma_wait<0>();
        release(empty(before));
        release(patch_empty(patch_before));
        sums.keep();
    }
};

// The producer asks for the next patch once the one before the last has been read.
template <class Copy>
__device__ __forceinline__ void ask(Round<PATCHES>& patches, Copy&& copy)
{
    barrier_wait(patch_empty(patches.stage), patches.parity ^ 1);
    barrier_expect(patch_full(patches.stage), BYTES_PATCH);
    copy(patch(patches.stage), patch_full(patches.stage));
    patches.next();
}
