// SPDX-License-Identifier: MIT
// The products of a thread by fused multiply-adds: 8 x 8 outputs, four places of DEPTH at a time.
//
// SPREAD 0: a thread's outputs lie side by side. SPREAD 1: a warp's 64 x 32 outputs are dealt out
// among its lanes, rows one by one to 8 lanes, columns by fours to 4: eight lanes that read
// together then read eight neighbouring lines of a, in banks of their own, and one line of b.
#ifndef SPREAD
#define SPREAD 1
#endif

struct ThreadTile {
    float sum[8][8] = {};

    static __device__ __forceinline__ int row(int i)
    {
        const int thread = threadIdx.x, warp = thread / 32;
        return SPREAD ? warp / WARPS_N * WARP_M + thread % 8 + 8 * i
                      : thread / (TILE_N / 8) * 8 + i;
    }
    static __device__ __forceinline__ int column(int j)
    {
        const int thread = threadIdx.x, warp = thread / 32;
        return SPREAD ? warp % WARPS_N * WARP_N + thread % 32 / 8 * 4 + j % 4 + j / 4 * 16
                      : thread % (TILE_N / 8) * 8 + j;
    }

    template <class A, class B>
    __device__ __forceinline__ void add(const float* tile_a, const float* tile_b)
    {
        static_assert(WARP_M == 64 && WARP_N == 32, "a warp has 32 times 8 x 8 outputs");
#pragma unroll 2
        for (int depth = 0; depth < TILE_D; depth += 4) {
            float4 a[8];
#pragma unroll
            for (int i = 0; i < 8; ++i)
                a[i] = *(const float4*)(tile_a + row(i) * A::Tile::PITCH + depth);
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                const float4 b = *(const float4*)(tile_b + column(j) * B::Tile::PITCH + depth);
#pragma unroll
                for (int i = 0; i < 8; ++i) {
                    sum[i][j] = fmaf(a[i].x, b.x, sum[i][j]);
                    sum[i][j] = fmaf(a[i].y, b.y, sum[i][j]);
                    sum[i][j] = fmaf(a[i].z, b.z, sum[i][j]);
                    sum[i][j] = fmaf(a[i].w, b.w, sum[i][j]);
                }
            }
        }
    }

    __device__ __forceinline__ void store(float* out, const float* bias, const Part& part,
                                          long long rows, int columns) const
    {
        out += part.split * rows * columns;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const long long at = part.row + row(i);
            if (at >= rows) return;
#pragma unroll
            for (int j = 0; j < 8; j += 4) {
                const int first = part.column + column(j);
                float values[4];
#pragma unroll
                for (int v = 0; v < 4; ++v)
                    values[v] = bias && first + v < columns ? sum[i][j + v] + bias[first + v]
                                                            : sum[i][j + v];
                float* to = out + at * columns + first;
                if (VECTOR_OUT == 4) {
                    if (first < columns)
                        *(float4*)to = make_float4(values[0], values[1], values[2], values[3]);
                } else {
#pragma unroll
                    for (int v = 0; v < 4; ++v)
                        if (first + v < columns) to[v] = values[v];
                }
            }
        }
    }
};
