// SPDX-License-Identifier: MIT
// Instructions of Hopper (sm_90a): copies of whole tiles by the tensor memory accelerator (TMA),
// the barriers in shared memory that wait for them, and the products of a warpgroup (wgmma). One
// function each; the CPU emulator has functions of the same names.
#ifndef CONVSTUDY_EMULATOR

using uint64 = unsigned long long;

// How a copy sees an array: made on the host, passed by value as `const __grid_constant__`.
struct alignas(64) TensorMap {
    unsigned char bytes[128];
};

__device__ __forceinline__ unsigned shared_address(const void* shared)
{
    return (unsigned)__cvta_generic_to_shared(shared);
}

// A warpgroup gives registers back, or takes them: it has COUNT for each thread from here on.
template <int COUNT>
__device__ __forceinline__ void give_registers()
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT>
__device__ __forceinline__ void take_registers()
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

// ---- barriers: a phase ends once so many threads have arrived, and all bytes asked for are there
__device__ __forceinline__ void barrier_init(uint64* barrier, int arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
                 "r"(arrivals));
}
// Makes initialised barriers known to the TMA; __syncthreads() makes them known to the threads.
__device__ __forceinline__ void barrier_init_done()
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void barrier_arrive(uint64* barrier)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
                 : "memory");
}
// Arrives, and adds to the bytes that this phase waits for.
__device__ __forceinline__ void barrier_expect(uint64* barrier, int bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                     shared_address(barrier)), "r"(bytes) : "memory");
}
// Waits until the phase of this parity has ended; the first phase of a barrier has parity 0.
__device__ __forceinline__ void barrier_wait(uint64* barrier, unsigned parity)
{
    asm volatile(
        "{\n.reg .pred done;\nagain:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n}" ::"r"(shared_address(barrier)), "r"(parity) : "memory");
}

// What this thread has written to shared memory, products will read behind a barrier.
__device__ __forceinline__ void shared_fence()
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// ---- clusters: blocks that run at the same time and see each other's shared memory
__device__ __forceinline__ int cluster_rank()
{
    unsigned rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
// Says that this thread is here, and what it has done; and waits for all threads of the cluster.
__device__ __forceinline__ void cluster_arrive()
{
    asm volatile("barrier.cluster.arrive.release;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait()
{
    asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}
// Where what lies at `shared` here lies in the block of that rank.
__device__ __forceinline__ unsigned address_in(const void* shared, int rank)
{
    unsigned address;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(shared)),
        "r"(rank));
    return address;
}
// Arrives at a barrier of the block of that rank.
__device__ __forceinline__ void barrier_arrive_in(uint64* barrier, int rank)
{
    asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(
                     address_in(barrier, rank)) : "memory");
}
// As barrier_wait, where the arrivals come from other blocks.
__device__ __forceinline__ void barrier_wait_cluster(uint64* barrier, unsigned parity)
{
    asm volatile(
        "{\n.reg .pred done;\nagain:\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n}" ::"r"(shared_address(barrier)), "r"(parity) : "memory");
}
// Stores a vector in another block, and tells a barrier there of its 16 bytes, as a copy does.
__device__ __forceinline__ void store_in_block(unsigned address, float4 v, unsigned barrier)
{
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 "
                 "[%0], {%1, %2, %3, %4}, [%5];" ::"r"(address), "f"(v.x), "f"(v.y), "f"(v.z),
                 "f"(v.w), "r"(barrier) : "memory");
}

#ifdef STREAM
// As blockIdx.x, read anew each time: what is computed from it is, too.
__device__ __forceinline__ unsigned this_block()
{
    unsigned number;
    asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(number));
    return number;
}

// ---- flags in global memory, by which a block tells others of its launch what it has left there.
// Blocks begin in the order of their numbers: one may wait for those before it, for none behind.
// Sets a flag that was 0. Who sees it sees what this thread wrote before, and what the lanes did
// that it has met since.
__device__ __forceinline__ void publish(unsigned* flag)
{
    asm volatile("st.release.gpu.global.u32 [%0], 1;" ::"l"(flag) : "memory");
}
// Waits until it is set; each thread that reads what was published waits for itself.
__device__ __forceinline__ void await(const unsigned* flag)
{
    asm volatile(
        "{\n.reg .pred there;\n.reg .u32 found;\nagain:\n"
        "ld.acquire.gpu.global.u32 found, [%0];\nsetp.ne.u32 there, found, 0;\n"
        "@!there bra again;\n}" ::"l"(flag) : "memory");
}
#endif

// ---- copies to shared memory, 128 bytes a line, their 16-byte chunks exchanged (chunk i of line l
// lies at i ^ l % 8): what lies outside the array arrives as zeros. A barrier learns of the bytes.
__device__ __forceinline__ void load_box(void* shared, const TensorMap& map, uint64* barrier,
                                         int x, int y)
{
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4}], [%2];" ::"r"(shared_address(shared)), "l"(&map),
        "r"(shared_address(barrier)), "r"(x), "r"(y) : "memory");
}
__device__ __forceinline__ void load_box(void* shared, const TensorMap& map, uint64* barrier,
                                         int x, int y, int z)
{
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(shared_address(shared)), "l"(&map),
        "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z) : "memory");
}
__device__ __forceinline__ void load_box(void* shared, const TensorMap& map, uint64* barrier,
                                         int x, int y, int z, int u)
{
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(shared_address(shared)), "l"(&map),
        "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z), "r"(u) : "memory");
}
// Channels from c on of a run of pixels: those that a filter's first tap meets from (n, h, w) on,
// in the order of the outputs, moved by the tap (r, s).
__device__ __forceinline__ void load_im2col(void* shared, const TensorMap& map, uint64* barrier,
                                            int c, int w, int h, int n, int s, int r)
{
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5, %6}], [%2], {%7, %8};" ::"r"(shared_address(shared)), "l"(&map),
        "r"(shared_address(barrier)), "r"(c), "r"(w), "r"(h), "r"(n), "h"((short)s), "h"((short)r)
        : "memory");
}

// ---- products of a warpgroup: d (64 x N) += a (64 x K) b (K x N), K being 32 bytes of operand.
// Thread t of the 128 holds rows t / 32 * 16 + t % 32 / 4 (+ 8) and columns 8 j + 2 (t % 4) (+ 1):
// d[4 j], d[4 j + 1] of the first row, d[4 j + 2], d[4 j + 3] of the second.
// An operand in shared memory is given by its descriptor: where it starts, and in bytes how far
// the next 8 lines are, and, where lines do not run along K, the next 128 bytes of columns.
__device__ __forceinline__ uint64 describe(const void* shared, int next_lines, int next_columns)
{
    const uint64 start = shared_address(shared) >> 4 & 0x3fff;
    return start | (uint64)(next_columns >> 4) << 16 | (uint64)(next_lines >> 4) << 32 |
           (uint64)1 << 62;
}
__device__ __forceinline__ uint64 move(uint64 descriptor, int bytes)
{
    return descriptor + (bytes >> 4);
}

// Before the first product, and after registers of one were written.
__device__ __forceinline__ void wgmma_fence()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits until at most so many groups are under way. Their registers must pass through `keep`.
template <int GROUPS_LEFT>
__device__ __forceinline__ void wgmma_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(GROUPS_LEFT) : "memory");
}
// The compiler must not move uses of d over a fence or a wait; nor, of operands in registers, take
// these for something else before the wait.
template <int COUNT>
__device__ __forceinline__ void keep(float (&d)[COUNT])
{
#pragma unroll
    for (int i = 0; i < COUNT; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
template <int COUNT>
__device__ __forceinline__ void keep(unsigned (&a)[COUNT])
{
#pragma unroll
    for (int i = 0; i < COUNT; ++i) asm volatile("" : "+r"(a[i])::"memory");
}

#define D8(i)                                                                                   \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
        "+f"(d[i + 6]), "+f"(d[i + 7])
#define D32(i) D8(i), D8(i + 8), D8(i + 16), D8(i + 24)
#define NAMES32                                                                                  \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24," \
    "%25,%26,%27,%28,%29,%30,%31"
#define NAMES64                                                                                  \
    NAMES32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51," \
            "%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define NAMES128                                                                                 \
    NAMES64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83," \
            "%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,"   \
            "%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,"  \
            "%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define WGMMA(SHAPE, TYPES, NAMES, OPERANDS, ADD, TAIL)                                      \
    "{\n.reg .pred add;\nsetp.ne.b32 add, " ADD ", 0;\nwgmma.mma_async.sync.aligned." SHAPE \
    ".f32." TYPES " {" NAMES "}, " OPERANDS ", add, 1, 1" TAIL ";\n}"

// Overwrites d where `add` is false. TF32: both operands' lines run along K. bf16: ACROSS_A and
// ACROSS_B say that they run across it. P0 to P5 are the numbers of what follows d in the assembly.
#define DEFINE_WGMMA(N, COUNT, NAMES, D, P0, P1, P2, P3, P4, P5)                                  \
    __device__ __forceinline__ void wgmma_tf32(float (&d)[COUNT], uint64 a, uint64 b, int add)    \
    {                                                                                             \
        asm volatile(WGMMA("m64n" N "k8", "tf32.tf32", NAMES, P0 ", " P1, P2, "")                 \
                     : D                                                                          \
                     : "l"(a), "l"(b), "r"(add));                                                 \
    }                                                                                             \
    __device__ __forceinline__ void wgmma_tf32(float (&d)[COUNT], const unsigned (&a)[4],         \
                                               uint64 b, int add)                                 \
    {                                                                                             \
        asm volatile(WGMMA("m64n" N "k8", "tf32.tf32", NAMES,                                     \
                           "{" P0 "," P1 "," P2 "," P3 "}, " P4, P5, "")                          \
                     : D                                                                          \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));             \
    }                                                                                             \
    template <int ACROSS_A, int ACROSS_B>                                                         \
    __device__ __forceinline__ void wgmma_bf16(float (&d)[COUNT], uint64 a, uint64 b, int add)    \
    {                                                                                             \
        asm volatile(WGMMA("m64n" N "k16", "bf16.bf16", NAMES, P0 ", " P1, P2, ", " P3 ", " P4)   \
                     : D                                                                          \
                     : "l"(a), "l"(b), "r"(add), "n"(ACROSS_A), "n"(ACROSS_B));                   \
    }
#define D64 D32(0), D32(32)
#define D128 D64, D32(64), D32(96)
#define ARGUMENTS(...) __VA_ARGS__
DEFINE_WGMMA("64", 32, NAMES32, ARGUMENTS(D32(0)), "%32", "%33", "%34", "%35", "%36", "%37")
DEFINE_WGMMA("128", 64, NAMES64, ARGUMENTS(D64), "%64", "%65", "%66", "%67", "%68", "%69")
DEFINE_WGMMA("256", 128, NAMES128, ARGUMENTS(D128), "%128", "%129", "%130", "%131", "%132", "%133")

#endif
