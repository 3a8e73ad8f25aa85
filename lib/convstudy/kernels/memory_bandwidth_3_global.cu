// SPDX-License-Identifier: MIT
// How many bytes a second L1, L2 or device memory delivers to loads.
//
// Idea      Many warps, each thread with UNROLL independent loads of 16 bytes under way. What
//           answers is decided by the working set and by the load:
//           L1      CACHE_L1 1, each block reads a small array of its own in many laps;
//           L2      CACHE_L1 0, the blocks together read one array that fits into L2, many laps;
//           device  CACHE_L1 0, the blocks together read an array many times L2, one lap.
// Set       rounds * UNROLL * THREADS vectors of 16 bytes a block: its own (CACHE_L1 1), or its
//           share of an array that the grid reads side by side, round by round.
// Threads   All multiprocessors, four blocks each. Thread i of the launch adds up all it read and
//           writes the sum to out[i]: one 4-byte store for hundreds of loads.
//           clocks[block] = cycles of the block.
// Shared    None.
// Source    CUDA C++ Programming Guide, "Load Functions Using Cache Hints"; CUDA C++ Best Practices
//           Guide, "Effective Bandwidth Calculation".
#include "memory.cuh"

#ifndef THREADS
#define THREADS 256
#endif
#ifndef UNROLL
#define UNROLL 4
#endif

extern "C" __global__ void __launch_bounds__(THREADS, 4)
memory_bandwidth_3_global(const float4* x, float* __restrict__ out,
                          long long* __restrict__ clocks, int rounds, int laps)
{
    const long long start = clock64();
    const size_t thread = (size_t)blockIdx.x * THREADS + threadIdx.x;
    // Vectors between two loads of one thread, and where its first one is.
    const size_t step = CACHE_L1 ? (size_t)THREADS : (size_t)gridDim.x * THREADS;
    const float4* first =
        x + (CACHE_L1 ? blockIdx.x * (rounds * UNROLL * step) + threadIdx.x : thread);

    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 1
    for (int lap = 0; lap < laps; ++lap) {
        const float4* from = first;
#pragma unroll 1
        for (int r = 0; r < rounds; ++r) {
            float4 v[UNROLL];
#pragma unroll
            for (int u = 0; u < UNROLL; ++u) v[u] = load(from + u * step);
#pragma unroll
            for (int u = 0; u < UNROLL; ++u) {
                sum.x += v[u].x;
                sum.y += v[u].y;
                sum.z += v[u].z;
                sum.w += v[u].w;
            }
            from += UNROLL * step;
        }
    }
    out[thread] = (sum.x + sum.y) + (sum.z + sum.w);
    __syncthreads();  // the block's time ends when its last warp has
    if (threadIdx.x == 0) clocks[blockIdx.x] = clock64() - start;
}
