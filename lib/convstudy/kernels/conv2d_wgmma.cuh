// SPDX-License-Identifier: MIT
// Rung 10: what the matrix products of all passes share where a warpgroup multiplies (wgmma) tiles
// that the tensor memory accelerator (TMA) brings.
//
// Roles     The last warpgroup produces: one of its threads asks for copies, stage after stage, and
//           all give their registers to the others. Those consume: ROWS_64 x 64 rows and TILE_N
//           columns for each warpgroup.
//           full[stage] says that a stage has arrived, empty[stage] that it may be overwritten.
// Blocks    Persistent: a block takes tile after tile of out, `gridDim.x` apart, and while its
//           consumers store one, its producer already fetches the next.
// Splits    Several blocks share a sum: those of a cluster store it in each other's shared memory
//           and add it up; others, as in conv2d_gemm.cuh, leave parts for conv2d_splits_1_sum.
// Lines     Tiles lie in lines of 128 bytes, chunks exchanged as the hardware wants them. Lines run
//           along DEPTH ("along"), or across it ("across"), where channels are what is summed over
//           in the one case and what is not in the other.
#ifndef CONSUMERS
#define CONSUMERS 2
#endif
#ifndef ROWS_64
#define ROWS_64 1
#endif
#ifndef TILE_N
#define TILE_N 128
#endif
#ifndef STAGES
#define STAGES 4
#endif
#ifndef BLOCKS_PER_SM
#define BLOCKS_PER_SM 1
#endif
// Whether arrays are bf16, and not fp32.
#ifndef BF16
#define BF16 0
#endif
// 3: fp32 from three TF32 products (conv2d_mma.cuh says how); 1: operands as they are.
#ifndef TERMS
#define TERMS (BF16 ? 1 : 3)
#endif
// Whether sums are so short, and products so few, that for fp32 the fourth is taken too, low by low.
#ifndef SHORT
#define SHORT 0
#endif
// Whether out holds parts of sums, which are always fp32.
#ifndef PARTS
#define PARTS 0
#endif
// Whether out is fp32 though operands are bf16.
#ifndef WIDE
#define WIDE 0
#endif
// How many blocks are a cluster: as many as `splits`, or 1.
#ifndef CLUSTER
#define CLUSTER 1
#endif
#if CLUSTER > 1
#define CLUSTERED __cluster_dims__(CLUSTER, 1, 1)
#else
#define CLUSTERED
#endif

// How many warps, the producer's last, turn the second operand where it lies, so that its lines
// run along DEPTH.
#ifndef TURNERS
#define TURNERS 0
#endif

// Whether pixels lie in patches of their own, and not in the stages (conv2d_halo.cuh).
#ifndef PATCHES
#define PATCHES 0
#endif
// Whether warpgroups take turns, each with tiles of its own: one multiplies while the other stores.
#ifndef PINGPONG
#define PINGPONG 0
#endif

// How many warpgroups share a tile, and how many tiles are under way at once.
constexpr int SHARING = PINGPONG ? 1 : CONSUMERS, TILES_AT_ONCE = PINGPONG ? CONSUMERS : 1;
constexpr int TILE_M = SHARING * ROWS_64 * 64;
constexpr int TILE_D = BF16 ? 64 : 32;
constexpr int THREADS = CONSUMERS * 128 + 128;
// A block starts with as many registers for each of its threads, dealt out by eights. What the
// producer gives back is all that there is for the consumers to take: they would wait for more.
constexpr int REGISTERS = 512 / BLOCKS_PER_SM / (CONSUMERS + 1) / 8 * 8;
#ifdef STATISTICS
constexpr int REGISTERS_PRODUCER = BLOCKS_PER_SM == 1 ? 72 : 56;  // for what its last warps do
#else
constexpr int REGISTERS_PRODUCER = TURNERS ? 64 : 40;
#endif
constexpr int REGISTERS_CONSUMER =
    (REGISTERS * (CONSUMERS + 1) - REGISTERS_PRODUCER) / CONSUMERS / 8 * 8;
#ifdef WINDOWS
// Of 64 channels, a tile's places and up to 8 more: a window, which serves all taps of a row.
constexpr int LINES_64 = BF16 ? 1 : 2, BYTES_LINES = (TILE_D + 8) * 128;
constexpr int BYTES_A = WINDOWS * LINES_64 * BYTES_LINES;
#else
constexpr int BYTES_A = PATCHES ? 0 : TILE_M * 128;
#endif
// With patches a stage holds filters alone, which are columns, or else rows.
constexpr int FILTERS = PINGPONG ? TILE_M : TILE_N, PIXELS = PINGPONG ? TILE_N : TILE_M;
constexpr int BYTES_B = FILTERS * 128;
constexpr int STAGE = BYTES_A + (TERMS == 3 ? 2 : 1) * BYTES_B;
// A patch of pixels with its halo, on whole kilobytes, where the exchange of chunks begins anew.
constexpr int PATCH_W = PINGPONG ? 8 : 16, PATCH_H = PIXELS / PATCH_W, PITCH = PATCH_W + S - 1;
constexpr int BYTES_PATCH = (PATCH_H + R - 1) * PITCH * 128;
constexpr int PATCH_STEP = (BYTES_PATCH + 1023) / 1024 * 1024;
// Behind the stages: what a cluster's blocks give each other,
constexpr int BYTES_SUMS = CLUSTER > 1 ? TILE_M * TILE_N * 4 : 0;
// and what the lanes of a warp exchange.
constexpr int EXCHANGE = 2048;
constexpr int BYTES_EXCHANGE = CONSUMERS * 4 * EXCHANGE;

extern __shared__ __align__(1024) unsigned char room[];

__device__ __forceinline__ unsigned char* patch(int i) { return room + i * PATCH_STEP; }
__device__ __forceinline__ unsigned char* stage_of(int i) { return patch(PATCHES) + i * STAGE; }
__device__ __forceinline__ unsigned char* cluster_sums() { return stage_of(STAGES); }
__device__ __forceinline__ unsigned char* exchange() { return cluster_sums() + BYTES_SUMS; }
__device__ __forceinline__ uint64* full(int stage)
{
    return (uint64*)(exchange() + BYTES_EXCHANGE) + stage;
}
__device__ __forceinline__ uint64* empty(int stage) { return full(STAGES + stage); }
// That every block's sums are here, and that every block has read those that it was given.
__device__ __forceinline__ uint64* written(int i = 0) { return full(2 * STAGES + 2 * i); }
__device__ __forceinline__ uint64* read(int i = 0) { return full(2 * STAGES + 1 + 2 * i); }
// As full and empty, for a patch.
__device__ __forceinline__ uint64* patch_full(int i)
{
    return full(2 * STAGES + 2 * TILES_AT_ONCE + i);
}
__device__ __forceinline__ uint64* patch_empty(int i) { return patch_full(PATCHES + i); }
// That a warpgroup's turn has come (PINGPONG).
__device__ __forceinline__ uint64* go(int group) { return patch_full(2 * PATCHES + group); }
// As full, of a stage whose second operand has been turned.
__device__ __forceinline__ uint64* turned(int stage) { return patch_full(2 * PATCHES + stage); }

// Goes round the stages; the parity of a barrier's phase changes with each round.
template <int COUNT>
struct Round {
    int stage = 0;
    unsigned parity = 0;

    __device__ __forceinline__ void next()
    {
        if (++stage == COUNT) stage = 0, parity ^= 1;
    }
    // Leaves some out, which are another's.
    __device__ __forceinline__ void skip(int count)
    {
        const unsigned to = stage + count;
        stage = to % COUNT;
        parity ^= to / COUNT & 1;
    }
};
using Turn = Round<STAGES>;

#if PATCHES
// A patch of out and some of its columns.
struct Item {
    int n, h, w, column, height, width, count;  // count in tiles of DEPTH
#ifdef STATISTICS
    __device__ __forceinline__ int pixels(int) const
    {
        return min(height - h, PATCH_H) * min(width - w, PATCH_W);
    }
    __device__ __forceinline__ int first_pixel() const { return (n * height + h) * width + w; }
    // How far pixel i of the patch is from the first, or 0 where it lies outside.
    __device__ __forceinline__ unsigned distance(int i, int) const
    {
        const int y = i / PATCH_W, x = i % PATCH_W;
        return y < height - h && x < width - w ? y * width + x : 0;
    }
#endif
};

// All that blocks have to do: patch by patch, columns fastest.
struct Items {
    int height, width, tiles;
    unsigned blocks_n, patches_w, patches_h, images;

    __device__ __forceinline__ Items(int images, int height, int width, int columns, int tiles)
        : height(height), width(width), tiles(tiles), blocks_n((columns - 1) / FILTERS + 1),
          patches_w((width - 1) / PATCH_W + 1), patches_h((height - 1) / PATCH_H + 1),
          images(images)
    {
    }
    __device__ __forceinline__ unsigned first() const { return blockIdx.x; }
    __device__ __forceinline__ unsigned end() const
    {
        return images * patches_h * patches_w * blocks_n;
    }
    __device__ __forceinline__ unsigned step() const { return gridDim.x; }
    __device__ __forceinline__ Item operator[](unsigned i) const
    {
        const unsigned at = i / blocks_n, row = at / patches_w;
        return {(int)(row / patches_h), (int)(row % patches_h) * PATCH_H,
                (int)(at % patches_w) * PATCH_W, (int)(i % blocks_n) * FILTERS, height, width,
                tiles};
    }
};
#else
// A tile of out, and the part of DEPTH that is summed.
struct Item {
    int row, column, split, first, count;  // first and count in tiles of DEPTH
#ifdef STREAM
    bool is_given;  // to the block that ends the tile
#endif
#ifdef STATISTICS
    __device__ __forceinline__ int pixels(int rows) const { return min(rows - row, TILE_M); }
    __device__ __forceinline__ int first_pixel() const { return row; }
    __device__ __forceinline__ unsigned distance(int i, int rows) const
    {
        return i < rows - row ? i : 0;
    }
#endif
};

// All that blocks have to do, in the order in which they take it: tile by tile, split by split. A
// cluster takes a tile, each of its blocks a split. Numbers are of 32 bits: between two tiles,
// divisions of 64 bits took longer than the products of a short sum.
struct Items {
    unsigned tiles_of_out, blocks_n;
    int tiles, splits;

    __device__ __forceinline__ Items(int rows, int columns, int tiles, int splits)
        : blocks_n((columns - 1) / TILE_N + 1), tiles(tiles), splits(splits)
    {
        tiles_of_out = ((rows - 1) / TILE_M + 1) * blocks_n;
    }
#ifdef STREAM
    // The first `splits` tiles are shared: a block has a run of their sums. Its run's last tile, if
    // another block ends that, comes first, as that block waits for it; its run's first, if another
    // block began that, comes last. All is computed anew when it is asked for: to remember it would
    // take registers that the products need.

    // Where the run of a block begins, in tiles of DEPTH of the shared tiles, one after the other.
    __device__ __forceinline__ unsigned run_of(unsigned block) const
    {
        const unsigned all = splits * tiles;
        return block * (all / gridDim.x) + min(block, all % gridDim.x);
    }
    __device__ __forceinline__ unsigned first() const { return 0; }
    __device__ __forceinline__ unsigned end() const
    {
        const unsigned block = this_block();
        return (run_of(block + 1) - 1) / tiles - run_of(block) / tiles + 1 +
               (tiles_of_out - splits + gridDim.x - 1 - block) / gridDim.x;
    }
    __device__ __forceinline__ unsigned step() const { return 1; }
    __device__ __forceinline__ Item operator[](unsigned i) const
    {
        const unsigned block = this_block(), begins = run_of(block), ends = run_of(block + 1);
        const unsigned low = begins / tiles, high = (ends - 1) / tiles;
        const unsigned whole = (tiles_of_out - splits + gridDim.x - 1 - block) / gridDim.x;
        const bool is_last = begins > low * tiles && (low + 1) * tiles <= ends;
        const unsigned ahead = high - low + !is_last;
        const bool is_shared = i < ahead || i == ahead + whole;
        const unsigned tile = i < ahead   ? high - i
                              : is_shared ? low
                                          : splits + block + (i - ahead) * gridDim.x;
        const unsigned start = tile * tiles;
        const int first = is_shared && begins > start ? begins - start : 0;
        const int after = is_shared ? min(ends - start, (unsigned)tiles) : tiles;
        return {(int)(tile / blocks_n) * TILE_M, (int)(tile % blocks_n) * TILE_N, 0,
                first, after - first, after < tiles};
    }
#else
    __device__ __forceinline__ unsigned first() const
    {
        return blockIdx.x % CLUSTER * tiles_of_out + blockIdx.x / CLUSTER;
    }
    __device__ __forceinline__ unsigned end() const
    {
        return tiles_of_out * (CLUSTER > 1 ? blockIdx.x % CLUSTER + 1 : splits);
    }
    __device__ __forceinline__ unsigned step() const { return gridDim.x / CLUSTER; }
    __device__ __forceinline__ Item operator[](unsigned i) const
    {
        const unsigned split = i / tiles_of_out, tile = i % tiles_of_out;
        const int each = (tiles - 1) / splits + 1, first = min((int)split * each, tiles);
        return {(int)(tile / blocks_n) * TILE_M, (int)(tile % blocks_n) * TILE_N, (int)split,
                first, min(each, tiles - first)};
    }
#endif
};
#endif

#ifdef STATISTICS
// Warps that watch, the producer's last: of what the others have written to out they take the mean
// and the squared distances, for each tile and column, while the next tile is multiplied. These go
// to `moments`, (tiles, 2, columns), and behind them how many pixels each tile has.
constexpr int WATCHERS = 2, WATCHERS_OF_TILE = WATCHERS / TILES_AT_ONCE;
static_assert(CLUSTER == 1 && !PARTS, "what a block writes is what norms read");
#endif

__device__ __forceinline__ void begin()
{
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; ++stage) {
            barrier_init(full(stage), 1);
            barrier_init(empty(stage), SHARING * 4);
            if (TURNERS) barrier_init(turned(stage), TURNERS);
        }
        for (int i = 0; i < PATCHES; ++i) {
            barrier_init(patch_full(i), 1);
            barrier_init(patch_empty(i), SHARING * 4);
        }
        for (int i = 0; PINGPONG && i < CONSUMERS; ++i) barrier_init(go(i), 4);
#ifdef STATISTICS
        for (int i = 0; i < TILES_AT_ONCE; ++i) {
            barrier_init(written(i), SHARING * 4);
            barrier_init(read(i), WATCHERS_OF_TILE);
        }
#endif
        if (CLUSTER > 1) {
            barrier_init(written(), 1);
            barrier_init(read(), CLUSTER * CONSUMERS * 4);
        }
        barrier_init_done();
    }
#if CLUSTER > 1
    cluster_arrive();
#endif
    __syncthreads();
}

#if !PATCHES
// A run of pixels under one tap, from which a map's copy starts: those of an output (or, backwards,
// of an input) whose first is `pixel`.
struct Pixels {
    int w, h, n;

    __device__ __forceinline__ Pixels() = default;
    __device__ __forceinline__ Pixels(int pixel, int width, int height)
        : w(pixel % width), h(pixel / width % height), n(pixel / width / height)
    {
    }
};

// Goes over taps and channels; whichever is named first runs fastest.
struct Taps {
    int s, r, channel;

    __device__ __forceinline__ void next_tap()
    {
        if (++s < S) return;
        s = 0;
        if (++r < R) return;
        r = 0;
        channel += TILE_D;
    }
    __device__ __forceinline__ void next_channels(int count, int channels)
    {
        channel += count;
        if (channel < channels) return;
        channel = 0;
        if (++s < S) return;
        s = 0;
        ++r;
    }
};

#endif

// The producer: copies.start(item), then copies.next(a, b, barrier) asks for each tile of both
// operands in turn. One thread does it all, so that no division is left to a single tile.
template <class Copies>
__device__ __forceinline__ void produce(const Items& items, Copies& copies)
{
    if (threadIdx.x != CONSUMERS * 128) return;
    Turn turn;
    for (unsigned i = items.first(); i < items.end(); i += items.step()) {
        const Item item = items[i];
        copies.start(item);
        for (int tile = 0; tile < item.count; ++tile, turn.next()) {
            barrier_wait(empty(turn.stage), turn.parity ^ 1);
            barrier_expect(full(turn.stage), STAGE);
            unsigned char* stage = stage_of(turn.stage);
            copies.next(stage, stage + BYTES_A, full(turn.stage));
        }
    }
}

// One arrival a warp, once all of its lanes are done.
__device__ __forceinline__ void release(uint64* barrier)
{
    __syncwarp();
    if (threadIdx.x % 32 == 0) barrier_arrive(barrier);
}

#if TURNERS
// Turns 32 lines of 128 bytes by one warp. A lane takes squares of 4 x 4 numbers, which lie so that
// eight lanes meet eight different chunks of a line where they read, and where they write; and so
// that 32 lanes exchange theirs among each other.
__device__ __forceinline__ void turn_lines(unsigned char* lines)
{
    const int across = threadIdx.x % 8;
#pragma unroll 1  // both at once took more registers than a producer has
    for (int half = 0; half < 2; ++half) {
        const int down = across ^ (threadIdx.x % 32 / 8 + 4 * half);
        float4 in[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int line = down * 4 + i;
            in[i] = *(const float4*)(lines + line * 128 + (across ^ line % 8) * 16);
        }
        __syncwarp();  // all have been read before any is overwritten
        const float4 out[4] = {{in[0].x, in[1].x, in[2].x, in[3].x},
                               {in[0].y, in[1].y, in[2].y, in[3].y},
                               {in[0].z, in[1].z, in[2].z, in[3].z},
                               {in[0].w, in[1].w, in[2].w, in[3].w}};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int line = across * 4 + i;
            *(float4*)(lines + line * 128 + (down ^ line % 8) * 16) = out[i];
        }
    }
}

// The turners: each has every TURNERS-th of a stage's blocks of 32 columns.
__device__ __forceinline__ void turn(const Items& items)
{
    const int warp = threadIdx.x / 32 - (THREADS / 32 - TURNERS);
    if (warp < 0) return;
    Turn turn;
    for (unsigned i = items.first(); i < items.end(); i += items.step())
        for (int left = items[i].count; left > 0; --left, turn.next()) {
            barrier_wait(full(turn.stage), turn.parity);
            unsigned char* b = stage_of(turn.stage) + BYTES_A;
            for (int block = warp; block < TILE_N / 32; block += TURNERS)
                turn_lines(b + block * 32 * 128);
            shared_fence();
            release(turned(turn.stage));
        }
}
#endif

// What a thread holds of its warpgroup's part of a tile.
template <int COLUMNS>
struct Block {
    float d[ROWS_64][COLUMNS / 2];

    __device__ __forceinline__ void clear()
    {
#pragma unroll
        for (int m = 0; m < ROWS_64; ++m)
#pragma unroll
            for (int i = 0; i < COLUMNS / 2; ++i) d[m][i] = 0.0f;
    }
    __device__ __forceinline__ void keep()
    {
#pragma unroll
        for (int m = 0; m < ROWS_64; ++m) ::keep(d[m]);
    }
};
using Sums = Block<TILE_N>;

#if !PATCHES
// Consumers whose operands both come from shared memory. ACROSS: lines of the operand run across
// DEPTH, 64 columns a block of TILE_D lines.
template <int ACROSS_A, int ACROSS_B>
struct FromShared {
    // The row of out of one of 16 that this warp holds of a block of 64.
    static __device__ __forceinline__ int place(const Item& item, int block, int i)
    {
        return item.row + block * 64 + threadIdx.x / 32 % 4 * 16 + i;
    }
    __device__ __forceinline__ void multiply(Sums& sums, const unsigned char* stage)
    {
        const int group = threadIdx.x / 128;
        constexpr int BLOCK = TILE_D * 128;
        const unsigned char* rows = stage + group * ROWS_64 * 64 * 128;
        const uint64 b = describe(stage + BYTES_A, 1024, BLOCK);
#pragma unroll
        for (int m = 0; m < ROWS_64; ++m) {
            const uint64 a = describe(rows + m * 64 * 128, 1024, BLOCK);
#pragma unroll
            for (int k = 0; k < 4; ++k) {
#if BF16
                // 16 places of DEPTH: 32 bytes of a line along it, 16 lines across it.
                wgmma_bf16<ACROSS_A, ACROSS_B>(sums.d[m], move(a, k * (ACROSS_A ? 2048 : 32)),
                                               move(b, k * (ACROSS_B ? 2048 : 32)), 1);
#else
                wgmma_tf32(sums.d[m], move(a, k * 32), move(b, k * 32), 1);
#endif
            }
        }
    }
    // One product is always under way: it is waited for when the next has been asked for.
    __device__ __forceinline__ void run(Sums& sums, int tiles, Turn& turn)
    {
        sums.clear();
        int before = 0;
        for (int tile = 0; tile < tiles; ++tile, turn.next()) {
            barrier_wait(full(turn.stage), turn.parity);
            sums.keep();
            wgmma_fence();
            multiply(sums, stage_of(turn.stage));
            wgmma_commit();
            if (tile) {
                wgmma_wait<1>();
                release(empty(before));
            }
            before = turn.stage;
        }
        if (tiles) {
            wgmma_wait<0>();
            release(empty(before));
        }
        sums.keep();
    }
};

// Consumers whose first operand passes through registers, where it is split into TF32 and what
// that leaves of fp32, or where its lines, running across DEPTH, are turned: TF32 is multiplied
// along lines only. For fp32 the second operand was split before (conv2d_operand_1_split).
//
// Order     Loads of a warp go to 32 banks. Along lines a lane takes two vectors, places 8 t + 2 i
//           and the next of DEPTH for lane t, product i, and the second operand was put into the
//           same order. Across, rows are free instead: those of eight lanes are two chunks apart
//           by 64 bytes, which the exchange of chunks leaves in different banks.
template <bool ACROSS>
struct ThroughRegisters {
    // How many products of 8 places follow each other before their sum leaves the tensor cores. What
    // those drop grows with it, and so does it with each sum that is rounded outside. An H200's least
    // error was with 4 for 500 terms or more (of 4608: 3.2e-6 of the root mean square; with 1, 6.5e-6
    // in 1.33 times the time; with 8, 3.4e-6 in 0.97; with 32, 1e-5), and with 2 for a hundred.
    static constexpr int CHAIN = SHORT ? 2 : 4;
    unsigned high[ROWS_64][4][4], low[ROWS_64][4][4];

    // Which of a block's 64 rows is the first that this thread holds, or the second; and which row
    // of out is one of 16 that its warp holds.
    static __device__ __forceinline__ int row(int half)
    {
        const int warp = threadIdx.x / 32 % 4, g = threadIdx.x % 32 / 4;
        return ACROSS ? warp / 2 * 32 + g / 4 * 16 + (2 * (warp % 2) + half) * 4 + g % 4
                      : warp * 16 + g + 8 * half;
    }
    static __device__ __forceinline__ int place(const Item& item, int block, int i)
    {
        const int warp = threadIdx.x / 32 % 4;
        return item.row + block * 64 +
               (ACROSS ? warp / 2 * 32 + warp % 2 * 8 + i / 8 * 16 + i % 8 : warp * 16 + i);
    }
    __device__ __forceinline__ void set(unsigned (&to)[ROWS_64][4][4], int m, int product, int i,
                                        float value)
    {
        // What is TF32 the copies have rounded.
        to[m][product][i] = TERMS == 3 ? to_tf32(value) : __float_as_uint(value);
        if (TERMS == 3)
            low[m][product][i] = to_tf32(value - __uint_as_float(to[m][product][i]));
    }
    __device__ __forceinline__ void fetch(unsigned (&to)[ROWS_64][4][4], const unsigned char* stage)
    {
        const int t = threadIdx.x % 4;
#pragma unroll
        for (int m = 0; m < ROWS_64; ++m) {
            const unsigned char* rows = stage + (threadIdx.x / 128 * ROWS_64 + m) * 64 * 128;
            if (ACROSS) {
                // 32 rows are a block of 32 lines.
#pragma unroll
                for (int i = 0; i < 16; ++i) {
                    const int r = row(i % 2), line = i / 4 * 8 + i / 2 % 2 * 4 + t;
                    const int chunk = (r % 32 / 4) ^ (line % 8);
                    set(to, m, i / 4, i % 4,
                        *(const float*)(rows + r / 32 * 4096 + line * 128 + chunk * 16 +
                                        r % 4 * 4));
                }
            } else {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const int chunk = (2 * t + half) ^ (row(0) % 8);
                    const float4 u = *(const float4*)(rows + row(0) * 128 + chunk * 16);
                    const float4 v = *(const float4*)(rows + row(1) * 128 + chunk * 16);
                    set(to, m, 2 * half, 0, u.x), set(to, m, 2 * half, 1, v.x);
                    set(to, m, 2 * half, 2, u.y), set(to, m, 2 * half, 3, v.y);
                    set(to, m, 2 * half + 1, 0, u.z), set(to, m, 2 * half + 1, 1, v.z);
                    set(to, m, 2 * half + 1, 2, u.w), set(to, m, 2 * half + 1, 3, v.w);
                }
            }
        }
    }
    // Multiplies 8 of a stage's places of DEPTH after the other. For fp32, CHAIN of them from `first`
    // on; all the small ones come first: a tensor core drops what lies below the last digit of what
    // it adds to, of small products as of large ones.
    __device__ __forceinline__ void multiply_split(Sums& part, const unsigned char* stage, int first)
    {
        const uint64 b = describe(stage + BYTES_A, 1024, 0);
        const uint64 rest = describe(stage + BYTES_A + BYTES_B, 1024, 0);
#pragma unroll
        for (int i = first; i < first + CHAIN; ++i)
#pragma unroll
            for (int m = 0; m < ROWS_64; ++m) {
                if (SHORT) wgmma_tf32(part.d[m], low[m][i], move(rest, i * 32), i > first);
                wgmma_tf32(part.d[m], low[m][i], move(b, i * 32), SHORT || i > first);
                wgmma_tf32(part.d[m], high[m][i], move(rest, i * 32), 1);
            }
#pragma unroll
        for (int i = first; i < first + CHAIN; ++i)
#pragma unroll
            for (int m = 0; m < ROWS_64; ++m)
                wgmma_tf32(part.d[m], high[m][i], move(b, i * 32), 1);
    }
    __device__ __forceinline__ void multiply(Sums& sums, const unsigned char* stage)
    {
        const uint64 b = describe(stage + BYTES_A, 1024, 0);
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int m = 0; m < ROWS_64; ++m)
                wgmma_tf32(sums.d[m], high[m][i], move(b, i * 32), 1);
    }
    // Waits for a stage; returns where it lies.
    static __device__ __forceinline__ const unsigned char* await_stage(const Turn& turn)
    {
        barrier_wait(full(turn.stage), turn.parity);
        if (TURNERS) barrier_wait(turned(turn.stage), turn.parity);
        return stage_of(turn.stage);
    }
#if TERMS == 3
    __device__ __forceinline__ void run(Sums& sums, int tiles, Turn& turn)
    {
        Sums part;
        sums.clear();
        for (int tile = 0; tile < tiles; ++tile, turn.next()) {
            const unsigned char* stage = await_stage(turn);
            fetch(high, stage);
#pragma unroll
            for (int first = 0; first < 4; first += CHAIN) {
                part.keep();
                wgmma_fence();
                multiply_split(part, stage, first);
                wgmma_commit();
                wgmma_wait<0>();
                part.keep();
                if (first + CHAIN == 4) release(empty(turn.stage));
#pragma unroll
                for (int m = 0; m < ROWS_64; ++m)
#pragma unroll
                    for (int i = 0; i < TILE_N / 2; ++i) sums.d[m][i] += part.d[m][i];
            }
        }
    }
#else
    // A tile's rows are read while the one before is multiplied. What is multiplied must stay, and
    // the tile's rows take its place once that is over: with two sets in turn, whose loop has two
    // ends, the assembler let every product end before the next began.
    __device__ __forceinline__ void run(Sums& sums, int tiles, Turn& turn)
    {
        sums.clear();
        if (tiles == 0) return;
        unsigned ahead[ROWS_64][4][4];
        const unsigned char* stage = await_stage(turn);
        fetch(high, stage);
        for (;;) {
            sums.keep();
            wgmma_fence();
            multiply(sums, stage);
            wgmma_commit();
            const int before = turn.stage;
            turn.next();
            if (--tiles) {
                stage = await_stage(turn);
                fetch(ahead, stage);
            }
            wgmma_wait<0>();
            sums.keep();
            release(empty(before));
            if (tiles == 0) return;
#pragma unroll
            for (int m = 0; m < ROWS_64; ++m)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    keep(high[m][i]);
#pragma unroll
                    for (int j = 0; j < 4; ++j) high[m][i][j] = ahead[m][i][j];
                }
        }
    }
#endif
};
#endif

#if CLUSTER > 1
// Adds up the sums of a cluster's blocks, in their order; each block all of some columns. What a
// block has of those is stored in its shared memory by the others, which takes one way there; to
// say that it lies here and have it read took three, and tools that look for races saw none of the
// arrivals behind which that was done.
struct Cluster {
    static constexpr int COLUMNS = TILE_N / CLUSTER, VECTORS = COLUMNS / 8;
    static constexpr int SUMMING = CONSUMERS * 128;
    unsigned parity = 0;

    static __device__ __forceinline__ float4* place(int rank)
    {
        return (float4*)cluster_sums() + rank * (ROWS_64 * VECTORS * SUMMING) + threadIdx.x;
    }
    __device__ __forceinline__ void gather(const Sums& sums, Block<COLUMNS>& total)
    {
        const int own = cluster_rank();
        if (threadIdx.x == 0) barrier_expect(written(), BYTES_SUMS / CLUSTER * (CLUSTER - 1));
        barrier_wait_cluster(read(), parity ^ 1);
        float4* mine = place(own);
        unsigned there[CLUSTER], arrived[CLUSTER];
#pragma unroll
        for (int rank = 0; rank < CLUSTER; ++rank)
            there[rank] = address_in(mine, rank), arrived[rank] = address_in(written(), rank);
        // Blocks are given theirs in turn: one after the other, each would have all others' at once.
#pragma unroll
        for (int m = 0; m < ROWS_64; ++m)
#pragma unroll
            for (int j = 0; j < VECTORS; ++j)
#pragma unroll
                for (int rank = 0; rank < CLUSTER; ++rank) {
                    const float* d = sums.d[m] + 4 * (rank * VECTORS + j);
                    const float4 v = make_float4(d[0], d[1], d[2], d[3]);
                    const int at = (m * VECTORS + j) * SUMMING;
                    if (rank == own)
                        mine[at] = v;  // this thread alone will read it
                    else
                        store_in_block(there[rank] + at * 16, v, arrived[rank]);
                }
        barrier_wait_cluster(written(), parity);
        total.clear();
#pragma unroll
        for (int m = 0; m < ROWS_64; ++m)
#pragma unroll
            for (int j = 0; j < VECTORS; ++j)
#pragma unroll
                for (int rank = 0; rank < CLUSTER; ++rank) {
                    const float4 v = place(rank)[(m * VECTORS + j) * SUMMING];
                    float* d = total.d[m] + 4 * j;
                    d[0] += v.x, d[1] += v.y, d[2] += v.z, d[3] += v.w;
                }
        parity ^= 1;
    }
    // Lets every block store here again: one arrival a warp at each of them.
    static __device__ __forceinline__ void release()
    {
        __syncwarp();
        if (threadIdx.x % 32 < CLUSTER) barrier_arrive_in(read(), threadIdx.x % 32);
    }
};
#endif

#ifdef STREAM
static_assert(CLUSTER == 1 && !PARTS && !PATCHES, "sums are shared in one way at a time");

// What blocks leave of tiles that others end: of each block one tile's sums, as its threads hold
// them, and for each of its warps a flag that they are there. Flags are 0 before and after.
struct Slots {
    static constexpr int CONSUMING = CONSUMERS * 128, WARPS = CONSUMING / 32;
    static constexpr int VECTORS = TILE_N / 8;  // of a row of 64
    float4* sums;
    float* flags;

    __device__ __forceinline__ float4* of(unsigned block) const
    {
        return sums + (size_t)block * (ROWS_64 * VECTORS * CONSUMING) + threadIdx.x;
    }
    __device__ __forceinline__ unsigned* flag(unsigned block) const
    {
        return (unsigned*)flags + block * WARPS + threadIdx.x / 32;
    }
    __device__ __forceinline__ void give(const Sums& given) const
    {
        float4* mine = of(blockIdx.x);
#pragma unroll
        for (int m = 0; m < ROWS_64; ++m)
#pragma unroll
            for (int j = 0; j < VECTORS; ++j) {
                const float* d = given.d[m] + 4 * j;
                mine[(m * VECTORS + j) * CONSUMING] = make_float4(d[0], d[1], d[2], d[3]);
            }
        __syncwarp();
        if (threadIdx.x % 32 == 0) publish(flag(blockIdx.x));
    }
    // Adds what the blocks before have of the tile with which this block's run begins.
    __device__ __forceinline__ void take(const Items& items, Sums& added) const
    {
        unsigned block = this_block();
        const unsigned start = items.run_of(block) / items.tiles * items.tiles;
        while (items.run_of(block) > start) {
            await(flag(--block));
            const float4* theirs = of(block);
#pragma unroll
            for (int m = 0; m < ROWS_64; ++m)
#pragma unroll
                for (int j = 0; j < VECTORS; ++j) {
                    const float4 v = theirs[(m * VECTORS + j) * CONSUMING];
                    float* d = added.d[m] + 4 * j;
                    d[0] += v.x, d[1] += v.y, d[2] += v.z, d[3] += v.w;
                }
            __syncwarp();
            if (threadIdx.x % 32 == 0) *flag(block) = 0;
        }
    }
};
#endif

#if BF16 && !PARTS && !WIDE
using Out = bf16;
constexpr int OUT_BYTES = 2;
#else
using Out = float;
constexpr int OUT_BYTES = 4;
#endif

// Writes columns of a tile of out, which has `rows` rows of `columns`, from `column` on. TURNED:
// out lies column by column. A warp's 16 rows go through shared memory, where its lanes exchange
// them, so that what it stores at once is whole lines of 128 bytes (TURNED: whole sectors of 32).
// Straight from the registers it would be halves of sectors, at twice the time.
template <class Consumer, bool TURNED, int COLUMNS>
__device__ __forceinline__ void store(Out* out, const float* bias, Block<COLUMNS>& sums,
                                      const Item& item, int column, int rows, const View& view)
{
    const int columns = view.columns;
    constexpr int ONCE = TURNED ? 32 : 128 / OUT_BYTES;  // columns at once
    constexpr int PASS = COLUMNS < ONCE ? COLUMNS : ONCE;
    constexpr int CHUNKS = TURNED ? 4 : PASS * OUT_BYTES / 16;  // of 16 bytes, in a line
    constexpr int LINES = TURNED ? PASS : 16, EACH = (LINES * CHUNKS + 31) / 32;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    // All of a lane's vectors lie in the same columns of a pass.
    const int vector = lane % CHUNKS * (16 / OUT_BYTES);
    unsigned char* mine = exchange() + warp * EXCHANGE;
#ifdef SUMMAND
    // What is added is read as out is written, whole lines at once, into the places of the numbers
    // that it is added to; those of a pass while the pass before is stored.
    constexpr int PASSES = COLUMNS / PASS;
    static_assert(!TURNED && !PARTS, "of sums that lie as out does");
    float4 added[EACH];
    const auto ask = [&](int which) {
#pragma unroll
        for (int n = 0; n < EACH; ++n) {
            const int i = lane + 32 * n, block = warp / 4 * ROWS_64 + which / PASSES;
            const int c = column + which % PASSES * PASS + vector;
            const int r = Consumer::place(item, block, i / CHUNKS % LINES);
            const Out* from = (const Out*)view.residual + view.at(r, c);
            added[n] = c < columns && r < rows ? *(const float4*)from : make_float4(0, 0, 0, 0);
        }
    };
    ask(0);
#endif
#if PARTS
    out += (size_t)item.split * rows * columns;
#endif
#pragma unroll
    for (int m = 0; m < ROWS_64; ++m) {
        const int block = warp / 4 * ROWS_64 + m;
        size_t lines[EACH];
        bool is_there[EACH];
#pragma unroll
        for (int n = 0; n < EACH && !TURNED; ++n) {
            const int line = (lane + 32 * n) / CHUNKS, r = Consumer::place(item, block, line);
            lines[n] = view.row(r);
            is_there[n] = line < LINES && r < rows;
        }
#pragma unroll
        for (int pass = 0; pass < COLUMNS; pass += PASS) {
            const int filter = view.filter(column + pass);
#ifdef SUMMAND
#pragma unroll
            for (int n = 0; n < EACH; ++n) {
                const int i = lane + 32 * n, line = i / CHUNKS, moved = i % CHUNKS ^ line % CHUNKS;
                if (i < LINES * CHUNKS)
                    *(float4*)(mine + line * (CHUNKS * 16) + moved * 16) = added[n];
            }
            __syncwarp();
            const int next = m * PASSES + pass / PASS + 1;
            if (next < ROWS_64 * PASSES) ask(next);
#endif
#pragma unroll
            for (int j = 0; j < PASS / 8; ++j) {
                const float* d = sums.d[m] + (pass / 8 + j) * 4;
                const int at = column + pass + 8 * j + 2 * t;
                const float* from = bias + view.filter(filter + 8 * j + 2 * t);
                const float b0 = bias && at < columns ? from[0] : 0.0f;
                const float b1 = bias && at < columns ? from[1] : 0.0f;
#pragma unroll
                for (int half = 0; half < 2; ++half) {
#ifdef SUMMAND
                    const int place = (8 * j + 2 * t) * OUT_BYTES, row = g + 8 * half;
                    const unsigned char* there = mine + row * (CHUNKS * 16) +
                                                 (place / 16 ^ row % CHUNKS) * 16 + place % 16;
                    float2 other;
                    if (OUT_BYTES == 2) {
                        const unsigned both = *(const unsigned*)there;
                        other = make_float2(__uint_as_float(both << 16),
                                            __uint_as_float(both & 0xffff0000u));
                    } else {
                        other = *(const float2*)there;
                    }
                    const float left = activated(d[2 * half] + b0 + other.x);
                    const float right = activated(d[2 * half + 1] + b1 + other.y);
#else
                    const float left = activated(d[2 * half] + b0);
                    const float right = activated(d[2 * half + 1] + b1);
#endif
                    if (TURNED) {
                        // Line: a column. The rows of a half lie 4 by 4, g / 4 * 8 apart.
                        const int line = 8 * j + 2 * t, chunk = (g / 4 * 2 + half) ^ t;
                        float* to = (float*)(mine + line * 64 + chunk * 16) + g % 4;
                        to[0] = left;
                        to[16] = right;
                    } else {
                        const int line = g + 8 * half, byte = (8 * j + 2 * t) * OUT_BYTES;
                        const int chunk = (byte / 16) ^ (line % CHUNKS);
                        unsigned char* to = mine + line * (CHUNKS * 16) + chunk * 16 + byte % 16;
                        if (OUT_BYTES == 2)
                            *(unsigned*)to = to_bf16x2(left, right);
                        else
                            *(float2*)to = make_float2(left, right);
                    }
                }
            }
            __syncwarp();
            const size_t there = TURNED ? 0 : view.column(column + pass + vector);
#pragma unroll
            for (int n = 0; n < EACH; ++n) {
                const int i = lane + 32 * n, line = i / CHUNKS, chunk = i % CHUNKS;
                const int moved = TURNED ? chunk ^ (line / 2 % 4) : chunk ^ (line % CHUNKS);
                const unsigned char* from = mine + line * (CHUNKS * 16) + moved * 16;
                if (TURNED) {
                    const int c = column + pass + line;
                    const int r = Consumer::place(item, block, chunk * 4);
                    if (line < LINES && c < columns && r < rows)
                        *(float4*)(out + (size_t)c * rows + r) = *(const float4*)from;
                } else if (is_there[n] && column + pass + vector < columns) {
                    *(float4*)(out + lines[n] + there) = *(const float4*)from;
                }
            }
            __syncwarp();
        }
    }
}

#ifdef STATISTICS
// Four numbers side by side, packed until they are used.
__device__ __forceinline__ float4 four(const float* from) { return *(const float4*)from; }
__device__ __forceinline__ uint2 four(const bf16* from) { return *(const uint2*)from; }
__device__ __forceinline__ float at(const float4& v, int i)
{
    return i < 2 ? (i ? v.y : v.x) : i == 2 ? v.z : v.w;
}
__device__ __forceinline__ float at(const uint2& v, int i)
{
    const unsigned word = i < 2 ? v.x : v.y;
    return __uint_as_float(i % 2 ? word & 0xffff0000u : word << 16);
}

// Takes statistics of tile `i` by WARPS warps: each has some of its columns, and each of its lanes
// four of them in some rows.
template <int WARPS>
__device__ __forceinline__ void watch(const Items& items, unsigned i, const Out* out,
                                      float* moments, int rows, int columns)
{
    constexpr int EACH = FILTERS / WARPS, LANES = EACH / 4, STEP = 32 / LANES;
    constexpr int TOGETHER = 16 / OUT_BYTES;  // loads that are under way at once
    static_assert(PIXELS % (STEP * TOGETHER) == 0, "no lane has more rows than another");
    const Item item = items[i];
    const int lane = threadIdx.x % 32;
    const int column = item.column + threadIdx.x / 32 % WARPS * EACH + lane % LANES * 4;
    const Out* from = out + (size_t)item.first_pixel() * columns +
                      (column < columns ? column : item.column);
    // Numbers are counted from those of the first pixel: a large mean does not swallow the
    // differences. What lies outside is read as that pixel, and so makes none.
    const auto zero = four(from);
    float sum[4] = {}, square[4] = {};
    for (int row = lane / LANES; row < PIXELS; row += STEP * TOGETHER) {
        decltype(four(out)) v[TOGETHER];
#pragma unroll
        for (int n = 0; n < TOGETHER; ++n)
            v[n] = four(from + (size_t)item.distance(row + n * STEP, rows) * (unsigned)columns);
        __syncwarp();  // the compiler would move each load down to its use
#pragma unroll
        for (int n = 0; n < TOGETHER; ++n)
#pragma unroll
            for (int c = 0; c < 4; ++c) {
                const float distance = at(v[n], c) - at(zero, c);
                sum[c] += distance;
                square[c] = fmaf(distance, distance, square[c]);
            }
    }
#pragma unroll
    for (int distance = LANES; distance < 32; distance *= 2)
#pragma unroll
        for (int c = 0; c < 4; ++c) {
            sum[c] += __shfl_xor_sync(0xffffffffu, sum[c], distance);
            square[c] += __shfl_xor_sync(0xffffffffu, square[c], distance);
        }
    if (lane >= LANES || column >= columns) return;
    const unsigned tile = i / items.blocks_n, tiles = items.end() / items.blocks_n;
    const float count = float(item.pixels(rows)), share = 1.0f / count;
    float* to = moments + (size_t)tile * 2 * columns + column;
#pragma unroll
    for (int c = 0; c < 4; ++c) {
        to[c] = fmaf(sum[c], share, at(zero, c));
        to[columns + c] = fmaxf(fmaf(-sum[c] * share, sum[c], square[c]), 0.0f);
    }
    if (column == 0) moments[(size_t)tiles * 2 * columns + tile] = count;
}
#endif

// A whole block: copies as `copies` asks for them, products as `Consumer` makes them.
template <class Consumer, bool TURNED, class Copies>
__device__ __forceinline__ void run(const Items& items, Copies&& copies, Out* out,
#ifdef STATISTICS
                                    const float* bias, int rows, float* moments, const View& view)
#else
#ifdef STREAM
                                    const float* bias, int rows, Slots slots, const View& view)
#else
                                    const float* bias, int rows, const View& view)
#endif
#endif
{
    begin();
    let_others_begin();
    wait_for_others();
#if CLUSTER > 1
    // Others' memory is written only once sums are there: what is multiplied need not wait for it.
    if (threadIdx.x < CONSUMERS * 128) cluster_wait();
#endif
    if (threadIdx.x >= CONSUMERS * 128) {
        give_registers<REGISTERS_PRODUCER>();
        produce(items, copies);
#if TURNERS
        turn(items);
#endif
#ifdef STATISTICS
        if (threadIdx.x < THREADS - WATCHERS * 32) return;
        const int group = threadIdx.x / 32 % TILES_AT_ONCE;
        const unsigned step = TILES_AT_ONCE * items.step();
        unsigned parity = 0;
        for (unsigned i = items.first() + group * items.step(); i + step < items.end(); i += step) {
            barrier_wait(written(group), parity);
            parity ^= 1;
            watch<WATCHERS_OF_TILE>(items, i, out, moments, rows, view.columns);
            release(read(group));
        }
#endif
    } else {
        take_registers<REGISTERS_CONSUMER>();
        Consumer consumer;
        Sums sums;
        Turn turn;
#if PINGPONG
        const int group = threadIdx.x / 128;
        int whose = 0;
#else
        constexpr int group = 0;
#endif
#ifdef STATISTICS
        unsigned parity = 0;
#endif
#if CLUSTER > 1
        Cluster cluster;
#endif
        for (unsigned i = items.first(); i < items.end(); i += items.step()) {
#ifdef STREAM
            consumer.run(sums, items[i].count, turn);
            const Item item = items[i];
            if (item.is_given) {
                slots.give(sums);
                continue;
            }
            if (item.first) slots.take(items, sums);
#else
            const Item item = items[i];
#if PINGPONG
            const bool is_other = whose != group;
            whose ^= 1;
            if (is_other) {
                consumer.skip(item.count, turn);
                continue;
            }
#endif
            consumer.run(sums, item.count, turn);
#endif
#if CLUSTER > 1
            Block<Cluster::COLUMNS> total;
            cluster.gather(sums, total);
            if (i + items.step() < items.end()) cluster.release();
            store<Consumer, TURNED>(out, bias, total, item,
                                    item.column + cluster_rank() * Cluster::COLUMNS, rows, view);
#else
#if PINGPONG
            Consumer::store(out, bias, sums, item, view);
#else
            store<Consumer, TURNED>(out, bias, sums, item, item.column, rows, view);
#endif
#ifdef STATISTICS
            barrier_wait(read(group), parity ^ 1);  // the watchers have read the tile before
            release(written(group));
            if (i + TILES_AT_ONCE * items.step() >= items.end()) {
                // No products are left to hide a tile's statistics behind: all take those.
                barrier_wait(written(group), parity);
                watch<SHARING * 4>(items, i, out, moments, rows, view.columns);
            }
            parity ^= 1;
#endif
#endif
        }
    }
}
