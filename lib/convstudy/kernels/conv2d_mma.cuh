// SPDX-License-Identifier: MIT
// Implicit GEMM on tensor cores: what the three passes have in common.
//
// Layout: x (N, H, W, C), w (K, R, S, C), y (N, P, Q, K), all contiguous: channels lie side by
// side, so that whatever a pass sums over or fills comes in vectors.
//
// A pass is one matrix product, out (ROWS x COLUMNS) = a (ROWS x DEPTH) b (DEPTH x COLUMNS), whose
// operands are never built: each block fetches from x, w or dy what its tile of them would hold.
//
// Tiles     A block computes TILE_M x TILE_N of out, DEPTH in steps of TILE_D; a warp WARP_M x
//           WARP_N of that, in products of 16 x 8 x 8 (m, n, d).
// Stages    STAGES tiles of both operands lie in shared memory: one is multiplied, the others are
//           under way. Copies go past the registers (cp.async), and past L1.
// Splits    Where out has too few tiles for the chip, `splits` blocks share one and each takes a
//           part of DEPTH; the parts lie one behind the other, and conv2d_splits_1_sum adds them.
// Precision TERMS 1: operands rounded to TF32. TERMS 3: each operand is the sum of two TF32
//           numbers, and the three larger of the four products are added: fp32, to a bit or so.
//           Tensor cores drop what does not fit their sum; over a long DEPTH that would add up to
//           a bias. So each tile has a sum of its own, which is then added with rounding.
#ifndef WARPS_M
#define WARPS_M 4
#endif
#ifndef WARPS_N
#define WARPS_N 2
#endif
#ifndef WARP_M
#define WARP_M 32
#endif
#ifndef WARP_N
#define WARP_N 32
#endif
#ifndef STAGES
#define STAGES 3
#endif
#ifndef TERMS
#define TERMS 3
#endif
// Floats that lie side by side and start on as many words: in a, in b, and in out.
#ifndef VECTOR_A
#define VECTOR_A 4
#endif
#ifndef VECTOR_B
#define VECTOR_B 4
#endif
#ifndef VECTOR_OUT
#define VECTOR_OUT 2
#endif

constexpr int TILE_M = WARPS_M * WARP_M;
constexpr int TILE_N = WARPS_N * WARP_N;
constexpr int TILE_D = 32;
constexpr int THREADS = 32 * WARPS_M * WARPS_N;
constexpr int PRODUCTS_M = WARP_M / 16;
constexpr int PRODUCTS_N = WARP_N / 8;

extern __shared__ __align__(16) float room[];

// A tile of an operand in shared memory: LINES lines of LENGTH floats. The padding lets the 32
// words of a fragment fall into 32 banks: lanes differ in 8 lines and 4 places of a line where
// depth runs along the line (4 words more), in 4 lines and 8 places where it runs across (8 more).
template <int LINES, int LENGTH, bool DEPTH_ALONG, int VECTOR>
struct Tile {
    static constexpr int PITCH = LENGTH + (DEPTH_ALONG ? 4 : 8);
    static constexpr int WORDS = LINES * PITCH;
    // Thread t copies vectors at one place of lines FIRST, FIRST + STEP, ...
    static constexpr int VECTORS = LENGTH / VECTOR;
    static constexpr int STEP = THREADS / VECTORS;
    static constexpr int EACH = (LINES + STEP - 1) / STEP;
    static_assert(THREADS % VECTORS == 0, "a line is no whole number of threads");

    static __device__ __forceinline__ int line(int i) { return threadIdx.x / VECTORS + i * STEP; }
    static __device__ __forceinline__ int place() { return threadIdx.x % VECTORS * VECTOR; }
    static __device__ __forceinline__ void copy(float* tile, int i, const float* from, bool inside)
    {
        if (LINES % STEP == 0 || line(i) < LINES)
            cp_async<4 * VECTOR>(tile + line(i) * PITCH + place(), from, inside);
    }
    // Element `across` (a row of a, a column of b) at `depth`.
    static __device__ __forceinline__ float at(const float* tile, int across, int depth)
    {
        return DEPTH_ALONG ? tile[across * PITCH + depth] : tile[depth * PITCH + across];
    }
};

// Counts (r, s, channel) along DEPTH, channel fastest, in steps of TILE_D.
struct Taps {
    int channel, s, r, channels;

    __device__ __forceinline__ Taps(int depth, int channels) : channels(channels)
    {
        channel = depth % channels;
        s = depth / channels % S;
        r = depth / channels / S;
    }
    __device__ __forceinline__ void next()
    {
        for (channel += TILE_D; channel >= channels; channel -= channels)
            if (++s == S) s = 0, ++r;
    }
};

// Which tile of out this block computes, and which part of DEPTH.
struct Part {
    int row, column, split, first, count;  // first and count in tiles of DEPTH

    __device__ __forceinline__ Part(long long rows, int columns, long long depth, int splits)
    {
        const int blocks_n = divide_up(columns, TILE_N);
        const int blocks_m = (int)((rows + TILE_M - 1) / TILE_M);
        const int tiles = (int)((depth + TILE_D - 1) / TILE_D);
        const int each = divide_up(tiles, splits);
        column = blockIdx.x % blocks_n * TILE_N;
        row = blockIdx.x / blocks_n % blocks_m * TILE_M;
        split = blockIdx.x / blocks_n / blocks_m;
        first = split * each;
        count = max(0, min(each, tiles - first));
    }
};

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

// The product of one block. `A` and `B` say how their tiles lie, and fetch the next one.
template <class A, class B>
struct Product {
    float sum[PRODUCTS_M][PRODUCTS_N][4] = {};

    __device__ __forceinline__ void run(A& a, B& b, int tiles)
    {
        constexpr int STAGE = A::Tile::WORDS + B::Tile::WORDS;
        for (int i = 0; i < STAGES - 1; ++i) {
            if (i < tiles) fetch(a, b, room + i * STAGE);
            cp_async_commit();
        }
        for (int tile = 0; tile < tiles; ++tile) {
            cp_async_wait<STAGES - 2>();
            __syncthreads();  // this tile is there, and everyone is done with the one before it,
                              // in whose place the next is fetched
            if (tile + STAGES - 1 < tiles)
                fetch(a, b, room + (tile + STAGES - 1) % STAGES * STAGE);
            cp_async_commit();
            const float* stage = room + tile % STAGES * STAGE;
            add(stage, stage + A::Tile::WORDS);
        }
    }

    static __device__ __forceinline__ void fetch(A& a, B& b, float* stage)
    {
        a.fetch(stage);
        b.fetch(stage + A::Tile::WORDS);
    }

    __device__ __forceinline__ void add(const float* tile_a, const float* tile_b)
    {
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        const int m = warp / WARPS_N * WARP_M + lane / 4;
        const int n = warp % WARPS_N * WARP_N + lane / 4;
        float part[PRODUCTS_M][PRODUCTS_N][4] = {};
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
