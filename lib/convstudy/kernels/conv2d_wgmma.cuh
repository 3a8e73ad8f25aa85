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
// Splits    As in conv2d_gemm.cuh: several blocks share a sum, conv2d_splits_1_sum adds the parts.
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
// Whether out holds parts of sums, which are always fp32.
#ifndef PARTS
#define PARTS 0
#endif

constexpr int TILE_M = CONSUMERS * ROWS_64 * 64;
constexpr int TILE_D = BF16 ? 64 : 32;
constexpr int THREADS = CONSUMERS * 128 + 128;
// A block starts with as many registers for each of its threads, dealt out by eights. What the
// producer gives back is all that there is for the consumers to take: they would wait for more.
constexpr int REGISTERS = 512 / BLOCKS_PER_SM / (CONSUMERS + 1) / 8 * 8;
constexpr int REGISTERS_PRODUCER = 40;
constexpr int REGISTERS_CONSUMER =
    (REGISTERS * (CONSUMERS + 1) - REGISTERS_PRODUCER) / CONSUMERS / 8 * 8;
constexpr int BYTES_A = TILE_M * 128;
constexpr int BYTES_B = TILE_N * 128;
constexpr int STAGE = BYTES_A + (TERMS == 3 ? 2 : 1) * BYTES_B;

extern __shared__ __align__(1024) unsigned char room[];

__device__ __forceinline__ uint64* full(int stage) { return (uint64*)(room + STAGES * STAGE) + stage; }
__device__ __forceinline__ uint64* empty(int stage) { return full(STAGES + stage); }

// Goes round the stages; the parity of a barrier's phase changes with each round.
struct Turn {
    int stage = 0;
    unsigned parity = 0;

    __device__ __forceinline__ void next()
    {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
};

// A tile of out, and the part of DEPTH that is summed.
struct Item {
    long long row;
    int column, split, first, count;  // first and count in tiles of DEPTH
};

// All that blocks have to do, in the order in which they take it.
struct Items {
    int blocks_m, blocks_n, tiles, splits;

    __device__ __forceinline__ Items(long long rows, int columns, int tiles, int splits)
        : blocks_m((int)((rows + TILE_M - 1) / TILE_M)), blocks_n(divide_up(columns, TILE_N)),
          tiles(tiles), splits(splits)
    {
    }
    __device__ __forceinline__ long long count() const
    {
        return (long long)blocks_m * blocks_n * splits;
    }
    __device__ __forceinline__ Item operator[](long long i) const
    {
        const int each = divide_up(tiles, splits);
        const int split = (int)(i / blocks_n / blocks_m), first = min(split * each, tiles);
        return {i / blocks_n % blocks_m * TILE_M, (int)(i % blocks_n) * TILE_N, split, first,
                min(each, tiles - first)};
    }
};

__device__ __forceinline__ void begin()
{
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; ++stage) {
            barrier_init(full(stage), 1);
            barrier_init(empty(stage), CONSUMERS * 4);
        }
        barrier_init_done();
    }
    __syncthreads();
}

// The producer: copy(a, b, barrier, item, tile) asks for both operands' tiles.
template <class Copy>
__device__ __forceinline__ void produce(const Items& items, Copy&& copy)
{
    if (threadIdx.x != CONSUMERS * 128) return;
    Turn turn;
    for (long long i = blockIdx.x; i < items.count(); i += gridDim.x) {
        const Item item = items[i];
        for (int tile = item.first; tile < item.first + item.count; ++tile, turn.next()) {
            barrier_wait(empty(turn.stage), turn.parity ^ 1);
            barrier_expect(full(turn.stage), STAGE);
            unsigned char* stage = room + turn.stage * STAGE;
            copy(stage, stage + BYTES_A, full(turn.stage), item, tile);
        }
    }
}

// One arrival a warp, once all of its lanes are done with the stage.
__device__ __forceinline__ void release(int stage)
{
    __syncwarp();
    if (threadIdx.x % 32 == 0) barrier_arrive(empty(stage));
}

// What a thread holds of its warpgroup's part of a tile.
struct Sums {
    float d[ROWS_64][TILE_N / 2];

    __device__ __forceinline__ void clear()
    {
#pragma unroll
        for (int m = 0; m < ROWS_64; ++m)
#pragma unroll
            for (int i = 0; i < TILE_N / 2; ++i) d[m][i] = 0.0f;
    }
    __device__ __forceinline__ void keep()
    {
#pragma unroll
        for (int m = 0; m < ROWS_64; ++m) ::keep(d[m]);
    }
};

// Consumers whose operands both come from shared memory. ACROSS: lines of the operand run across
// DEPTH, 64 columns a block of TILE_D lines.
template <int ACROSS_A, int ACROSS_B>
struct FromShared {
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
            multiply(sums, room + turn.stage * STAGE);
            wgmma_commit();
            if (tile) {
                wgmma_wait<1>();
                release(before);
            }
            before = turn.stage;
        }
        if (tiles) {
            wgmma_wait<0>();
            release(before);
        }
        sums.keep();
    }
};

// Consumers whose first operand passes through registers, where it is split into TF32 and what
// that leaves of fp32, or where its lines, running across DEPTH, are turned: TF32 is multiplied
// along lines only. The second operand was made ready before (conv2d_operand_1_split).
//
// Order     Which place of DEPTH a lane takes is free as long as both operands agree, so it is
//           chosen for the loads: along lines, 8 t + 2 i and the next for lane t, product i, so
//           that a lane's 8 values are two vectors in banks of their own; across, 8 i + 2 t and
//           the next, so that lanes read lines whose chunks are exchanged differently.
template <bool ACROSS>
struct ThroughRegisters {
    unsigned high[ROWS_64][4][4], low[ROWS_64][4][4];

    __device__ __forceinline__ void set(int m, int product, int i, float value)
    {
        high[m][product][i] = to_tf32(value);
        if (TERMS == 3)
            low[m][product][i] = to_tf32(value - __uint_as_float(high[m][product][i]));
    }
    __device__ __forceinline__ void fetch(const unsigned char* stage)
    {
        const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
        for (int m = 0; m < ROWS_64; ++m) {
            const int row = warp / 4 * ROWS_64 * 64 + m * 64 + warp % 4 * 16 + g;
            if (ACROSS) {
                // 32 rows are a block of 32 lines.
#pragma unroll
                for (int i = 0; i < 16; ++i) {
                    const int r = row + i % 2 * 8, line = i / 4 * 8 + 2 * t + i / 2 % 2;
                    const int chunk = r % 32 / 4 ^ line % 8;
                    set(m, i / 4, i % 4,
                        *(const float*)(stage + r / 32 * 4096 + line * 128 + chunk * 16 +
                                        r % 4 * 4));
                }
            } else {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const int chunk = (2 * t + half) ^ row % 8;
                    const float4 u = *(const float4*)(stage + row * 128 + chunk * 16);
                    const float4 v = *(const float4*)(stage + (row + 8) * 128 + chunk * 16);
                    set(m, 2 * half, 0, u.x), set(m, 2 * half, 1, v.x);
                    set(m, 2 * half, 2, u.y), set(m, 2 * half, 3, v.y);
                    set(m, 2 * half + 1, 0, u.z), set(m, 2 * half + 1, 1, v.z);
                    set(m, 2 * half + 1, 2, u.w), set(m, 2 * half + 1, 3, v.w);
                }
            }
        }
    }
    __device__ __forceinline__ void multiply(Sums& sums, const unsigned char* stage, int add)
    {
        const uint64 b = describe(stage + BYTES_A, 1024, 0);
        const uint64 rest = describe(stage + BYTES_A + (TERMS == 3) * BYTES_B, 1024, 0);
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int m = 0; m < ROWS_64; ++m) {
                if (TERMS == 3) {  // the small ones first
                    wgmma_tf32(sums.d[m], low[m][i], move(b, i * 32), add || i);
                    wgmma_tf32(sums.d[m], high[m][i], move(rest, i * 32), 1);
                }
                wgmma_tf32(sums.d[m], high[m][i], move(b, i * 32), TERMS == 3 || add || i);
            }
    }
    __device__ __forceinline__ void run(Sums& sums, int tiles, Turn& turn)
    {
        Sums part;
        sums.clear();
        for (int tile = 0; tile < tiles; ++tile, turn.next()) {
            Sums& here = TERMS == 3 ? part : sums;
            barrier_wait(full(turn.stage), turn.parity);
            const unsigned char* stage = room + turn.stage * STAGE;
            fetch(stage);
            here.keep();
            wgmma_fence();
            multiply(here, stage, TERMS != 3);
            wgmma_commit();
            wgmma_wait<0>();
            here.keep();
            release(turn.stage);
            if (TERMS == 3)
#pragma unroll
                for (int m = 0; m < ROWS_64; ++m)
#pragma unroll
                    for (int i = 0; i < TILE_N / 2; ++i) sums.d[m][i] += part.d[m][i];
        }
    }
};

#if BF16 && !PARTS
using Out = bf16;

__device__ __forceinline__ void put(Out* out, float left, float right)
{
    *(unsigned*)out = to_bf16x2(left, right);
}
#else
using Out = float;

__device__ __forceinline__ void put(Out* out, float left, float right)
{
    *(float2*)out = make_float2(left, right);
}
#endif

// Writes a tile of out, which has `rows` rows of `columns`. TURNED: out lies column by column.
template <bool TURNED>
__device__ __forceinline__ void store(Out* out, const float* bias, const Sums& sums,
                                      const Item& item, long long rows, int columns)
{
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    out += item.split * rows * columns;
#pragma unroll
    for (int m = 0; m < ROWS_64; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const long long row =
                item.row + warp / 4 * ROWS_64 * 64 + m * 64 + warp % 4 * 16 + g + 8 * half;
            if (row >= rows) continue;
#pragma unroll
            for (int j = 0; j < TILE_N / 8; ++j) {
                const int column = item.column + 8 * j + 2 * t;
                if (column >= columns) break;
                float left = sums.d[m][4 * j + 2 * half], right = sums.d[m][4 * j + 2 * half + 1];
                if (bias) left += bias[column], right += bias[column + 1];
                if (TURNED) {
                    out[column * rows + row] = left;
                    out[(column + 1) * rows + row] = right;
                } else {
                    put(out + row * columns + column, left, right);
                }
            }
        }
}

// A whole block: copies as `copy` asks for them, products as `Consumer` makes them.
template <class Consumer, bool TURNED, class Copy>
__device__ __forceinline__ void run(const Items& items, Copy&& copy, Out* out, const float* bias,
                                    long long rows, int columns)
{
    begin();
    if (threadIdx.x >= CONSUMERS * 128) {
        give_registers<REGISTERS_PRODUCER>();
        produce(items, copy);
    } else {
        take_registers<REGISTERS_CONSUMER>();
        Consumer consumer;
        Sums sums;
        Turn turn;
        for (long long i = blockIdx.x; i < items.count(); i += gridDim.x) {
            const Item item = items[i];
            consumer.run(sums, item.count, turn);
            store<TURNED>(out, bias, sums, item, rows, columns);
        }
    }
}
