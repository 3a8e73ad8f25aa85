// SPDX-License-Identifier: MIT
// What kernels/hopper.cuh wraps, under the same names; clusters apart, which need several blocks at
// a time.
#pragma once

using uint64 = unsigned long long;

struct alignas(64) TensorMap {
    unsigned char bytes[128];
};

template <int COUNT>
__forceinline__ void give_registers() {}
template <int COUNT>
__forceinline__ void take_registers() {}

__forceinline__ void barrier_init(uint64* barrier, int arrivals) {
    emu::phases_init(barrier, arrivals);
}
__forceinline__ void barrier_init_done() { emu::phases_init_done(); }
__forceinline__ void barrier_arrive(uint64* barrier) { emu::phases_arrive(barrier, 0); }
__forceinline__ void barrier_expect(uint64* barrier, int bytes) {
    emu::phases_arrive(barrier, bytes);
}
__forceinline__ void barrier_wait(uint64* barrier, unsigned parity, int line = __builtin_LINE()) {
    emu::phases_wait(barrier, parity, line);
}
__forceinline__ void shared_fence() { emu::shared_fence(); }

__forceinline__ unsigned this_block() { return blockIdx.x; }
__forceinline__ void publish(unsigned* flag) { emu::publish(flag); }
__forceinline__ void await(const unsigned* flag) { emu::await(flag); }

__forceinline__ void load_box(void* shared, const TensorMap& map, uint64* barrier, int x, int y) {
    emu::copy_box(shared, &map, barrier, 2, x, y, 0, 0);
}
__forceinline__ void load_box(void* shared, const TensorMap& map, uint64* barrier, int x, int y,
                              int z) {
    emu::copy_box(shared, &map, barrier, 3, x, y, z, 0);
}
__forceinline__ void load_box(void* shared, const TensorMap& map, uint64* barrier, int x, int y,
                              int z, int u) {
    emu::copy_box(shared, &map, barrier, 4, x, y, z, u);
}
__forceinline__ void load_im2col(void* shared, const TensorMap& map, uint64* barrier, int c, int w,
                                 int h, int n, int s, int r) {
    emu::copy_im2col(shared, &map, barrier, c, w, h, n, s, r);
}

// From bit 0 on, in units of 16 bytes: where the operand starts in shared memory (16 bits), and how
// far the next columns (20 bits) and the next lines are.
__forceinline__ uint64 describe(const void* shared, int next_lines, int next_columns) {
    return emu::shared_offset(shared) >> 4 | (uint64)(next_columns >> 4) << 16 |
           (uint64)(next_lines >> 4) << 36;
}
__forceinline__ uint64 move(uint64 descriptor, int bytes) { return descriptor + (bytes >> 4); }

__forceinline__ void wgmma_fence() { emu::warpgroup_fence(); }
__forceinline__ void wgmma_commit() { emu::warpgroup_commit(); }
template <int GROUPS_LEFT>
__forceinline__ void wgmma_wait(int line = __builtin_LINE()) {
    emu::warpgroup_wait(GROUPS_LEFT, line);
}
template <int COUNT>
__forceinline__ void keep(float (&)[COUNT]) {}
template <int COUNT>
__forceinline__ void keep(unsigned (&)[COUNT]) {}

template <int COUNT>
__forceinline__ void wgmma_tf32(float (&d)[COUNT], uint64 a, uint64 b, int add,
                                int line = __builtin_LINE()) {
    emu::warpgroup_tf32(d, 2 * COUNT, nullptr, a, b, add, line);
}
template <int COUNT>
__forceinline__ void wgmma_tf32(float (&d)[COUNT], const unsigned (&a)[4], uint64 b, int add,
                                int line = __builtin_LINE()) {
    emu::warpgroup_tf32(d, 2 * COUNT, a, 0, b, add, line);
}
template <int ACROSS_A, int ACROSS_B, int COUNT>
__forceinline__ void wgmma_bf16(float (&d)[COUNT], uint64 a, uint64 b, int add,
                                int line = __builtin_LINE()) {
    emu::warpgroup_bf16(d, 2 * COUNT, a, ACROSS_A, b, ACROSS_B, add, line);
}
