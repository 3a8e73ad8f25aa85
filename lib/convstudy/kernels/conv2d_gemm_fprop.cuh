// SPDX-License-Identifier: MIT
// The operands of a convolution as a matrix product: a has a row for each output pixel and holds
// what lies under the filter there, b has a column for each filter.

// a: row (n, p, q), depth (r, s, c).
struct Pixels {
    using Tile = ::Tile<TILE_M, TILE_D, true, VECTOR_A>;
    struct Row {
        const float* image;
        int h, w;
    };
    // Where each row lies is kept, unless rows are too many for the registers: words copied one by
    // one, as those of three channels, whose whole DEPTH is one tile.
    static constexpr bool KEPT = VECTOR_A > 1;
    Row rows[KEPT ? Tile::EACH : 1];
    Taps taps;
    const float* x;
    int row, N, C, H, W, P, Q, pad_h, pad_w;

    __device__ __forceinline__ Pixels(const float* x, const Part& part, CONV2D_SIZES)
        : taps(part.first * TILE_D + Tile::place(), C), x(x), row(part.row), N(N), C(C), H(H), W(W),
          P(P), Q(Q), pad_h(pad_h), pad_w(pad_w)
    {
        if (KEPT)
#pragma unroll
            for (int i = 0; i < Tile::EACH; ++i) rows[i * KEPT] = locate(i);
    }
    __device__ __forceinline__ Row locate(int i) const
    {
        const long long at = (long long)row + Tile::line(i);
        const int q = at % Q, p = at / Q % P, n = at / Q / P;
        // A row beyond the last lies above every image.
        return {x + (size_t)n * H * W * C, n < N ? p * STRIDE_H - pad_h : -R - 1,
                q * STRIDE_W - pad_w};
    }
    __device__ __forceinline__ void fetch(float* tile)
    {
#pragma unroll(KEPT ? Tile::EACH : 1)
        for (int i = 0; i < Tile::EACH; ++i) {
            const Row& from = KEPT ? rows[i * KEPT] : locate(i);
            const int h = from.h + taps.r, v = from.w + taps.s;
            const bool inside = taps.r < R && h >= 0 && h < H && v >= 0 && v < W;
            Tile::copy(tile, i, from.image + ((size_t)h * W + v) * C + taps.channel, inside);
        }
        taps.next();
    }
};

// b: depth (r, s, c), column k. A filter lies as its column runs.
struct Filters {
    using Tile = ::Tile<TILE_N, TILE_D, true, VECTOR_B>;
    const float* w;
    int k0, K, depth, length;

    __device__ __forceinline__ Filters(const float* w, const Part& part, int C, int K)
        : w(w), k0(part.column), K(K), depth(part.first * TILE_D + Tile::place()), length(R * S * C)
    {
    }
    __device__ __forceinline__ void fetch(float* tile)
    {
#pragma unroll
        for (int i = 0; i < Tile::EACH; ++i) {
            const int k = k0 + Tile::line(i);
            Tile::copy(tile, i, w + (size_t)k * length + depth, k < K && depth < length);
        }
        depth += TILE_D;
    }
};
