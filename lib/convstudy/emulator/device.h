// SPDX-License-Identifier: MIT
// What a kernel calls of the runtime (through cuda_cpu.h).
#pragma once
#include <cstdint>

#define EMU_API __attribute__((visibility("default")))

// Room for `extern __shared__` arrays: the most a block of compute capability 9.0 can ask for, and
// a gap behind it, so that one byte too far is not yet another variable.
#define EMU_DYNAMIC_ROOM 233472

namespace emu {

template <class T>
struct Vec3 {
    T x, y, z;
};
using Index = Vec3<unsigned>;

// Where a thread is. A reference, not a value: g++ 12 compiles `(c ? a : b)[f().x]` wrongly where
// f returns a structure. `const` holds: a function of a kernel runs in one thread all along.
struct Place {
    Index thread, block, block_size, grid_size;
};
EMU_API const Place& place() __attribute__((const));
EMU_API unsigned lane() __attribute__((const));

// The caller's line tells barriers apart: return addresses would not, since the compiler may copy a
// call into two branches.
EMU_API void block_barrier(int line);
EMU_API unsigned block_barrier_count(int line, bool predicate);
EMU_API void warp_barrier(unsigned mask, int line);
EMU_API uint64_t warp_shuffle(unsigned mask, uint64_t value, unsigned source, int line);
EMU_API unsigned warp_ballot(unsigned mask, bool predicate, int line);
EMU_API unsigned warp_active();
EMU_API void fence();
EMU_API long long clock();

EMU_API void atomic_access(const void* address, unsigned size);
EMU_API uint32_t compare_and_swap(void* address, uint32_t expected, uint32_t desired);
EMU_API uint64_t compare_and_swap(void* address, uint64_t expected, uint64_t desired);

// What tensor cores do (tensor.cpp), on each lane's part of the operands.
EMU_API void mma_m16n8k8_tf32(float* d, const unsigned* a, const unsigned* b, int line);
EMU_API void mma_m16n8k16_bf16(float* d, const unsigned* a, const unsigned* b, int line);
// Each lane gives a row of ldmatrix's four matrices, and gets a word of each.
EMU_API void deal_matrices(unsigned* words, const unsigned* row, bool transposed, int line);

// Copies from global to shared memory that go on in the background (async.cpp). The first `bytes`
// of `size` are copied, the rest become zeros.
EMU_API void copy_async(void* shared, const void* global, unsigned size, unsigned bytes);
EMU_API void commit_copies();
EMU_API void await_copies(unsigned groups_left);

// Barriers of phases (phases.cpp); who arrives may announce bytes that the phase waits for too.
EMU_API void phases_init(const void* barrier, int arrivals);
EMU_API void phases_init_done();
EMU_API void phases_arrive(const void* barrier, int bytes);
EMU_API void phases_wait(const void* barrier, unsigned parity, int line);

// Flags in global memory, from block to block (handover.cpp).
EMU_API void publish(unsigned* flag);
EMU_API void await(const unsigned* flag);

// Copies of the tensor memory accelerator (tma.cpp).
EMU_API void copy_box(void* shared, const void* map, const void* barrier, int rank, int x, int y,
                      int z, int u);
EMU_API void copy_im2col(void* shared, const void* map, const void* barrier, int c, int w, int h,
                         int n, int s, int r);

// Products of a warpgroup (wgmma.cpp).
// How far from where shared memory begins, on whole kilobytes.
EMU_API unsigned shared_offset(const void* shared);
// `columns` is the width of the product; `words` are the first operand's where it is in registers.
EMU_API void warpgroup_tf32(float* d, int columns, const unsigned* words, uint64_t a, uint64_t b,
                            int add, int line);
EMU_API void warpgroup_bf16(float* d, int columns, uint64_t a, int across_a, uint64_t b,
                            int across_b, int add, int line);
EMU_API void shared_fence();
EMU_API void warpgroup_fence();
EMU_API void warpgroup_commit();
EMU_API void warpgroup_wait(int groups_left, int line);

}  // namespace emu
