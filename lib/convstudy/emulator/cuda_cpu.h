// SPDX-License-Identifier: MIT
// What a .cu file sees in place of CUDA's built-ins. It is compiled with the kernel, so whatever is
// memory here is seen by the checker as the kernel's own access: hence values come from functions
// of the runtime in registers, and only what the kernel itself loads and stores is inline.
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <type_traits>
#include <utility>

#include "device.h"

#define CONVSTUDY_EMULATOR 1
#define __CUDACC__ 1
#define __CUDA_ARCH__ 900
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
#define __builtin_assume(condition) ((void)0)
// Shared memory is the module's thread-local storage: each OS thread runs one block at a time, so
// each has the block's own copy, and the whole of it lies in one range that the runtime can find.
// `used` keeps the compiler from taking an array that is never written for a constant zero.
#define __shared__ thread_local __attribute__((used))

// ---- vector types -------------------------------------------------------------------------------
namespace emu {

// The whole vector as one value. Copying through it makes a float4 load one access of 16 bytes, as
// on a GPU; the compiler would split the copy of a plain struct into its members.
template <class T, int N>
struct Pack {
    typedef T type __attribute__((vector_size(N * sizeof(T)), may_alias, aligned(sizeof(T))));
};

#define EMU_COPIES_WHOLE(Self, T, N)                                                        \
    using Whole = typename Pack<T, N>::type;                                                \
    Self() = default;                                                                       \
    Self(const Self& o) { *reinterpret_cast<Whole*>(this) = reinterpret_cast<const Whole&>(o); } \
    Self& operator=(const Self& o) {                                                        \
        *reinterpret_cast<Whole*>(this) = reinterpret_cast<const Whole&>(o);                \
        return *this;                                                                       \
    }
template <class T>
struct alignas(2 * sizeof(T)) Vec2 {
    T x, y;
    Vec2(T x_, T y_) : x(x_), y(y_) {}
    EMU_COPIES_WHOLE(Vec2, T, 2)
};
template <class T>
struct alignas(sizeof(T) == 8 ? 16 : 4 * sizeof(T)) Vec4 {
    T x, y, z, w;
    Vec4(T x_, T y_, T z_, T w_) : x(x_), y(y_), z(z_), w(w_) {}
    EMU_COPIES_WHOLE(Vec4, T, 4)
};
#undef EMU_COPIES_WHOLE

}  // namespace emu

#define EMU_VECTORS(T, name)                                                      \
    using name##2 = emu::Vec2<T>;                                                 \
    using name##3 = emu::Vec3<T>;                                                 \
    using name##4 = emu::Vec4<T>;                                                 \
    inline name##2 make_##name##2(T x, T y) { return {x, y}; }                    \
    inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }            \
    inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMU_VECTORS(signed char, char)
EMU_VECTORS(unsigned char, uchar)
EMU_VECTORS(short, short)
EMU_VECTORS(unsigned short, ushort)
EMU_VECTORS(int, int)
EMU_VECTORS(unsigned, uint)
EMU_VECTORS(long long, longlong)
EMU_VECTORS(unsigned long long, ulonglong)
EMU_VECTORS(float, float)
EMU_VECTORS(double, double)
#undef EMU_VECTORS

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
    dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
};

// ---- where a thread is --------------------------------------------------------------------------
#define threadIdx (::emu::place().thread)
#define blockIdx (::emu::place().block)
#define blockDim (::emu::place().block_size)
#define gridDim (::emu::place().grid_size)
constexpr int warpSize = 32;

// ---- barriers -----------------------------------------------------------------------------------
inline void __syncthreads(int line = __builtin_LINE()) { emu::block_barrier(line); }
inline int __syncthreads_count(int p, int line = __builtin_LINE()) {
    return int(emu::block_barrier_count(line, p != 0));
}
inline int __syncthreads_or(int p, int line = __builtin_LINE()) {
    return emu::block_barrier_count(line, p != 0) > 0;
}
inline int __syncthreads_and(int p, int line = __builtin_LINE()) {
    return emu::block_barrier_count(line, p == 0) == 0;
}
inline void __syncwarp(unsigned mask = 0xffffffffu, int line = __builtin_LINE()) {
    emu::warp_barrier(mask, line);
}
inline void __threadfence() { emu::fence(); }
inline void __threadfence_block() { emu::fence(); }
inline void __threadfence_system() { emu::fence(); }
inline void __nanosleep(unsigned) {}
inline long long clock64() { return emu::clock(); }
inline int clock() { return int(emu::clock()); }

// ---- warp shuffles and votes --------------------------------------------------------------------
namespace emu {

template <class To, class From>
inline To bit_cast(const From& from) {
    static_assert(sizeof(To) == sizeof(From), "sizes differ");
    To to;
    __builtin_memcpy(&to, &from, sizeof to);
    return to;
}

// Reads `value` of lane `source`; a lane that is outside its segment reads its own.
template <class T>
inline T shuffle(unsigned mask, T value, int source, bool inside, int line) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles take 4 or 8 bytes");
    using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
    const unsigned from = inside ? unsigned(source) : lane();
    return bit_cast<T>(Bits(warp_shuffle(mask, bit_cast<Bits>(value), from, line)));
}

}  // namespace emu

template <class T>
inline T __shfl_sync(unsigned mask, T v, int source, int width = 32, int line = __builtin_LINE()) {
    const int base = int(emu::lane()) & ~(width - 1);
    return emu::shuffle(mask, v, base + (source & (width - 1)), true, line);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32,
                        int line = __builtin_LINE()) {
    const int lane = int(emu::lane()), source = lane - int(delta);
    return emu::shuffle(mask, v, source, source >= (lane & ~(width - 1)), line);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32,
                          int line = __builtin_LINE()) {
    const int lane = int(emu::lane()), source = lane + int(delta);
    return emu::shuffle(mask, v, source, source < (lane & ~(width - 1)) + width, line);
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32,
                         int line = __builtin_LINE()) {
    const int lane = int(emu::lane()), source = lane ^ bits;
    return emu::shuffle(mask, v, source, source < (lane & ~(width - 1)) + width, line);
}
inline unsigned __ballot_sync(unsigned mask, int p, int line = __builtin_LINE()) {
    return emu::warp_ballot(mask, p != 0, line);
}
inline int __any_sync(unsigned mask, int p, int line = __builtin_LINE()) {
    return emu::warp_ballot(mask, p != 0, line) != 0;
}
inline int __all_sync(unsigned mask, int p, int line = __builtin_LINE()) {
    return emu::warp_ballot(mask, p == 0, line) == 0;
}
inline unsigned __activemask() { return emu::warp_active(); }

// ---- atomics ------------------------------------------------------------------------------------
// Blocks may run on several OS threads, so these are atomic for the CPU too.
namespace emu {

template <class T, class F>
inline T atomic_update(T* address, F&& next) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "atomics take 4 or 8 bytes");
    using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
    atomic_access(address, sizeof(T));
    Bits seen = compare_and_swap(address, Bits(0), Bits(0));
    for (;;) {
        const Bits before = seen;
        seen = compare_and_swap(address, before, bit_cast<Bits>(T(next(bit_cast<T>(before)))));
        if (seen == before) return bit_cast<T>(before);
    }
}
template <class T>
struct Same {  // the second argument converts to the type of the first, as CUDA's overloads do
    using type = T;
};

}  // namespace emu

#define EMU_ATOMIC(name, expression)                                   \
    template <class T>                                                 \
    inline T name(T* address, typename emu::Same<T>::type v) {         \
        return emu::atomic_update(address, [v](T old) { return T(expression); }); \
    }
EMU_ATOMIC(atomicAdd, old + v)
EMU_ATOMIC(atomicSub, old - v)
EMU_ATOMIC(atomicMin, v < old ? v : old)
EMU_ATOMIC(atomicMax, v > old ? v : old)
EMU_ATOMIC(atomicAnd, old & v)
EMU_ATOMIC(atomicOr, old | v)
EMU_ATOMIC(atomicXor, old ^ v)
EMU_ATOMIC(atomicExch, v)
EMU_ATOMIC(atomicInc, old >= v ? 0 : old + 1)
#undef EMU_ATOMIC
template <class T>
inline T atomicCAS(T* address, typename emu::Same<T>::type expected,
                   typename emu::Same<T>::type v) {
    return emu::atomic_update(address, [=](T old) { return old == expected ? v : old; });
}

// ---- loads with a cache hint: the emulator has no caches ----------------------------------------
#define EMU_LOAD(name)                  \
    template <class T>                  \
    inline T name(const T* address) {   \
        return *address;                \
    }
EMU_LOAD(__ldg)
EMU_LOAD(__ldca)
EMU_LOAD(__ldcg)
EMU_LOAD(__ldcs)
EMU_LOAD(__ldlu)
EMU_LOAD(__ldcv)
#undef EMU_LOAD
#define EMU_STORE(name)                                                      \
    template <class T>                                                       \
    inline void name(T* address, const typename emu::Same<T>::type& value) { \
        *address = value;                                                    \
    }
EMU_STORE(__stwb)
EMU_STORE(__stcg)
EMU_STORE(__stcs)
EMU_STORE(__stwt)
#undef EMU_STORE

// ---- arithmetic ---------------------------------------------------------------------------------
namespace emu {
template <class R>
constexpr R lesser(R a, R b) { return b < a ? b : a; }
template <class R>
constexpr R greater(R a, R b) { return a < b ? b : a; }
}  // namespace emu
#define EMU_MIN_MAX(R, A, B)                                      \
    constexpr R min(A a, B b) { return emu::lesser<R>(a, b); }    \
    constexpr R max(A a, B b) { return emu::greater<R>(a, b); }
EMU_MIN_MAX(int, int, int)
EMU_MIN_MAX(unsigned, unsigned, unsigned)
EMU_MIN_MAX(unsigned, int, unsigned)
EMU_MIN_MAX(unsigned, unsigned, int)
EMU_MIN_MAX(long, long, long)
EMU_MIN_MAX(unsigned long, unsigned long, unsigned long)
EMU_MIN_MAX(long long, long long, long long)
EMU_MIN_MAX(unsigned long long, unsigned long long, unsigned long long)
#undef EMU_MIN_MAX
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __saturatef(float a) { return fminf(fmaxf(a, 0.0f), 1.0f); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }

inline int __float_as_int(float x) { return emu::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return emu::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return emu::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return emu::bit_cast<float>(x); }
inline int __float2int_rn(float x) { return int(rintf(x)); }
inline int __float2int_rd(float x) { return int(floorf(x)); }
inline float __int2float_rn(int x) { return float(x); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __mul24(int a, int b) { return a * b; }
inline int __mulhi(int a, int b) { return int(((long long)a * b) >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) {
    return unsigned(((unsigned long long)a * b) >> 32);
}

// ---- PTX instructions that kernels/ptx.cuh and kernels/hopper.cuh wrap --------------------------
#include "ptx_cpu.h"
#include "hopper_cpu.h"

// ---- how the loader calls the kernel ------------------------------------------------------------
namespace emu {

// What kernel.py compares with the arguments: 'p'ointer, 'f'loat, 'i'nteger or 's'tructure; for a
// pointer, the same of what it points to ('s' where anything may lie there).
struct Parameter {
    char kind, pointee_kind;
    short size, pointee_size;
};
template <class T>
constexpr char kind_of() {
    return std::is_pointer_v<T>          ? 'p'
           : std::is_floating_point_v<T> ? 'f'
           : std::is_integral_v<T>       ? 'i'
                                         : 's';
}
template <class T>
constexpr Parameter describe() {
    using Pointee = std::remove_pointer_t<T>;
    if constexpr (std::is_pointer_v<T> && !std::is_void_v<Pointee>)
        return {'p', kind_of<std::remove_cv_t<Pointee>>(), sizeof(T), sizeof(Pointee)};
    else
        return {kind_of<T>(), 's', sizeof(T), 0};
}
template <class... A>
inline int describe(void (*)(A...), const Parameter** parameters) {
    static const Parameter all[] = {describe<std::remove_cv_t<A>>()..., {}};
    *parameters = all;
    return sizeof...(A);
}
template <class... A, size_t... I>
inline void call(void (*kernel)(A...), void* const* arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_reference_t<A>*>(arguments[I])...);
}
template <class... A>
inline void call(void (*kernel)(A...), void* const* arguments) {
    call(kernel, arguments, std::index_sequence_for<A...>{});
}

}  // namespace emu

// Defines the symbols of `extern __shared__` arrays; all of them are the same memory, as in CUDA.
#define EMU_TEXT_(x) #x
#define EMU_TEXT(x) EMU_TEXT_(x)
#define EMU_DYNAMIC_SHARED(labels)                                                         \
    asm(".section .tbss,\"awT\",@nobits\n.balign 1024\n" labels                            \
        ".zero " EMU_TEXT(EMU_DYNAMIC_ROOM) "\n.previous\n");
#define EMU_LABEL(name) ".hidden " name "\n.globl " name "\n" name ":\n"
