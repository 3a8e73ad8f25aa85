// SPDX-License-Identifier: MIT
// Implicit GEMM: what every kernel that multiplies matrices has in common.
//
// Layout: x (N, H, W, C), w (K, R, S, C), y (N, P, Q, K), all contiguous: channels lie side by
// side, so that whatever a pass sums over or fills comes in vectors.
//
// A pass is one matrix product, out (ROWS x COLUMNS) = a (ROWS x DEPTH) b (DEPTH x COLUMNS), whose
// operands are never built: each block fetches from x, w or dy what its tile of them would hold.
//
// Tiles     A block computes TILE_M x TILE_N of out, DEPTH in steps of TILE_D; a warp WARP_M x
//           WARP_N of that.
// Stages    STAGES tiles of both operands lie in shared memory: one is multiplied, the others are
//           under way. Copies go past the registers (cp.async), and past L1.
// Splits    Where out has too few tiles for the chip, `splits` blocks share one and each takes a
//           part of DEPTH; the parts lie one behind the other, and conv2d_splits_1_sum adds them.
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

extern __shared__ __align__(16) float room[];

// Copies some words, or zeros where `inside` is false.
template <int WORDS>
__device__ __forceinline__ void copy_words(float* to, const float* from, bool inside)
{
#ifdef COPY_THROUGH_REGISTERS
    if constexpr (WORDS == 4)
        *(float4*)to = inside ? *(const float4*)from : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    else
        *to = inside ? *from : 0.0f;
#else
    cp_async<4 * WORDS>(to, from, inside);
#endif
}

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
            copy_words<VECTOR>(tile + line(i) * PITCH + place(), from, inside);
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

// The operand a whose rows are pixels, and whose depth is what lies around each, tap by tap.
// `Around` says where a row lies, and which pixel of its image a tap finds there, if any.
struct Row {
    const float* image;
    int h, w;
};
template <class Around>
struct Neighbours : Around {
    using Tile = ::Tile<TILE_M, TILE_D, true, VECTOR_A>;
    // Where each row lies is kept, unless rows are too many for the registers: where words are
    // copied one by one, as those of three channels, whose whole DEPTH is one tile.
    static constexpr bool KEPT = VECTOR_A > 1;
    Row rows[KEPT ? Tile::EACH : 1];
    Taps taps;
    long long first;

    __device__ __forceinline__ Neighbours(const Around& around, const Part& part, int channels)
        : Around(around), taps(part.first * TILE_D + Tile::place(), channels), first(part.row)
    {
        if (KEPT)
#pragma unroll
            for (int i = 0; i < Tile::EACH; ++i)
                rows[i * KEPT] = this->locate(first + Tile::line(i));
    }
    __device__ __forceinline__ void fetch(float* tile)
    {
#pragma unroll(KEPT ? Tile::EACH : 1)
        for (int i = 0; i < Tile::EACH; ++i) {
            const Row& row = KEPT ? rows[i * KEPT] : this->locate(first + Tile::line(i));
            int pixel;
            const bool inside = this->find(row, taps.r, taps.s, pixel) && taps.r < R;
            Tile::copy(tile, i, row.image + (size_t)pixel * taps.channels + taps.channel, inside);
        }
        taps.next();
    }
};

// Fetches the next tile of each operand into a stage.
template <class A, class B>
__device__ __forceinline__ void fetch(A& a, B& b, float* stage)
{
    a.fetch(stage);
    b.fetch(stage + A::Tile::WORDS);
}

// Calls add(tile of a, tile of b) for so many tiles in order, while later ones are under way.
template <class A, class B, class Add>
__device__ __forceinline__ void for_each_tile(A& a, B& b, int tiles, Add&& add)
{
    constexpr int STAGE = A::Tile::WORDS + B::Tile::WORDS;
    for (int i = 0; i < STAGES - 1; ++i) {
        if (i < tiles) fetch(a, b, room + i * STAGE);
        cp_async_commit();
    }
    for (int tile = 0; tile < tiles; ++tile) {
        cp_async_wait<STAGES - 2>();
        __syncthreads();  // this tile is there, and everyone is done with the one before it, in
                          // whose place the next is fetched
        if (tile + STAGES - 1 < tiles) fetch(a, b, room + (tile + STAGES - 1) % STAGES * STAGE);
        cp_async_commit();
        const float* stage = room + tile % STAGES * STAGE;
        add(stage, stage + A::Tile::WORDS);
    }
}
