// SPDX-License-Identifier: MIT
// How long a load from global memory takes: from L1, from L2, or from device memory.
//
// Idea      Pointer chasing, as in shared memory. What answers is decided by the working set and
//           by the load: CACHE_L1 1 and a set that fits into L1; CACHE_L1 0 (the load passes L1
//           by) and a set that fits into L2; CACHE_L1 0 and lines that L2 does not hold.
// Set       The host's choice. Nodes lie 128 bytes apart, a whole cache line, so that no load
//           finds its sector fetched by another. The order is random inside each 2 MiB page, and
//           page follows page: no pattern for a prefetcher, and the address translations, whose
//           misses would add to a latency, stay at hand.
// Threads   One. It goes on from word out[2]: over `warmup` untimed links (once around for L1 and
//           L2; for device memory a few, which fetch the code and the translation), then over
//           rounds * UNROLL timed ones. Nodes hold addresses, so that no arithmetic stands
//           between two loads.
//           out = {timed cycles, cycles of the whole launch, the word reached}: the next launch
//           starts at lines that this one has not touched.
//           One load is under way at either reading of the clock: the two errors cancel.
// Shared    None.
// Source    CUDA C++ Programming Guide, "Load Functions Using Cache Hints" and "Time Function";
//           pointer chasing as in the published microbenchmarks (Wong et al. 2010; Jia et al.
//           2018).
#include "memory.cuh"

#ifndef UNROLL
#define UNROLL 16
#endif

typedef unsigned long long address_t;

extern "C" __global__ void __launch_bounds__(1)
memory_latency_3_global(const address_t* chain, long long* __restrict__ out, int warmup,
                        int rounds)
{
    const long long launched = clock64();
    const address_t* at = chain + out[2];
#pragma unroll 1
    for (int i = 0; i < warmup; ++i) at = (const address_t*)load(at);

    const long long start = clock64();
#pragma unroll 1
    for (int i = 0; i < rounds; ++i) {
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) at = (const address_t*)load(at);
    }
    const long long stop = clock64();
    out[0] = stop - start;
    out[2] = at - chain;
    out[1] = clock64() - launched;
}
