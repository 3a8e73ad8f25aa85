// SPDX-License-Identifier: MIT
// Makes the second operand of rung 10 ready: lines along DEPTH, of TF32 and of what that leaves.
//
// Idea      A warpgroup multiplies fp32 and TF32 only where lines run along what is summed over.
//           Where they do not (TURN 1) a tile is turned in shared memory. For fp32 (TERMS 3) each
//           number becomes two of TF32, in two arrays one behind the other. The order inside 32
//           places of DEPTH is that in which the consumers' lanes take the first operand.
// Threads   256 threads make 32 lines x 32 places; warp i lines i, i + 8, i + 16, i + 24.
// Shared    Bytes, static: 4,224 with the defaults.
// Source    Ootomo and Yokota, "Recovering single precision accuracy from Tensor Cores", 2022.
#include "overlap.cuh"
#include "ptx.cuh"

#ifndef TURN
#define TURN 1
#endif
#ifndef TERMS
#define TERMS 3
#endif
// 1: as conv2d_wgmma.cuh orders operands along lines; 0: as it is.
#ifndef ORDER
#define ORDER 1
#endif

// Which of 32 places of DEPTH comes at `place`.
__device__ __forceinline__ int in_order(int place)
{
    const int i = place / 8, t = place % 4, second = place % 8 / 4;
    return ORDER ? 8 * t + 2 * i + second : place;
}

// from: where lines are turned, DEPTH lines of `lines` numbers; else `lines` lines of DEPTH. Place
// d of DEPTH is line d % inner * outer + d / inner of it, which makes taps out of filters.
extern "C" __global__ void __launch_bounds__(256)
conv2d_operand_1_split(const float* __restrict__ from, float* __restrict__ to, int lines,
                       int depth, int padded, int inner, int outer)
{
    wait_for_others();
    let_others_begin();
    const int x = threadIdx.x % 32, y = threadIdx.x / 32;
    const int tiles_d = padded / 32;
    const int d0 = blockIdx.x % tiles_d * 32, line0 = blockIdx.x / tiles_d * 32;
#if TURN
    __shared__ float tile[32][33];
    for (int i = y; i < 32; i += 8) {
        const int d = d0 + i, line = line0 + x;
        const size_t at = ((size_t)(d % inner) * outer + d / inner) * lines + line;
        tile[i][x] = d < depth && line < lines ? from[at] : 0.0f;
    }
    __syncthreads();  // the tile is whole: it is read across the lines that were written
#endif
    for (int i = y; i < 32; i += 8) {
        const int line = line0 + i;
        if (line >= lines) return;
#if TURN
        const float value = tile[in_order(x)][i];
#else
        const int d = d0 + in_order(x);
        const float value = d < depth ? from[(size_t)line * depth + d] : 0.0f;
#endif
        const size_t at = (size_t)line * padded + d0 + x;
        if (TERMS == 3) {
            const float high = __uint_as_float(to_tf32(value));
            to[at] = high;
            to[(size_t)lines * padded + at] = __uint_as_float(to_tf32(value - high));
        } else {
            to[at] = value;
        }
    }
}
