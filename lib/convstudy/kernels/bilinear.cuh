// SPDX-License-Identifier: MIT
// Bilinear interpolation to twice the size, the corner pixels kept (align_corners).
//
// Output row i lies at i (size - 1) / (2 size - 1) of the input: the quotient of these integers is
// the row above, their remainder the distance to it, so that no position is rounded. Products stay
// below 2^32 for sizes up to 2^15.
struct Between {
    int low, high;
    float share;
};

__device__ __forceinline__ Between locate(int i, int size)
{
    const unsigned position = (unsigned)i * (size - 1), last = 2 * size - 1;
    const int low = position / last;
    return {low, min(low + 1, size - 1), float(position - low * last) / float(last)};
}

// How much of input row `h` is in output row i.
__device__ __forceinline__ float share_of(int h, int i, int size)
{
    const Between row = locate(i, size);
    return h == row.low ? 1.0f - row.share : h == row.high ? row.share : 0.0f;
}
