// SPDX-License-Identifier: MIT
// The gradient of bilinear interpolation to twice the size: each pixel gathers what it gave.
//
// Idea      Pixel h is in output rows 2 h - 1 to 2 h + 2 at most, and in as many columns: a thread
//           adds up these 16, each with the share that it was mixed with, in a fixed order. They
//           may lie in a larger P x Q image, with their corner at (top, left).
// Threads   Block (part, chunk), as pixels.cuh says; a thread makes one vector of dx.
// Shared    None. Neighbours read the same pixels, which L1 and L2 hold.
// Moves     Reads dy, writes dx.
// Source    The adjoint of rung 2 of upsample_fprop.
#include "overlap.cuh"
#include "ptx.cuh"
#include "vectors.cuh"
#include "pixels.cuh"
#include "bilinear.cuh"

constexpr int NEAR = 4;

extern "C" __global__ void __launch_bounds__(THREADS)
upsample_dgrad_1_gather(const Element* __restrict__ dy, Element* __restrict__ dx, int N, int H,
                        int W, int C, int P, int Q, int top, int left, int pitch_dy, int pitch_dx)
{
    wait_for_others();
    let_others_begin();
    const Place place = my_place(C);
    const int pixel = place.part * ROWS + place.row;
    if (place.c >= C || pixel >= N * H * W) return;
    const int line = pixel / W, h = line % H, w = pixel % W, n = line / H;

    float across[NEAR], sum[VECTOR] = {};
#pragma unroll
    for (int s = 0; s < NEAR; ++s) {
        const int j = 2 * w - 1 + s;
        across[s] = j >= 0 && j < 2 * W ? share_of(w, j, W) : 0.0f;
    }
#pragma unroll
    for (int r = 0; r < NEAR; ++r) {
        const int i = 2 * h - 1 + r;
        if (i < 0 || i >= 2 * H) continue;
        const float down = share_of(h, i, H);
        // Columns that are none have no share, and one that is there is read in their place.
        Packed in[NEAR];
#pragma unroll
        for (int s = 0; s < NEAR; ++s) {
            const int j = min(max(2 * w - 1 + s, 0), 2 * W - 1);
            in[s] = load(dy + offset((n * P + top + i) * Q + left + j, pitch_dy, place.c));
        }
#pragma unroll
        for (int s = 0; s < NEAR; ++s)
#pragma unroll
            for (int v = 0; v < VECTOR; ++v)
                sum[v] = fmaf(down * across[s], at(in[s], v), sum[v]);
    }
    store(dx + offset(pixel, pitch_dx, place.c), pack(sum));
}
