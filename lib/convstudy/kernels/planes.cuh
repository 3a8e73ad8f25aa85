// SPDX-License-Identifier: MIT
// How the kernels that compute every pixel by itself share out their work.
//
// A plane is one channel of one image. A block takes SEGMENT pixels of one plane, so that what
// belongs to the channel is read once a thread and not once a pixel, and so that all arithmetic
// on pixels is 32-bit. Blocks lie along x alone, where a grid may have 2^31 - 1.
#ifndef THREADS
#define THREADS 256
#endif
// Pixels of one thread, THREADS apart, so that a warp's accesses stay coalesced.
#ifndef EACH
#define EACH 4
#endif
constexpr int SEGMENT = THREADS * EACH;

struct Segment {
    int plane, begin, end;
};

__device__ __forceinline__ Segment my_segment(int pixels)
{
    const int segments = pixels / SEGMENT + (pixels % SEGMENT != 0);
    const int begin = blockIdx.x % segments * SEGMENT;
    return {int(blockIdx.x / segments), begin, begin + min(SEGMENT, pixels - begin)};
}
