// SPDX-License-Identifier: MIT
// The products of a warp on tensor cores, 16 x 8 (m, n) and 32 bytes of depth at a time: 8 numbers
// of fp32, 16 of bf16.
//
// bf16      Operands as they are; their products are exact in fp32. Tensor cores drop what does not
//           fit their sum, which is far less than what rounding the result drops.
// fp32      TERMS 1: operands rounded to TF32, summed as bf16 is. TERMS 3: each operand is the sum
//           of two TF32 numbers, and the three larger of the four products are added: fp32, to a
//           bit or so. Over a long DEPTH, what tensor cores drop would add up to a bias. So each
//           tile has a sum of its own, which is then added with rounding.
#ifndef TERMS
#define TERMS 3
#endif

constexpr int PRODUCTS_M = WARP_M / 16;
constexpr int PRODUCTS_N = WARP_N / 8;
constexpr int PRODUCT_D = 32 / sizeof(Element);
static_assert(PRODUCTS_N % 2 == 0, "columns are read 16 at a time");

// Reads 16 rows of a, or 16 columns of b, from `across` on, at 32 bytes of depth. Lane l gets, in
// word i, row l / 4 + i % 2 * 8 at word l % 4 + i / 2 * 4 of the depth.
template <class Tile>
__device__ __forceinline__ void read(unsigned (&words)[4], const Element* tile, int across,
                                     int depth)
{
    const int lane = threadIdx.x % 32;
    if constexpr (Tile::ALONG) {
        const int line = across + lane % 16, place = depth + lane / 16 * (PRODUCT_D / 2);
        ldmatrix<false>(words, tile + line * Tile::PITCH + place);
    } else if constexpr (BF16) {
        const int line = depth + lane / 16 * 8 + lane % 8, place = across + lane / 8 % 2 * 8;
        ldmatrix<true>(words, tile + line * Tile::PITCH + place);
    } else {  // ldmatrix transposes nothing of 32 bits
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int line = depth + lane % 4 + i / 2 * 4, place = across + lane / 4 + i % 2 * 8;
            words[i] = __float_as_uint(tile[line * Tile::PITCH + place]);
        }
    }
}

// What a warp holds of an operand at 32 bytes of depth.
template <int COUNT>
struct Fragment {
#if BF16
    unsigned words[COUNT];

    __device__ __forceinline__ void set(int i, unsigned word) { words[i] = word; }
#else
    unsigned high[COUNT], low[COUNT];  // TF32, and what that leaves of fp32

    __device__ __forceinline__ void set(int i, unsigned word)
    {
        const float value = __uint_as_float(word);
        high[i] = to_tf32(value);
        if (TERMS == 3) low[i] = to_tf32(value - __uint_as_float(high[i]));
    }
#endif
};

__device__ __forceinline__ void multiply(float (&sum)[4], const Fragment<4>& a,
                                         const Fragment<2>& b)
{
#if BF16
    mma_bf16(sum, a.words, b.words);
#else
    if (TERMS == 3) {  // the small ones first
        mma_tf32(sum, a.low, b.high);
        mma_tf32(sum, a.high, b.low);
    }
    mma_tf32(sum, a.high, b.high);
#endif
}

// The product of one block.
template <class A, class B>
struct Product {
    using Sums = float[PRODUCTS_M][PRODUCTS_N][4];
    Sums sum = {};

    __device__ __forceinline__ void run(A& a, B& b, int tiles)
    {
        for_each_tile(a, b, tiles, [&](const Element* tile_a, const Element* tile_b) {
            if constexpr (BF16 || TERMS == 1) {
                add(sum, tile_a, tile_b);
                return;
            }
            Sums part = {};
            add(part, tile_a, tile_b);
#pragma unroll
            for (int i = 0; i < PRODUCTS_M; ++i)
#pragma unroll
                for (int j = 0; j < PRODUCTS_N; ++j)
#pragma unroll
                    for (int f = 0; f < 4; ++f) sum[i][j][f] += part[i][j][f];
        });
    }

    static __device__ __forceinline__ void add(Sums& to, const Element* tile_a,
                                               const Element* tile_b)
    {
        const int warp = threadIdx.x / 32;
        const int m = warp / WARPS_N * WARP_M, n = warp % WARPS_N * WARP_N;
#pragma unroll
        for (int depth = 0; depth < TILE_D; depth += PRODUCT_D) {
            unsigned words[4];
            Fragment<2> b[PRODUCTS_N];
#pragma unroll
            for (int j = 0; j < PRODUCTS_N; j += 2) {
                read<typename B::Tile>(words, tile_b, n + 8 * j, depth);
#pragma unroll
                for (int f = 0; f < 4; ++f) b[j + f % 2].set(f / 2, words[f]);
            }
#pragma unroll
            for (int i = 0; i < PRODUCTS_M; ++i) {
                read<typename A::Tile>(words, tile_a, m + 16 * i, depth);
                Fragment<4> a;
#pragma unroll
                for (int f = 0; f < 4; ++f) a.set(f, words[f]);
#pragma unroll
                for (int j = 0; j < PRODUCTS_N; ++j) multiply(to[i][j], a, b[j]);
            }
        }
    }

    // Writes the block's tile of out, which has `rows` rows of `columns`.
    __device__ __forceinline__ void store(Result* out, const float* bias, const Part& part,
                                          long long rows, const View& view) const
    {
        const int columns = view.columns;
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        const int m = part.row + warp / WARPS_N * WARP_M + lane / 4;
        const int n = part.column + warp % WARPS_N * WARP_N + lane % 4 * 2;
        out += part.split * rows * columns;
#pragma unroll
        for (int i = 0; i < PRODUCTS_M; ++i)
#pragma unroll
            for (int j = 0; j < PRODUCTS_N; j += 2)
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const long long row = m + 16 * i + 8 * half;
                    float values[2][2];  // of two products, side by side
#pragma unroll
                    for (int f = 0; f < 4; ++f) {
                        const int column = n + 8 * j + f / 2 * 8 + f % 2;
                        const float value = sum[i][j + f / 2][2 * half + f % 2];
                        values[f / 2][f % 2] = activated(
                            bias && column < columns ? value + bias[view.filter(column)] : value);
                    }
                    write(out, view, row, values, n + 8 * j, row < rows ? columns : 0);
                }
    }

    // Writes two neighbours from `column` on, and two 8 columns further, where below `columns`.
    static __device__ __forceinline__ void write(Result* out, const View& view, long long row,
                                                 const float (&values)[2][2], int column,
                                                 int columns)
    {
#if VECTOR_OUT == 4
        // Neighbouring lanes swap, so that one has four columns of the first product, and the other
        // four of the second: four lanes then write 32 bytes, which is as memory takes them.
        const bool odd = threadIdx.x % 2;
        const unsigned first = to_bf16x2(values[0][0], values[0][1]);
        const unsigned second = to_bf16x2(values[1][0], values[1][1]);
        const unsigned other = __shfl_xor_sync(~0u, odd ? first : second, 1);
        if (odd) column += 6;
        if (column < columns)
            *(uint2*)(out + view.at(row, column)) =
                odd ? make_uint2(other, second) : make_uint2(first, other);
#else
#pragma unroll
        for (int j = 0; j < 2; ++j, column += 8)
            if (VECTOR_OUT == 2) {
                if (column < columns)
                    *(float2*)(out + view.at(row, column)) =
                        make_float2(values[j][0], values[j][1]);
            } else {
#pragma unroll
                for (int f = 0; f < 2; ++f)
                    if (column + f < columns) out[view.at(row, column + f)] = values[j][f];
            }
#endif
    }
};
