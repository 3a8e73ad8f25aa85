// SPDX-License-Identifier: MIT
// Clusters: blocks that run at the same time and see each other's shared memory (from sm_90 on).
// A kernel that is CLUSTERED has CLUSTER blocks in each. The emulator runs one block at a time: it
// knows clusters of one, as which every kernel compiles with its defaults.
#ifndef CLUSTER
#define CLUSTER 1
#endif
#if CLUSTER > 1
#define CLUSTERED __cluster_dims__(CLUSTER, 1, 1)
#else
#define CLUSTERED
#endif
#ifndef CONVSTUDY_EMULATOR

__device__ __forceinline__ unsigned shared_address(const void* shared)
{
    return (unsigned)__cvta_generic_to_shared(shared);
}

__device__ __forceinline__ int cluster_rank()
{
    unsigned rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
// All threads of all blocks arrive, and none passes a wait before they have.
__device__ __forceinline__ void cluster_arrive()
{
    asm volatile("barrier.cluster.arrive.release;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait()
{
    asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}
__device__ __forceinline__ void cluster_sync()
{
    cluster_arrive();
    cluster_wait();
}
// Where what lies at `shared` here lies in the block of that rank.
__device__ __forceinline__ unsigned address_in(const void* shared, int rank)
{
    unsigned address;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(shared)),
        "r"(rank));
    return address;
}
// Stores a number in another block, which sees it behind a barrier of the cluster.
__device__ __forceinline__ void store_in_block(unsigned address, float value)
{
    asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(address), "f"(value) : "memory");
}

#endif
