// SPDX-License-Identifier: MIT
// How the blocks of a cluster share what one block would do alone, and put together what each has
// found: one after the other, by their ranks, so that every run gives the same bits.

// What this block has of `count`, which are no fewer than CLUSTER blocks can share.
struct Range {
    int begin, end;
};
__device__ __forceinline__ Range my_range(int count)
{
#if CLUSTER > 1
    const int each = (count + CLUSTER - 1) / CLUSTER, begin = cluster_rank() * each;
    return {begin, min(count, begin + each)};
#else
    return {0, count};
#endif
}

// Whether this block writes what is the same for all of them.
__device__ __forceinline__ bool is_first_of_cluster()
{
#if CLUSTER > 1
    return cluster_rank() == 0;
#else
    return true;
#endif
}

// Before anything else: says that this block has begun, and so has shared memory to be written to.
__device__ __forceinline__ void meet_blocks()
{
#if CLUSTER > 1
    cluster_arrive();
#endif
}

// Thread t < COUNT gets part t of all blocks. All threads must call this, and once only; what they
// did before, every block's threads see behind it.
template <int COUNT, class Part>
__device__ __forceinline__ Part merge_blocks(const Part& mine)
{
#if CLUSTER > 1
    __shared__ Part room[CLUSTER][COUNT];
    const int t = threadIdx.x;
    cluster_wait();  // all have begun
    if (t < COUNT)
#pragma unroll
        for (int rank = 0; rank < CLUSTER; ++rank)
#pragma unroll
            for (int i = 0; i < Part::SIZE; ++i)
                store_in_block(address_in(&room[cluster_rank()][t].values[i], rank),
                               mine.values[i]);
    cluster_sync();  // every block's parts are here
    if (t >= COUNT) return {};
    Part all = room[0][t];
#pragma unroll
    for (int rank = 1; rank < CLUSTER; ++rank) all.merge(room[rank][t]);
    return all;
#else
    return mine;
#endif
}
