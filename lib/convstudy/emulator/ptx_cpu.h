// SPDX-License-Identifier: MIT
// What kernels/ptx.cuh wraps, under the same names. A kernel that includes it runs unmodified.
#pragma once

template <int BYTES>
inline void cp_async(void* shared, const void* global, bool inside) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "cp.async copies 4, 8 or 16 bytes");
    emu::copy_async(shared, global, BYTES, inside ? BYTES : 0);
}
inline void cp_async_commit() { emu::commit_copies(); }
template <int GROUPS_LEFT>
inline void cp_async_wait() {
    emu::await_copies(GROUPS_LEFT);
}

// To nearest, ties away from zero, as cvt.rna: 10 bits of the fraction are kept.
inline unsigned to_tf32(float x) { return (emu::bit_cast<unsigned>(x) + 0x1000u) & 0xffffe000u; }
inline void mma_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                     int line = __builtin_LINE()) {
    emu::mma_m16n8k8_tf32(d, a, b, line);
}
inline void mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                     int line = __builtin_LINE()) {
    emu::mma_m16n8k16_bf16(d, a, b, line);
}

// The row is read by its lane, as the kernel's own access, and then dealt out.
template <bool TRANSPOSED>
inline void ldmatrix(unsigned (&words)[4], const void* row, int line = __builtin_LINE()) {
    const uint4 mine = *static_cast<const uint4*>(row);
    const unsigned given[4] = {mine.x, mine.y, mine.z, mine.w};
    emu::deal_matrices(words, given, TRANSPOSED, line);
}

inline unsigned to_bf16x2(float first, float second) {
    const auto rounded = [](float x) {
        const unsigned bits = emu::bit_cast<unsigned>(x);
        return x != x ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
    };
    return rounded(first) | rounded(second) << 16;
}
