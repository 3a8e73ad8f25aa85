// SPDX-License-Identifier: MIT
// The operands of a convolution as a matrix product: a has a row for each output pixel and holds
// what lies under the filter there, b has a column for each filter.

// a: row (n, p, q), depth (r, s, c).
struct AroundOutput {
    const Element* x;
    int N, C, H, W, P, Q, pad_h, pad_w;
    static constexpr bool IN_NUMBERS = SOURCE;

    __device__ __forceinline__ Row locate(long long row) const
    {
        const int q = row % Q, p = row / Q % P, n = row / Q / P;
        // A row beyond the last lies above every image.
        const size_t image = SOURCE ? SOURCE_IMAGE : (size_t)H * W * C;
        return {x + n * image, n < N ? p * STRIDE_H - pad_h : -R - 1,
                q * STRIDE_W - pad_w};
    }
    __device__ __forceinline__ bool find(const Row& row, int r, int s, int& pixel) const
    {
        const int h = row.h + r, v = row.w + s;
        pixel = SOURCE ? h * SOURCE_LINE + v * SOURCE_PITCH : h * W + v;
        return h >= 0 && h < H && v >= 0 && v < W;
    }
};
using Pixels = Neighbours<AroundOutput>;

// b: depth (r, s, c), column k. A filter lies as its column runs.
struct Filters {
    using Tile = ::Tile<TILE_N, TILE_D, true, VECTOR_B>;
    const Element* w;
    int k0, K, depth, length;

    __device__ __forceinline__ Filters(const Element* w, const Part& part, int C, int K)
        : w(w), k0(part.column), K(K), depth(part.first * TILE_D + Tile::place()), length(R * S * C)
    {
    }
    __device__ __forceinline__ void fetch(Element* tile)
    {
#pragma unroll
        for (int i = 0; i < Tile::EACH; ++i) {
            const int k = k0 + Tile::line(i);
            Tile::copy(tile, i, w + (size_t)k * length + depth, k < K && depth < length);
        }
        depth += TILE_D;
    }
};
