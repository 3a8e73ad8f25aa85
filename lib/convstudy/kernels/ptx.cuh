// SPDX-License-Identifier: MIT
// Instructions that CUDA C++ has no words for without its headers: one function each, and the only
// inline PTX there is. The CPU emulator has functions of the same names.
#ifndef CONVSTUDY_EMULATOR

// Copies BYTES in the background, or writes as many zeros where `inside` is false; `global` is
// not read then. 16 bytes go past L1, which would keep what is used once.
template <int BYTES>
__device__ __forceinline__ void cp_async(void* shared, const void* global, bool inside)
{
    const unsigned to = (unsigned)__cvta_generic_to_shared(shared);
    const int bytes = inside ? BYTES : 0;
    if constexpr (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global),
                     "r"(bytes) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(global),
                     "n"(BYTES), "r"(bytes) : "memory");
}
// Closes the group of copies that this thread has begun since the last.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;"); }
// Waits until at most so many of this thread's groups are under way. Other threads see the data
// after a barrier that follows.
template <int GROUPS_LEFT>
__device__ __forceinline__ void cp_async_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS_LEFT) : "memory");
}

// fp32 with 10 bits of the fraction, rounded to nearest, in a register of 32 bits.
__device__ __forceinline__ unsigned to_tf32(float x)
{
    unsigned y;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
    return y;
}

// d += a b for 16 x 8 values of d, with 8 products each. With g = lane / 4 and t = lane % 4:
// a is (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4); b is (t, g), (t + 4, g);
// d is (g, 2 t), (g, 2 t + 1), (g + 8, 2 t), (g + 8, 2 t + 1).
__device__ __forceinline__ void mma_tf32(float (&d)[4], const unsigned (&a)[4],
                                         const unsigned (&b)[2])
{
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// The same with 16 products each, of pairs of bf16 where mma_tf32 has one number.
__device__ __forceinline__ void mma_bf16(float (&d)[4], const unsigned (&a)[4],
                                         const unsigned (&b)[2])
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Reads four matrices of 8 rows of 16 bytes, from anywhere in shared memory: lane l says where row
// l % 8 of matrix l / 8 lies. It gets, in word i, word l % 4 of row l / 4 of matrix i: what the
// products above want of an operand whose rows or columns lie along depth. TRANSPOSED, of 16-bit
// numbers: of column l / 4 the numbers 2 (l % 4) and the next, for operands that lie across.
template <bool TRANSPOSED>
__device__ __forceinline__ void ldmatrix(unsigned (&words)[4], const void* row)
{
    const unsigned from = (unsigned)__cvta_generic_to_shared(row);
    if constexpr (TRANSPOSED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                     : "r"(from) : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                     : "r"(from) : "memory");
}

// Two numbers rounded to bf16, to nearest and ties to even; the first in the lower half.
__device__ __forceinline__ unsigned to_bf16x2(float first, float second)
{
    unsigned both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
    return both;
}

#endif

// fp32 without the lower half of its bits. No constructor: arrays of it may be shared memory.
struct bf16 {
    unsigned short bits;

    __device__ __forceinline__ bf16& operator=(float x)
    {
        bits = (unsigned short)to_bf16x2(x, 0.0f);
        return *this;
    }
};
