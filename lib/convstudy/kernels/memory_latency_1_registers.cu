// SPDX-License-Identifier: MIT
// How long an instruction waits for an operand in a register.
//
// Idea      A chain of multiply-adds, each of which needs the one before. Cycles a link are the
//           whole path from operand to operand: registers read, computed, written or forwarded.
//           Nothing shows the read alone, so this is an upper bound of it.
// Set       Three registers; the timed part touches no memory.
// Threads   One. x = {a, b, c}, read from memory so that they lie in registers, not in the constant
//           bank. out = {timed cycles, cycles of the whole launch, a after rounds * UNROLL links}:
//           with b = 1 and a small whole c, a counts the links exactly.
// Shared    None.
// Source    CUDA C++ Programming Guide, "Time Function"; chains of dependent instructions are the
//           method of the published microbenchmarks (Wong et al. 2010; Jia et al. 2018).
#ifndef UNROLL
#define UNROLL 64
#endif

extern "C" __global__ void __launch_bounds__(1)
memory_latency_1_registers(const float* __restrict__ x, long long* __restrict__ out, int rounds)
{
    const long long launched = clock64();
    float a = x[0];
    const float b = x[1], c = x[2];

    const long long start = clock64();
#pragma unroll 1
    for (int i = 0; i < rounds; ++i) {
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) a = fmaf(a, b, c);
    }
    const long long stop = clock64();
    out[0] = stop - start;
    out[2] = (long long)a;
    out[1] = clock64() - launched;
}
