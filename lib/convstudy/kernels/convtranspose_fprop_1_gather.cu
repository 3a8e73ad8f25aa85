// SPDX-License-Identifier: MIT
// Transposed convolution, 2 x 2 at stride 2, as the matrix product that it is.
//
// Idea      Taps do not overlap: output pixel (2 h + r, 2 w + s) has one tap, of input pixel
//           (h, w). So y[pixel][k r s] = sum over c of x[c][pixel] w[c][k r s], where both
//           operands lie in memory with c slowest, ready to be tiled. A block holds TILE_C
//           channels of both in shared memory; a thread makes 4 x 4 outputs of 8 words.
// Threads   Thread (tx, ty) computes filter k0 + ty, all four taps, of pixels m0 + tx + 16 j,
//           j < 4, pixels counted through all images. Its taps lie side by side in w, and make
//           two pairs of neighbours in y; a half-warp stores 16 pairs in one line.
// Shared    4 TILE_C (TILE_M + TILE_N) bytes, static: 8,192 with the defaults.
// Order     c ascending, each product added by one fused multiply-add, the bias last.
// Source    V. Volkov, "Better performance at lower occupancy", GTC 2010, for the blocking.
constexpr int TILE_M = 64;  // pixels of the input
constexpr int TILE_N = 64;  // filters times taps
constexpr int TILE_C = 16;
constexpr int TAPS = 4;
constexpr int REG_M = 4;
constexpr int THREADS = TILE_M / REG_M * (TILE_N / TAPS);
// The threads that load a row of a tile, which are as many as it has words, and the rows at once.
constexpr int ROWS = THREADS / TILE_M;
static_assert(TILE_M == TILE_N, "both tiles are loaded by the same threads");

extern "C" __global__ void __launch_bounds__(THREADS)
convtranspose_fprop_1_gather(const float* __restrict__ x, const float* __restrict__ w,
                             const float* __restrict__ bias, float* __restrict__ y, int N, int C,
                             int H, int W, int K)
{
    __shared__ float pixels[TILE_C][TILE_M];
    __shared__ __align__(16) float weights[TILE_C][TILE_N];

    const int columns = K * TAPS, plane = H * W;
    const int blocks_n = (columns + TILE_N - 1) / TILE_N;
    // Blocks count filters fastest: those that run together share the pixels in L2.
    const int n0 = blockIdx.x % blocks_n * TILE_N;
    const size_t m0 = blockIdx.x / blocks_n * (size_t)TILE_M;
    const size_t count = (size_t)N * plane;

    const int thread = threadIdx.x;
    const int load_column = thread % TILE_M, load_row = thread / TILE_M;
    const size_t m = m0 + load_column;
    const float* from_x = x + m / plane * C * plane + m % plane;
    const float* from_w = w + n0 + load_column;
    const bool pixel_inside = m < count, column_inside = n0 + load_column < columns;

    const int tx = thread % (TILE_M / REG_M), ty = thread / (TILE_M / REG_M);
    float sum[REG_M][TAPS] = {};
    for (int c0 = 0; c0 < C; c0 += TILE_C) {
#pragma unroll
        for (int row = load_row; row < TILE_C; row += ROWS) {
            const int c = c0 + row;
            pixels[row][load_column] =
                pixel_inside && c < C ? from_x[(size_t)c * plane] : 0.0f;
            weights[row][load_column] =
                column_inside && c < C ? from_w[(size_t)c * columns] : 0.0f;
        }
        __syncthreads();  // the tile is complete before anyone reads it
#pragma unroll
        for (int c = 0; c < TILE_C; ++c) {
            float tap[TAPS];
#pragma unroll
            for (int t = 0; t < TAPS; ++t) tap[t] = weights[c][ty * TAPS + t];
#pragma unroll
            for (int j = 0; j < REG_M; ++j) {
                const float pixel = pixels[c][tx + j * (TILE_M / REG_M)];
#pragma unroll
                for (int t = 0; t < TAPS; ++t) sum[j][t] = fmaf(pixel, tap[t], sum[j][t]);
            }
        }
        __syncthreads();  // everyone has read before the next tile overwrites it
    }

    const int k = n0 / TAPS + ty;
    if (k >= K) return;
    const float shift = bias[k];
#pragma unroll
    for (int j = 0; j < REG_M; ++j) {
        const size_t out = m0 + tx + j * (TILE_M / REG_M);
        if (out >= count) return;
        const int pixel = out % plane;
        float* corner = y + (out / plane * K + k) * TAPS * plane +
                        (size_t)(pixel / W) * 4 * W + pixel % W * 2;
        // 2 W is even, so that every pair starts on 8 bytes.
        *reinterpret_cast<float2*>(corner) = make_float2(sum[j][0] + shift, sum[j][1] + shift);
        *reinterpret_cast<float2*>(corner + 2 * W) =
            make_float2(sum[j][2] + shift, sum[j][3] + shift);
    }
}
