// SPDX-License-Identifier: MIT
// Rung 10: implicit GEMM by warpgroups, fed by the tensor memory accelerator.
//
// Idea      The matrix product of rung 8, on Hopper's own terms. The TMA walks over pixels and
//           taps by itself (im2col mode): one thread asks for 128 pixels under one tap, and no
//           register holds an address. Warpgroups multiply straight from shared memory.
//           fp32: x passes through registers to be split into two TF32 numbers; w was split before.
// Threads   CONSUMERS x 128 that multiply, and a warp that copies. hopper.cuh says which outputs
//           are a thread's.
// Shared    STAGES (128 (TILE_M + TILE_N) + 16) bytes, with fp32 128 TILE_N more a stage; dynamic.
// Source    PTX ISA, "Asynchronous warpgroup level matrix instructions" and "im2col mode"; NVIDIA
//           CUTLASS, "Efficient GEMM in CUDA" (roles, persistent blocks); as conv2d_fprop_8_mma.
#include "conv2d.cuh"
#include "conv2d_out.cuh"
#include "overlap.cuh"
#include "ptx.cuh"
#include "hopper.cuh"
#include "conv2d_wgmma.cuh"

#if TERMS == 3
using Consumer = ThroughRegisters<false>;
#else
using Consumer = FromShared<0, 0>;
#endif

struct Copies {
    const TensorMap &x, &w;
    int P, Q, C, K, pad_h, pad_w, k;
    Pixels at;
    Taps taps;

    __device__ __forceinline__ void start(const Item& item)
    {
        at = Pixels(item.row, Q, P);
        const int tap = item.first % (R * S);
        taps = {tap % S, tap / S, item.first / (R * S) * TILE_D};
        k = item.column;
    }
    __device__ __forceinline__ void next(unsigned char* a, unsigned char* b, uint64* barrier)
    {
        const int depth = (taps.r * S + taps.s) * C + taps.channel;
        load_im2col(a, x, barrier, taps.channel, at.w * STRIDE_W - pad_w,
                    at.h * STRIDE_H - pad_h, at.n, taps.s, taps.r);
        load_box(b, w, barrier, depth, k);
        if (TERMS == 3) load_box(b + BYTES_B, w, barrier, depth, K + k);
        taps.next_tap();
    }
};

extern "C" __global__ void CLUSTERED __launch_bounds__(THREADS, BLOCKS_PER_SM)
conv2d_fprop_10_wgmma(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w,
#ifdef SUMMAND
                      const Out* __restrict__ residual,
#endif
#ifdef STATISTICS
                      const float* __restrict__ bias, Out* y, float* moments, CONV2D_SIZES,
#else
#ifdef STREAM
                      const float* __restrict__ bias, Out* __restrict__ y, float4* slots,
                      float* flags, CONV2D_SIZES,
#else
                      const float* __restrict__ bias, Out* __restrict__ y, CONV2D_SIZES,
#endif
#endif
                      int splits VIEW_SIZES)
{
    const int rows = N * P * Q;
    run<Consumer, false>(Items(rows, K, R * S * C / TILE_D, splits),
                         Copies{x, w, P, Q, C, K, pad_h, pad_w}, y, bias, rows,
#ifdef STATISTICS
                         moments,
#endif
#ifdef STREAM
                         Slots{slots, flags},
#endif
                         VIEW_OF(K, P, Q));
}
