// SPDX-License-Identifier: MIT
// The norm of all gradients, first half: sums of squares.
//
// Idea      Each block sums what it meets on its way through the array, always in the same order.
// Threads   Thread t of block b takes vector b THREADS + t, and every one a whole grid further.
// Shared    4 bytes a warp, static: 32 with the defaults.
// Moves     Reads the gradients once.
// Source    The definition.
#define LANES 1
#include "overlap.cuh"
#include "ptx.cuh"
#include "vectors.cuh"
#include "pixels.cuh"
#include "rows.cuh"
#include "flat.cuh"

#ifndef EACH
#define EACH 4
#endif

extern "C" __global__ void __launch_bounds__(THREADS)
gradient_norm_1_parts(const float* gradients, float* parts, long long size)
{
    wait_for_others();
    let_others_begin();
    const long long stride = (long long)gridDim.x * THREADS * VECTOR, last = size - VECTOR;
    Sums<1> mine[1] = {};
    // Blocks are whole in every round, and what is beyond the end is not counted.
    const long long mine_first = my_parameter();
    for (long long base = 0; base < size; base += stride * EACH) {
        Packed in[EACH];
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            const long long at = base + mine_first + i * stride;
            in[i] = load(gradients + (at < size ? at : last));
        }
        loads_end();
#pragma unroll
        for (int i = 0; i < EACH; ++i)
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) {
                const float value = base + mine_first + i * stride < size ? at(in[i], v) : 0.0f;
                mine[0].values[0] = fmaf(value, value, mine[0].values[0]);
            }
    }
    const Sums<1> all = merge_rows(mine);
    if (threadIdx.x == 0) parts[blockIdx.x] = all.values[0];
}
