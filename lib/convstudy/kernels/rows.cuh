// SPDX-License-Identifier: MIT
// How the threads of a block put together what they found of the same channels: row after row, in
// an order that never changes, so that every run gives the same bits. No atomics.
constexpr int WARPS = THREADS / 32;

template <int COUNT>
struct Sums {
    static constexpr int SIZE = COUNT;
    float values[COUNT];

    __device__ __forceinline__ void merge(const Sums& other)
    {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) values[i] += other.values[i];
    }
};

// Each thread has COUNT parts. Thread t < LANES COUNT gets, of all rows, part t % COUNT of lane
// t / COUNT. All threads of the block must call this, and once only.
template <int COUNT, class Part>
__device__ __forceinline__ Part merge_rows(Part (&mine)[COUNT])
{
    static_assert(LANES * COUNT <= THREADS, "each merged part has its thread");
    static_assert((WARPS & (WARPS - 1)) == 0, "warps are halved");
    __shared__ Part room[WARPS][LANES * COUNT];
    const int t = threadIdx.x, lane = t % 32;
#pragma unroll
    for (int distance = 16; distance >= LANES; distance /= 2)
#pragma unroll
        for (int n = 0; n < COUNT; ++n) {
            Part other;
#pragma unroll
            for (int i = 0; i < Part::SIZE; ++i)
                other.values[i] = __shfl_down_sync(0xffffffffu, mine[n].values[i], distance);
            mine[n].merge(other);
        }
    if (lane < LANES)
#pragma unroll
        for (int n = 0; n < COUNT; ++n) room[t / 32][lane * COUNT + n] = mine[n];
    __syncthreads();  // every warp's parts are there before they are read
#pragma unroll
    for (int half = WARPS / 2; half > 0; half /= 2) {
#pragma unroll
        for (int i = t; i < half * LANES * COUNT; i += THREADS)
            room[i / (LANES * COUNT)][i % (LANES * COUNT)].merge(
                room[half + i / (LANES * COUNT)][i % (LANES * COUNT)]);
        __syncthreads();  // a half is merged before it is halved
    }
    return t < LANES * COUNT ? room[0][t] : Part{};
}
