// SPDX-License-Identifier: MIT
// What the convolutions between few channels and many have in common: C is 1 to 4, K is anything.
//
// Layout: x (N, H, W, C), w (K, R, S, C), y (N, P, Q, K), all contiguous.
//
// Taps      Under one row of the filter lie S C numbers of x, side by side, and so does that row
//           of the filter itself: one index counts both, c fastest, then s, then r. In a line of x
//           the numbers of an output's neighbour begin STRIDE_W C places further.
// Filters   A block works on TILE_K filters at a time. Where it needs their weights, they lie in
//           shared memory with filters side by side, so that a thread reads four of one tap at
//           once.
// Copies    Whatever is read goes past the registers (cp.async), the next lines of x or of dy
//           while these are used. What is outside is zero.
#ifndef CHANNELS
#define CHANNELS 3
#endif
#ifndef WARPS
#define WARPS 4
#endif
// Numbers of y or dy that are moved at once and start on as many: 4, or 1.
#ifndef VECTOR
#define VECTOR 4
#endif

// 1: numbers of y and dy are bf16, four together; x and filters, which are little, were made fp32.
#ifndef BF16
#define BF16 0
#endif

using Element = float;
#if BF16
using Output = bf16;
static_assert(VECTOR == 4, "a copy past the registers has 4 bytes or more");
#else
using Output = float;
#endif

constexpr int THREADS = 32 * WARPS;
constexpr int LINE_TAPS = S * CHANNELS;
constexpr int TAPS = R * LINE_TAPS;
constexpr int TILE_K = 64;
// Four more, or all taps of a filter would be stored into one bank.
constexpr int PITCH_K = TILE_K + 4;
// Places of x from one output to the next.
constexpr int STEP = STRIDE_W * CHANNELS;

extern __shared__ __align__(16) Element room[];

// Reads numbers that lie side by side and start on 16 bytes.
template <int COUNT>
__device__ __forceinline__ void read(float (&to)[COUNT], const Element* from)
{
    static_assert(COUNT % 4 == 0, "whole vectors");
#pragma unroll
    for (int i = 0; i < COUNT; i += 4) {
        const float4 four = *(const float4*)(from + i);
        to[i] = four.x, to[i + 1] = four.y, to[i + 2] = four.z, to[i + 3] = four.w;
    }
}

__device__ __forceinline__ void read(float (&to)[4], const bf16* from)
{
    const uint2 four = *(const uint2*)from;
    to[0] = __uint_as_float(four.x << 16), to[1] = __uint_as_float(four.x & 0xffff0000u);
    to[2] = __uint_as_float(four.y << 16), to[3] = __uint_as_float(four.y & 0xffff0000u);
}

// Begins to copy filters k0, k0 + 1, ... as [tap][filter].
__device__ __forceinline__ void fetch_filters(Element* to, const Element* w, int k0, int K)
{
#pragma unroll 4
    for (int i = threadIdx.x; i < TAPS * TILE_K; i += THREADS) {
        const int tap = i % TAPS, k = i / TAPS;
        cp_async<sizeof(Element)>(to + tap * PITCH_K + k, w + (size_t)k0 * TAPS + i, k0 + k < K);
    }
}

// Begins to copy LENGTH numbers, from place `first` on, of LINES lines of an image of x, from line
// h on. Lines have `length` numbers. A warp copies a line.
template <int LINES, int LENGTH, int PITCH>
__device__ __forceinline__ void fetch_lines(Element* to, const Element* image, int h, int first,
                                            int H, int length)
{
    const int lane = threadIdx.x % 32;
#pragma unroll 1
    for (int line = threadIdx.x / 32; line < LINES; line += WARPS) {
        const Element* from = image + (long long)(h + line) * length + first + lane;
        const bool inside = (unsigned)(h + line) < (unsigned)H;
#pragma unroll
        for (int i = 0; i < LENGTH; i += 32) {
            if (LENGTH % 32 && i + lane >= LENGTH) break;
            // What lies left of the line is, unsigned, far to the right of it.
            cp_async<sizeof(Element)>(to + line * PITCH + i + lane, from + i,
                                      inside && (unsigned)(first + i + lane) < (unsigned)length);
        }
    }
}

// Begins to copy filters k0, k0 + 1, ... of PIXELS pixels of a line of dy, from pixel `first` on,
// as [pixel][filter]. The line has Q pixels, or is itself outside.
template <int PIXELS>
__device__ __forceinline__ void fetch_gradients(Output* to, const Output* line, bool inside,
                                                int first, int Q, int k0, int K)
{
    constexpr int VECTORS = TILE_K / VECTOR, TOGETHER = THREADS / VECTORS;
    const int k = threadIdx.x % VECTORS * VECTOR, pixel = threadIdx.x / VECTORS;
    const Output* from = line + (long long)(first + pixel) * K + k0 + k;
    to += pixel * TILE_K + k;
    inside &= k0 + k < K;
#pragma unroll 3
    for (int i = 0; i < PIXELS; i += TOGETHER) {
        if (PIXELS % TOGETHER && i + pixel >= PIXELS) break;
        cp_async<VECTOR * sizeof(Output)>(to + i * TILE_K, from,
                                           inside && (unsigned)(first + pixel + i) < (unsigned)Q);
        from += TOGETHER * K;
    }
}
