// SPDX-License-Identifier: MIT
// What the gradients of the head and of what is before it agree on: CLASSES numbers a pixel are all
// that comes from above, and the gradient of the head's input is made of them where it is needed.
#ifndef CLASSES
#define CLASSES 2
#endif
// Pixels of one thread whose loads are under way together.
#ifndef EACH
#define EACH (CLASSES > 4 ? 1 : 4)
#endif

// A thread's part of the filters: of its channels, to every class.
struct Filters {
    float weight[CLASSES][VECTOR];

    __device__ __forceinline__ void fetch(const float* w, int c, int C)
    {
#pragma unroll
        for (int k = 0; k < CLASSES; ++k)
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) weight[k][v] = c < C ? w[k * C + c + v] : 0.0f;
    }

    // The gradient of channel v of the head's input.
    __device__ __forceinline__ float back(const float (&dlogits)[CLASSES], int v) const
    {
        float sum = 0.0f;
#pragma unroll
        for (int k = 0; k < CLASSES; ++k) sum = fmaf(dlogits[k], weight[k][v], sum);
        return sum;
    }
};

__device__ __forceinline__ void fetch_pixel(float (&to)[CLASSES], const float* dlogits, int pixel)
{
#pragma unroll
    for (int k = 0; k < CLASSES; ++k) to[k] = dlogits[(size_t)pixel * CLASSES + k];
}

// Where part `part` of the sums for the parameters lies, and what thread t has to write there of
// what merge_rows gave it. The bias is the filter of one channel more, which is 1: so each thread
// has VECTOR + 1 channels, and the last of the first thread's is the bias.
template <class Part>
__device__ __forceinline__ void write_filters(float* parts, const Place& place, int C,
                                              const Part& all, int first)
{
    const int t = threadIdx.x, lane = t / (VECTOR + 1), v = t % (VECTOR + 1);
    const int c = place.chunk + lane * VECTOR + v;
    float* to = parts + (size_t)place.part * CLASSES * (C + 1);
#pragma unroll
    for (int k = 0; k < CLASSES; ++k) {
        if (lane < LANES && v < VECTOR && c < C) to[k * C + c] = all.values[first + k];
        if (t == VECTOR && place.chunk == 0) to[CLASSES * C + k] = all.values[first + k];
    }
}
