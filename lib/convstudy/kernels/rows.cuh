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

// How many, their mean, and the sum of their squared distances from it.
struct Moments {
    static constexpr int SIZE = 3;
    float values[3];

    // T. F. Chan, G. H. Golub and R. J. LeVeque, "Updating formulae and a pairwise algorithm for
    // computing sample variances", 1979: no large squares whose difference would be lost.
    __device__ __forceinline__ void merge(const Moments& other)
    {
        const float count = values[0] + other.values[0];
        // Of nothing and another, the other is taken as it is.
        const float share = values[0] > 0.0f ? __fdividef(other.values[0], count) : 1.0f;
        const float between = other.values[1] - values[1];
        values[2] += fmaf(between * between, values[0] * share, other.values[2]);
        values[1] = fmaf(between, share, values[1]);
        values[0] = count;
    }
};

// Each thread has COUNT parts. Thread t < LANES COUNT gets, of all rows, part t % COUNT of lane
// t / COUNT. All threads of the block must call this, and once only.
template <int COUNT, class Part>
__device__ __forceinline__ Part merge_rows(Part (&mine)[COUNT])
{
    static_assert(LANES * COUNT <= THREADS, "each merged part has its thread");
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
    Part all = {};
    if (t < LANES * COUNT) {
        all = room[0][t];
#pragma unroll 4
        for (int warp = 1; warp < WARPS; ++warp) all.merge(room[warp][t]);
    }
    return all;
}
