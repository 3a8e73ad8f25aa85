// SPDX-License-Identifier: MIT
// How many operand bytes a second the registers feed to the arithmetic units.
//
// Idea      Every multiply-add takes three operands of 4 bytes from registers. CHAINS independent
//           ones a thread, and many warps, keep every unit busy. Each chain has a b and a c of its
//           own, so that no instruction finds an operand that the one before it has fetched.
// Set       3 CHAINS registers a thread.
// Threads   All multiprocessors, four blocks each. Chain i of thread t starts at t + i, its b is
//           x[0][i][t] and its c is x[1][i][t]. Thread t of the launch writes the sum of its
//           chains after rounds * UNROLL links to out[t]: exact where b is 1 or -1 and c is a
//           small whole number. clocks[block] = cycles of the block.
// Shared    None.
// Source    CUDA C++ Programming Guide, "Arithmetic Instructions" (results a cycle and
//           multiprocessor).
#ifndef THREADS
#define THREADS 256
#endif
#ifndef CHAINS
#define CHAINS 8
#endif
#ifndef UNROLL
#define UNROLL 16
#endif

extern "C" __global__ void __launch_bounds__(THREADS, 4)
memory_bandwidth_1_registers(const float* __restrict__ x, float* __restrict__ out,
                             long long* __restrict__ clocks, int rounds)
{
    const long long start = clock64();
    float a[CHAINS], b[CHAINS], c[CHAINS];
#pragma unroll
    for (int i = 0; i < CHAINS; ++i) {
        a[i] = (float)(threadIdx.x + i);
        b[i] = x[i * THREADS + threadIdx.x];
        c[i] = x[(CHAINS + i) * THREADS + threadIdx.x];
    }

#pragma unroll 1
    for (int r = 0; r < rounds; ++r) {
#pragma unroll
        for (int u = 0; u < UNROLL; ++u)
#pragma unroll
            for (int i = 0; i < CHAINS; ++i) a[i] = fmaf(a[i], b[i], c[i]);
    }

    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < CHAINS; ++i) sum += a[i];
    out[blockIdx.x * THREADS + threadIdx.x] = sum;
    __syncthreads();  // the block's time ends when its last warp has
    if (threadIdx.x == 0) clocks[blockIdx.x] = clock64() - start;
}
