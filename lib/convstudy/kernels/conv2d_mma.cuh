// SPDX-License-Identifier: MIT
// The products of a warp on tensor cores, 16 x 8 x 8 (m, n, d) at a time.
//
// Precision TERMS 1: operands rounded to TF32. TERMS 3: each operand is the sum of two TF32
//           numbers, and the three larger of the four products are added: fp32, to a bit or so.
//           Tensor cores drop what does not fit their sum; over a long DEPTH that would add up to
//           a bias. So each tile has a sum of its own, which is then added with rounding.
#ifndef TERMS
#define TERMS 3
#endif

constexpr int PRODUCTS_M = WARP_M / 16;
constexpr int PRODUCTS_N = WARP_N / 8;

// What a warp holds of an operand at 8 places of DEPTH: TF32, and what that leaves of fp32.
template <int COUNT>
struct Fragment {
    unsigned high[COUNT], low[COUNT];

    __device__ __forceinline__ void set(int i, float value)
    {
        high[i] = to_tf32(value);
        if (TERMS == 3) low[i] = to_tf32(value - __uint_as_float(high[i]));
    }
};

__device__ __forceinline__ void multiply(float (&sum)[4], const Fragment<4>& a,
                                         const Fragment<2>& b)
{
    if (TERMS == 3) {  // the small ones first
        mma_tf32(sum, a.low, b.high);
        mma_tf32(sum, a.high, b.low);
    }
    mma_tf32(sum, a.high, b.high);
}

// The product of one block.
template <class A, class B>
struct Product {
    float sum[PRODUCTS_M][PRODUCTS_N][4] = {};

    __device__ __forceinline__ void run(A& a, B& b, int tiles)
    {
        for_each_tile(a, b, tiles, [&](const float* tile_a, const float* tile_b) {
            add(tile_a, tile_b);
        });
    }

    __device__ __forceinline__ void add(const float* tile_a, const float* tile_b)
    {
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        const int m = warp / WARPS_N * WARP_M + lane / 4;
        const int n = warp % WARPS_N * WARP_N + lane / 4;
        float parts[PRODUCTS_M][PRODUCTS_N][4] = {};
        auto& part = TERMS == 3 ? parts : sum;
#pragma unroll
        for (int depth = 0; depth < TILE_D; depth += 8) {
            const int d = depth + lane % 4;
            Fragment<2> b[PRODUCTS_N];
#pragma unroll
            for (int j = 0; j < PRODUCTS_N; ++j)
#pragma unroll
                for (int i = 0; i < 2; ++i) b[j].set(i, B::Tile::at(tile_b, n + 8 * j, d + 4 * i));
#pragma unroll
            for (int i = 0; i < PRODUCTS_M; ++i) {
                Fragment<4> a;
#pragma unroll
                for (int f = 0; f < 4; ++f)
                    a.set(f, A::Tile::at(tile_a, m + 16 * i + f % 2 * 8, d + f / 2 * 4));
#pragma unroll
                for (int j = 0; j < PRODUCTS_N; ++j) multiply(part[i][j], a, b[j]);
            }
        }
        if (TERMS == 1) return;
#pragma unroll
        for (int i = 0; i < PRODUCTS_M; ++i)
#pragma unroll
            for (int j = 0; j < PRODUCTS_N; ++j)
#pragma unroll
                for (int f = 0; f < 4; ++f) sum[i][j][f] += part[i][j][f];
    }

    // Writes the block's tile of out, which has `rows` rows of `columns`.
    __device__ __forceinline__ void store(float* out, const float* bias, const Part& part,
                                          long long rows, int columns) const
    {
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        const int m = part.row + warp / WARPS_N * WARP_M + lane / 4;
        const int n = part.column + warp % WARPS_N * WARP_N + lane % 4 * 2;
        out += part.split * rows * columns;
#pragma unroll
        for (int i = 0; i < PRODUCTS_M; ++i)
#pragma unroll
            for (int j = 0; j < PRODUCTS_N; ++j)
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const long long row = m + 16 * i + 8 * half;
                    const int column = n + 8 * j;
                    if (row >= rows || column >= columns) continue;
                    float left = sum[i][j][2 * half], right = sum[i][j][2 * half + 1];
                    float* to = out + row * columns + column;
                    if (bias) left += bias[column];
                    if (VECTOR_OUT == 2) {
                        if (bias) right += bias[column + 1];
                        *(float2*)to = make_float2(left, right);
                    } else {
                        to[0] = left;
                        if (column + 1 < columns) to[1] = bias ? right + bias[column + 1] : right;
                    }
                }
    }
};
