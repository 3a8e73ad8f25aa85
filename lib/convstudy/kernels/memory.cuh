// SPDX-License-Identifier: MIT
// Which caches a load may use. The policy is part of the instruction, so it is a constant of the
// compilation: L1 and L2, as an ordinary load (ld.ca), or L2 alone (ld.cg).
#ifndef CACHE_L1
#define CACHE_L1 0
#endif

template <typename T>
__device__ __forceinline__ T load(const T* address)
{
    return CACHE_L1 ? __ldca(address) : __ldcg(address);
}
