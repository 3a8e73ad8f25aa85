// SPDX-License-Identifier: MIT
// The head: a 1 x 1 convolution from many channels to few classes, as one pass over its input.
//
// Idea      The LANES threads of a row share out a pixel's channels and add up their sums for each
//           class by shuffles: the input is read once, and filters stay in registers for EACH
//           pixels. With NORM, x is what batch norm was to have: relu(a x + b) is made on the way,
//           and never written. Filters (CLASSES, C) and logits (N, H, W, CLASSES) are fp32.
// Threads   A block does ROWS EACH pixels, thread (row, lane) every ROWS-th.
// Shared    None.
// Moves     Reads x, writes CLASSES numbers a pixel.
// Source    The definition.
#include "overlap.cuh"
#include "ptx.cuh"
#include "vectors.cuh"
#include "pixels.cuh"

#ifndef CLASSES
#define CLASSES 2
#endif
#ifndef NORM
#define NORM 0
#endif
#ifndef EACH
#define EACH (CLASSES > 4 ? 1 : 4)
#endif

extern "C" __global__ void __launch_bounds__(THREADS)
head_fprop_1_lanes(const Element* __restrict__ x, const float* __restrict__ factors,
                   const float* __restrict__ w, const float* __restrict__ bias,
                   float* __restrict__ logits, int pixels, int C, int pitch)
{
    wait_for_others();
    let_others_begin();
    const int lane = threadIdx.x % LANES;
    const int first = blockIdx.x * ROWS * EACH + threadIdx.x / LANES;
    float sum[EACH][CLASSES] = {};
    for (int begin = 0; begin < C; begin += CHUNK) {
        const int c = begin + lane * VECTOR, from = c < C ? c : begin;
        Packed in[EACH];
#pragma unroll
        for (int i = 0; i < EACH; ++i)
            in[i] = load(x + offset(min(first + i * ROWS, pixels - 1), pitch, from));
        float a[VECTOR], b[VECTOR];
        if (NORM) {
            read(a, factors + from);
            read(b, factors + C + from);
        }
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) {
            float weight[CLASSES];
#pragma unroll
            for (int k = 0; k < CLASSES; ++k) weight[k] = c < C ? w[k * C + from + v] : 0.0f;
#pragma unroll
            for (int i = 0; i < EACH; ++i) {
                float z = at(in[i], v);
                if (NORM) z = fmaf(a[v], z, b[v]);
                if (NORM && z < 0.0f) z = 0.0f;
#pragma unroll
                for (int k = 0; k < CLASSES; ++k) sum[i][k] = fmaf(z, weight[k], sum[i][k]);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < EACH; ++i)
#pragma unroll
        for (int k = 0; k < CLASSES; ++k) {
#pragma unroll
            for (int distance = LANES / 2; distance > 0; distance /= 2)
                sum[i][k] += __shfl_xor_sync(0xffffffffu, sum[i][k], distance);
            const int pixel = first + i * ROWS;
            if (lane == 0 && pixel < pixels)
                logits[(size_t)pixel * CLASSES + k] = sum[i][k] + bias[k];
        }
}
