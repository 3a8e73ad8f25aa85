// SPDX-License-Identifier: MIT
// Implicit GEMM: what every kernel that multiplies matrices has in common.
//
// Layout: x (N, H, W, C), w (K, R, S, C), y (N, P, Q, K), all contiguous: channels lie side by
// side, so that whatever a pass sums over or fills comes in vectors. All are fp32, or all bf16.
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
// 1: x, w and y are bf16, and so are their gradients; PARTS 1: all but the result, which is added
// up later; WIDE 1: all but the result, which stays fp32.
#ifndef BF16
#define BF16 0
#endif
#ifndef PARTS
#define PARTS 0
#endif
#ifndef WIDE
#define WIDE 0
#endif
#if BF16
using Element = bf16;
#else
using Element = float;
#endif
#if BF16 && !PARTS && !WIDE
using Result = bf16;
#else
using Result = float;
#endif
// Numbers that lie side by side and start on as many: in a and in b 16 bytes, or 1; in out 2 of
// fp32 or 4 of bf16, or 1.
#ifndef VECTOR_A
#define VECTOR_A (BF16 ? 8 : 4)
#endif
#ifndef VECTOR_B
#define VECTOR_B (BF16 ? 8 : 4)
#endif
#ifndef VECTOR_OUT
#define VECTOR_OUT (BF16 && !PARTS && !WIDE ? 4 : 2)
#endif

constexpr int TILE_M = WARPS_M * WARP_M;
constexpr int TILE_N = WARPS_N * WARP_N;
constexpr int TILE_D = 128 / sizeof(Element);
constexpr int THREADS = 32 * WARPS_M * WARPS_N;

// Where the pixels of x lie, if it is a part of a wider and larger array.
#ifndef SOURCE
#define SOURCE 0
#define SOURCE_PITCH 0
#define SOURCE_LINE 0
#define SOURCE_IMAGE 0
#endif

extern __shared__ __align__(16) Element room[];

// Copies COUNT numbers that lie side by side, or zeros where `inside` is false.
template <int COUNT>
__device__ __forceinline__ void copy_numbers(Element* to, const Element* from, bool inside)
{
#ifdef COPY_THROUGH_REGISTERS
    if constexpr (COUNT == 4)
        *(float4*)to = inside ? *(const float4*)from : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    else
        *to = inside ? *from : 0.0f;
#else
    if constexpr (COUNT * sizeof(Element) >= 4)
        cp_async<COUNT * sizeof(Element)>(to, from, inside);
    else  // a single bf16 is less than cp.async can copy
        *to = inside ? *from : Element{};
#endif
}

// A tile of an operand in shared memory: LINES lines of LENGTH numbers. The padding lets what a
// warp reads at once fall into 32 banks: eight lines at four words each by ldmatrix (4 words
// more), or, fp32 with depth across the lines, four lines at eight words each (8 words more).
template <int LINES, int LENGTH, bool DEPTH_ALONG, int VECTOR>
struct Tile {
    static constexpr bool ALONG = DEPTH_ALONG;
    static constexpr int PITCH = LENGTH + (DEPTH_ALONG ? 16 / sizeof(Element) : 8);
    static constexpr int SIZE = LINES * PITCH;
    static constexpr int WORDS = SIZE * sizeof(Element) / 4;
    // Thread t copies vectors at one place of lines FIRST, FIRST + STEP, ...
    static constexpr int VECTORS = LENGTH / VECTOR;
    static constexpr int STEP = THREADS / VECTORS;
    static constexpr int EACH = (LINES + STEP - 1) / STEP;
    static_assert(THREADS % VECTORS == 0, "a line is no whole number of threads");
    // What counts its lines on needs no more: the next tile begins where this one ends.
    static_assert(DEPTH_ALONG || LINES % STEP == 0, "lines are no whole number of steps");

    static __device__ __forceinline__ int line(int i) { return threadIdx.x / VECTORS + i * STEP; }
    static __device__ __forceinline__ int place() { return threadIdx.x % VECTORS * VECTOR; }
    static __device__ __forceinline__ void copy(Element* tile, int i, const Element* from,
                                                bool inside)
    {
        if (LINES % STEP == 0 || line(i) < LINES)
            copy_numbers<VECTOR>(tile + line(i) * PITCH + place(), from, inside);
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

// Where a number stands that is counted in steps of STEP, without dividing: the digits of mixed
// base that it has, the first below `base`, the second below `bases`, the third what is left.
template <int STEP>
struct Count {
    int first, second, third, base, bases;
    int step_first, step_second, step_third;

    __device__ __forceinline__ Count(long long start, int base, int bases)
        : first(start % base), second(start / base % bases), third(start / base / bases),
          base(base), bases(bases), step_first(STEP % base), step_second(STEP / base % bases),
          step_third(STEP / base / bases)
    {
    }
    __device__ __forceinline__ void next()
    {
        first += step_first;
        second += step_second;
        third += step_third;
        if (first >= base) first -= base, ++second;
        if (second >= bases) second -= bases, ++third;
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
// `Around` says where a row lies, and which pixel of its image a tap finds there, if any: its
// place, counted in pixels or IN_NUMBERS.
struct Row {
    const Element* image;
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
    __device__ __forceinline__ void fetch(Element* tile)
    {
#pragma unroll(KEPT ? Tile::EACH : 1)
        for (int i = 0; i < Tile::EACH; ++i) {
            const Row& row = KEPT ? rows[i * KEPT] : this->locate(first + Tile::line(i));
            int pixel;
            const bool inside = this->find(row, taps.r, taps.s, pixel) && taps.r < R;
            const int pitch = Around::IN_NUMBERS ? 1 : taps.channels;
            Tile::copy(tile, i, row.image + (size_t)pixel * pitch + taps.channel, inside);
        }
        taps.next();
    }
};

// Fetches the next tile of each operand into a stage.
template <class A, class B>
__device__ __forceinline__ void fetch(A& a, B& b, Element* stage)
{
    a.fetch(stage);
    b.fetch(stage + A::Tile::SIZE);
}

// Calls add(tile of a, tile of b) for so many tiles in order, while later ones are under way.
template <class A, class B, class Add>
__device__ __forceinline__ void for_each_tile(A& a, B& b, int tiles, Add&& add)
{
    constexpr int STAGE = A::Tile::SIZE + B::Tile::SIZE;
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
        const Element* stage = room + tile % STAGES * STAGE;
        add(stage, stage + A::Tile::SIZE);
    }
}
