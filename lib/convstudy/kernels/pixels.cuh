// SPDX-License-Identifier: MIT
// How the kernels on NHWC arrays share out their work.
//
// A block has ROWS rows of LANES threads and CHUNK = LANES VECTOR channels: thread (row, lane)
// works on vector `lane` of pixels row, row + ROWS, ... So what belongs to a channel is read once
// a thread, no division finds a channel, and a warp reads whole lines of 128 bytes where there are
// as many channels. Blocks count chunks fastest: those that run together read neighbours.
//
// An array may be some of the channels of a wider one: PITCH numbers lie from pixel to pixel.
// Pixels are counted through all images, in an int.
#ifndef THREADS
#define THREADS 256
#endif
#ifndef LANES
#define LANES 8
#endif
constexpr int ROWS = THREADS / LANES;
constexpr int CHUNK = LANES * VECTOR;
static_assert(32 % LANES == 0 && THREADS % 32 == 0, "a warp has whole rows");

struct Place {
    int c, row, part, chunk;
};

// The first channel of this thread, which may be beyond the last one, and what its block does.
__device__ __forceinline__ Place my_place(int C)
{
    const int chunks = (C + CHUNK - 1) / CHUNK;
    const int chunk = blockIdx.x % chunks * CHUNK;
    return {chunk + int(threadIdx.x % LANES) * VECTOR, int(threadIdx.x / LANES),
            int(blockIdx.x / chunks), chunk};
}

// Of a thread beyond the last channel, the first of its block, so that it can keep step.
__device__ __forceinline__ int readable(const Place& place, int C)
{
    return place.c < C ? place.c : place.chunk;
}

// Where loads end and their use begins. The compiler would move a load down to its use, and then
// the next would have to wait for that; over this it moves none, unless it knows (by __restrict__,
// of what is read or of what is written) that nothing changes what is read. All threads of a warp
// must come by.
__device__ __forceinline__ void loads_end() { __syncwarp(); }

// Where a vector begins.
__device__ __forceinline__ size_t offset(int pixel, int pitch, int c)
{
    return (size_t)pixel * pitch + c;
}

// A pixel of a P x Q part of every H x W image, whose corner is (top, left), by its number there.
struct Window {
    int H, W, P, Q, top, left;

    __device__ __forceinline__ int pixel(int number) const
    {
        const int row = number / Q;
        return (row / P * H + top + row % P) * W + left + number - row * Q;
    }
};
