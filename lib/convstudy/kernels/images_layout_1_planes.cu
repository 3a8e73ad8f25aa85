// SPDX-License-Identifier: MIT
// Images of planes (NCHW, fp32) as a network of NHWC arrays takes them, fp32 or bf16.
//
// Idea      Images have few channels: a thread gathers one pixel's, a warp reads whole lines of
//           each plane, and what it writes lies side by side.
// Threads   Thread t of block b does pixel b THREADS + t, counted through all images.
// Shared    None.
// Moves     Reads the images, writes y.
// Source    None.
#define VECTOR 1
#include "overlap.cuh"
#include "ptx.cuh"
#include "vectors.cuh"

#ifndef THREADS
#define THREADS 256
#endif

extern "C" __global__ void __launch_bounds__(THREADS)
images_layout_1_planes(const float* __restrict__ images, Element* __restrict__ y, int N, int C,
                       int plane)
{
    wait_for_others();
    let_others_begin();
    const int pixel = blockIdx.x * THREADS + threadIdx.x;
    if (pixel >= N * plane) return;
    const size_t from = (size_t)(pixel / plane) * C * plane + pixel % plane;
#pragma unroll 4
    for (int c = 0; c < C; ++c) y[(size_t)pixel * C + c] = images[from + (size_t)c * plane];
}
