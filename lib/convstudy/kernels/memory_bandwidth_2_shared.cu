// SPDX-License-Identifier: MIT
// How many bytes a second shared memory delivers.
//
// Idea      Each thread reads UNROLL words of 16 bytes a lap, neighbours read neighbouring words:
//           no two lanes that are served together meet in a bank. The words move on by one warp
//           from lap to lap; at fixed addresses the compiler could read once for all laps.
// Set       UNROLL THREADS words of 16 bytes a block, read whole in every lap.
// Threads   All multiprocessors, four blocks each. Thread i of the launch adds up all it read and
//           writes the sum to out[i]. clocks[block] = cycles of the block.
// Shared    16 UNROLL THREADS bytes, static: 16,384 with the defaults.
// Source    CUDA C++ Programming Guide, "Shared Memory" (32 banks of 4 bytes a cycle).
#ifndef THREADS
#define THREADS 256
#endif
#ifndef UNROLL
#define UNROLL 4
#endif

constexpr int VECTORS = UNROLL * THREADS;
static_assert((VECTORS & (VECTORS - 1)) == 0, "the laps wrap around by a mask");

extern "C" __global__ void __launch_bounds__(THREADS, 4)
memory_bandwidth_2_shared(const float4* __restrict__ x, float* __restrict__ out,
                          long long* __restrict__ clocks, int laps)
{
    __shared__ __align__(16) float words[4 * VECTORS];
    float4* tile = (float4*)words;

    const long long start = clock64();
#pragma unroll
    for (int u = 0; u < UNROLL; ++u)
        tile[u * THREADS + threadIdx.x] = x[u * THREADS + threadIdx.x];
    __syncthreads();  // the tile is complete before anyone reads it

    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    int at = threadIdx.x;
#pragma unroll 1
    for (int lap = 0; lap < laps; ++lap) {
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
            const float4 v = tile[(at + u * THREADS) & (VECTORS - 1)];
            sum.x += v.x;
            sum.y += v.y;
            sum.z += v.z;
            sum.w += v.w;
        }
        at += 32;
    }
    out[blockIdx.x * THREADS + threadIdx.x] = (sum.x + sum.y) + (sum.z + sum.w);
    __syncthreads();  // the block's time ends when its last warp has
    if (threadIdx.x == 0) clocks[blockIdx.x] = clock64() - start;
}
