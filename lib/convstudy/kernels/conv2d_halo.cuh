// SPDX-License-Identifier: MIT
// Rung 11: what its passes share. An operand is a patch of pixels with its halo: it comes once for
// all taps, which read it from different lines on. Eight neighbouring pixels are eight neighbouring
// lines, as the hardware wants them, and the next eight begin a line of the image further down.
//
// Patches   of 16 x 16 pixels, of which a warpgroup's rows are 8 x 8 each; columns are filters.
// PINGPONG  of 8 x 32 pixels, which are the columns; rows are 64 filters. The products read 80 bytes
//           a cycle of shared memory and not 96, or 128 with 64 filters, which is all that it has.
//           A warpgroup has a patch for itself, and while it stores the result, a fifth to a third
//           of the time where channels are few, the other one multiplies. With 64 images and 64
//           channels or filters that takes 7 to 10% off in TF32. In bf16 it took 3 to 13% longer,
//           but for one layer, and is not there.

struct FromPatches {
    Round<PATCHES> patches;

#if PINGPONG
    static_assert(!BF16, "it is for TF32");
    unsigned parity = threadIdx.x / 128 ^ 1;  // the first one need not wait for its turn

    __device__ __forceinline__ void multiply(Sums& sums, const unsigned char* from,
                                             const unsigned char* stage)
    {
        const uint64 a = describe(stage, 1024, 0), b = describe(from, PITCH * 128, 0);
#pragma unroll
        for (int k = 0; k < 4; ++k)
            wgmma_tf32(sums.d[0], move(a, k * 32), move(b, k * 32), 1);
    }
    // Leaves out a tile of the other warpgroup.
    __device__ __forceinline__ void skip(int tiles, Turn& turn)
    {
        turn.skip(tiles);
        patches.skip(tiles / (R * S));
    }
    // Writes a tile. A warp's 16 filters go through shared memory, 32 pixels at a time: a lane then
    // has four of them that lie side by side.
    static __device__ __forceinline__ void store(Out* out, const float* bias, const Sums& sums,
                                                 const Item& item, const View& view)
    {
        constexpr int PASS = EXCHANGE / 64, EACH = PASS * 4 / 32;
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
        const int filter = item.column + warp % 4 * 16 + lane % 4 * 4;
        const bool is_filter = filter < view.columns;
        const float* from = bias + view.filter(filter);
        float4 b = make_float4(0, 0, 0, 0);
        if (bias && is_filter) b = make_float4(from[0], from[1], from[2], from[3]);
        const size_t there = view.column(filter);
        unsigned char* mine = exchange() + warp * EXCHANGE;
        // 64 bytes a pixel, moved so that neither writes nor reads of a warp meet in a bank.
        const auto place = [&](int pixel, int chunk) {
            return mine + (pixel ^ pixel / 4 % 2) * 64 + (chunk ^ pixel / 2 % 2 * 2) * 16;
        };
#pragma unroll
        for (int pass = 0; pass < TILE_N; pass += PASS) {
            size_t lines[EACH];
            bool is_there[EACH];
#pragma unroll
            for (int n = 0; n < EACH; ++n) {
                const int pixel = pass + lane / 4 + 8 * n;
                const int w = item.w + pixel % PATCH_W, h = item.h + pixel / PATCH_W;
                is_there[n] = is_filter && w < item.width && h < item.height;
                lines[n] = view.row((item.n * item.height + h) * item.width + w) + there;
            }
#ifdef SUMMAND
            float4 added[EACH];
#pragma unroll
            for (int n = 0; n < EACH; ++n)
                if (is_there[n])
                    added[n] = *(const float4*)((const float*)view.residual + lines[n]);
#endif
#pragma unroll
            for (int j = 0; j < PASS / 8; ++j)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    unsigned char* to = place(8 * j + 2 * t + i % 2, i / 2 * 2 + g / 4);
                    *(float*)(to + g % 4 * 4) = sums.d[0][(pass / 8 + j) * 4 + i];
                }
            __syncwarp();
#pragma unroll
            for (int n = 0; n < EACH; ++n) {
                float4 v = *(const float4*)place(lane / 4 + 8 * n, lane % 4);
                v.x += b.x, v.y += b.y, v.z += b.z, v.w += b.w;
#ifdef SUMMAND
                v.x += added[n].x, v.y += added[n].y, v.z += added[n].z, v.w += added[n].w;
#endif
                v = make_float4(activated(v.x), activated(v.y), activated(v.z), activated(v.w));
                if (is_there[n]) *(float4*)(out + lines[n]) = v;
            }
            __syncwarp();
        }
    }
#else
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
                wgmma_bf16<0, FILTERS_ACROSS>(sums.d[m], move(a, k * 32),
                                              move(b, k * (FILTERS_ACROSS ? 2048 : 32)), 1);
#else
                wgmma_tf32(sums.d[m], move(a, k * 32), move(b, k * 32), 1);
#endif
            }
        }
    }
#endif
    __device__ __forceinline__ void run(Sums& sums, int tiles, Turn& turn)
    {
        sums.clear();
#if PINGPONG
        // By then the other has waited for all copies before these. A phase of a barrier that was
        // two ahead would be taken for the one before, which is over.
        const int group = threadIdx.x / 128;
        barrier_wait(go(group), parity);
        parity ^= 1;
#endif
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
#if PINGPONG
        release(go(group ^ 1));
#endif
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
