// SPDX-License-Identifier: MIT
// How long a load from shared memory takes.
//
// Idea      Pointer chasing: every load gives the address of the next, so none can start before
//           the one before has returned. The words form one random cycle through the whole table;
//           they hold byte offsets, so that no arithmetic stands between two loads.
// Set       NODES words. Shared memory is not a cache: its latency does not depend on the size.
// Threads   One. It copies the table and goes on from offset out[2]: untimed once around, then over
//           rounds * UNROLL timed links.
//           out = {timed cycles, cycles of the whole launch, the offset reached}.
//           One load is under way at either reading of the clock: the two errors cancel.
// Shared    4 NODES bytes, static: 4,096 with the defaults.
// Source    CUDA C++ Programming Guide, "Shared Memory" and "Time Function"; pointer chasing as in
//           the published microbenchmarks (Wong et al. 2010; Jia et al. 2018).
#ifndef NODES
#define NODES 1024
#endif
#ifndef UNROLL
#define UNROLL 16
#endif

extern "C" __global__ void __launch_bounds__(1)
memory_latency_2_shared(const unsigned* __restrict__ chain, long long* __restrict__ out,
                        int rounds)
{
    __shared__ unsigned table[NODES];
    const char* base = (const char*)table;
    unsigned offset = (unsigned)out[2];

    const long long launched = clock64();
#pragma unroll 8
    for (int i = 0; i < NODES; ++i) table[i] = chain[i];
#pragma unroll 1
    for (int i = 0; i < NODES; ++i) offset = *(const unsigned*)(base + offset);

    const long long start = clock64();
#pragma unroll 1
    for (int i = 0; i < rounds; ++i) {
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) offset = *(const unsigned*)(base + offset);
    }
    const long long stop = clock64();
    out[0] = stop - start;
    out[2] = offset;
    out[1] = clock64() - launched;
}
