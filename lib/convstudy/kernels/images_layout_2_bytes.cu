// SPDX-License-Identifier: MIT
// Images of bytes (NHWC) as a network takes them: 0 to 1, fp32 or bf16.
//
// Idea      A byte over 255: images cross to the GPU as what they are, a quarter of their size.
// Threads   Thread t of block b does numbers b THREADS EACH + t, + THREADS, ...
// Shared    None.
// Moves     Reads the bytes, writes y.
// Source    None.
#define VECTOR 1
#include "overlap.cuh"
#include "ptx.cuh"
#include "vectors.cuh"

#ifndef THREADS
#define THREADS 256
#endif
#ifndef EACH
#define EACH 4
#endif

extern "C" __global__ void __launch_bounds__(THREADS)
images_layout_2_bytes(const unsigned char* __restrict__ images, Element* __restrict__ y,
                      long long size)
{
    wait_for_others();
    let_others_begin();
    const long long first = (long long)blockIdx.x * THREADS * EACH + threadIdx.x;
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const long long at = first + i * THREADS;
        if (at < size) y[at] = float(images[at]) / 255.0f;
    }
}
