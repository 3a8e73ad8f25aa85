// SPDX-License-Identifier: MIT
// Makes the second operand of rung 10 ready: lines along DEPTH, of TF32 and of what that leaves.
//
// Idea      A warpgroup multiplies fp32 and TF32 only where lines run along what is summed over.
//           Where they do not (TURN 1) a tile is turned in shared memory. For fp32 (TERMS 3) each
//           number becomes two of TF32, in two arrays one behind the other. The order inside 32
//           places of DEPTH is that in which the consumers' lanes take the first operand.
//           What is turned is read and written as vectors: of 4 bytes at a time, the 32 layers of
//           a training step moved at half of device memory's bandwidth.
// Threads   256 threads make 64 lines x 32 places.
// Shared    Bytes, static: 8,448 with the defaults.
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

// Lines that are read at a time, where they are turned: 4 where the lines are a multiple of that.
#ifndef VECTOR
#define VECTOR 4
#endif

constexpr int LINES = 64, DEPTH = 32, THREADS = 256;

// Which of 32 places of DEPTH comes at `place`.
__device__ __forceinline__ int in_order(int place)
{
    const int i = place / 8, t = place % 4, second = place % 8 / 4;
    return ORDER ? 8 * t + 2 * i + second : place;
}

// from: where lines are turned, DEPTH lines of `lines` numbers; else `lines` lines of DEPTH. Place
// d of DEPTH is line d % inner * outer + d / inner of it, which makes taps out of filters.
extern "C" __global__ void __launch_bounds__(THREADS)
conv2d_operand_1_split(const float* __restrict__ from, float* __restrict__ to, int lines,
                       int depth, int padded, int inner, int outer)
{
    wait_for_others();
    let_others_begin();
    const int tiles_d = padded / DEPTH;
    const int d0 = blockIdx.x % tiles_d * DEPTH, line0 = blockIdx.x / tiles_d * LINES;
#if TURN
    __shared__ float tile[LINES][DEPTH + 1];
    constexpr int ACROSS = LINES / VECTOR, EACH = DEPTH * ACROSS / THREADS;
    float in[EACH][VECTOR];
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const int at = threadIdx.x + i * THREADS, d = d0 + at / ACROSS;
        const int line = line0 + at % ACROSS * VECTOR;
#ifdef GAPS
        // Rows of `inner` lines, filled up to `outer` with zeros.
        const size_t row = (size_t)(d / outer) * inner + d % outer;
        const bool is_there = d < depth && d % outer < inner && line < lines;
#else
        const size_t row = (size_t)(d % inner) * outer + d / inner;
        const bool is_there = d < depth && line < lines;
#endif
        if (VECTOR == 4) {
            const float4 zero = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            *(float4*)in[i] = is_there ? *(const float4*)(from + row * lines + line) : zero;
        } else {
            in[i][0] = is_there ? from[row * lines + line] : 0.0f;
        }
    }
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const int at = threadIdx.x + i * THREADS;
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) tile[at % ACROSS * VECTOR + v][at / ACROSS] = in[i][v];
    }
    __syncthreads();  // the tile is whole: it is read across the lines that were written
#endif
#pragma unroll
    for (int at = threadIdx.x; at < LINES * DEPTH / 4; at += THREADS) {
        const int line = at / (DEPTH / 4), place = at % (DEPTH / 4) * 4;
        if (line0 + line >= lines) return;
        float value[4], high[4];
#pragma unroll
        for (int v = 0; v < 4; ++v) {
            const int d = in_order(place + v);
#if TURN
            value[v] = tile[line][d];
#else
            value[v] = d0 + d < depth ? from[(size_t)(line0 + line) * depth + d0 + d] : 0.0f;
#endif
            high[v] = TERMS == 3 ? __uint_as_float(to_tf32(value[v])) : value[v];
        }
        float* const out = to + (size_t)(line0 + line) * padded + d0 + place;
        *(float4*)out = make_float4(high[0], high[1], high[2], high[3]);
        if (TERMS == 3) {
#pragma unroll
            for (int v = 0; v < 4; ++v) value[v] = __uint_as_float(to_tf32(value[v] - high[v]));
            *(float4*)(out + (size_t)lines * padded) =
                make_float4(value[0], value[1], value[2], value[3]);
        }
    }
}
