// SPDX-License-Identifier: MIT
// How arrays of fp32 or bf16 are read and written: VECTOR neighbouring numbers at once.
//
// A vector has 16 bytes and starts on as many; where an array does not allow that, VECTOR is 1.
// Numbers stay packed until they are used: of bf16, that takes half the registers. All arithmetic
// is fp32, and what is written is rounded once.
#ifndef BF16
#define BF16 0
#endif
#ifndef VECTOR
#define VECTOR (BF16 ? 8 : 4)
#endif
#if BF16
using Element = bf16;
#else
using Element = float;
#endif
#if VECTOR > 1
using Packed = uint4;
#else
using Packed = Element;
#endif
static_assert(VECTOR == 1 || VECTOR * sizeof(Element) == 16, "a vector has 16 bytes");

__device__ __forceinline__ Packed load(const Element* from)
{
    return *reinterpret_cast<const Packed*>(from);
}
__device__ __forceinline__ void store(Element* to, const Packed& packed)
{
    *reinterpret_cast<Packed*>(to) = packed;
}

__device__ __forceinline__ float widened(unsigned bits) { return __uint_as_float(bits << 16); }

__device__ __forceinline__ float number(const Element& element)
{
#if BF16
    return widened(element.bits);
#else
    return element;
#endif
}

// Number i of a vector; the compiler must know i.
__device__ __forceinline__ float at(const Packed& packed, int i)
{
#if VECTOR > 1
    const int word = BF16 ? i / 2 : i;
    const unsigned bits = word < 2 ? (word ? packed.y : packed.x) : word == 2 ? packed.z : packed.w;
    if (!BF16) return __uint_as_float(bits);
    return i % 2 ? __uint_as_float(bits & 0xffff0000u) : widened(bits);
#else
    return number(packed);
#endif
}

__device__ __forceinline__ Packed pack(const float (&values)[VECTOR])
{
#if VECTOR == 1
    Packed packed;
    packed = values[0];
    return packed;
#elif BF16
    return make_uint4(to_bf16x2(values[0], values[1]), to_bf16x2(values[2], values[3]),
                      to_bf16x2(values[4], values[5]), to_bf16x2(values[6], values[7]));
#else
    return make_uint4(__float_as_uint(values[0]), __float_as_uint(values[1]),
                      __float_as_uint(values[2]), __float_as_uint(values[3]));
#endif
}

// Makes of two numbers what memory would: one instruction rounds both.
__device__ __forceinline__ void round_both(float& first, float& second)
{
#if BF16
    const unsigned both = to_bf16x2(first, second);
    first = widened(both);
    second = __uint_as_float(both & 0xffff0000u);
#endif
}

// Numbers that belong to channels are fp32, whatever the arrays are.
__device__ __forceinline__ void read(float (&to)[VECTOR], const float* from)
{
#if VECTOR > 1
#pragma unroll
    for (int i = 0; i < VECTOR; i += 4) {
        const float4 four = *reinterpret_cast<const float4*>(from + i);
        to[i] = four.x, to[i + 1] = four.y, to[i + 2] = four.z, to[i + 3] = four.w;
    }
#else
    to[0] = *from;
#endif
}

// A byte for each number of a vector.
#if VECTOR == 8
using Bytes = uint2;
#elif VECTOR == 4
using Bytes = unsigned;
#else
using Bytes = unsigned char;
#endif
__device__ __forceinline__ Bytes load_bytes(const unsigned char* from)
{
    return *reinterpret_cast<const Bytes*>(from);
}
__device__ __forceinline__ int byte_of(const Bytes& bytes, int i)
{
#if VECTOR == 8
    return (i < 4 ? bytes.x : bytes.y) >> 8 * (i % 4) & 0xff;
#else
    return bytes >> 8 * i & 0xff;
#endif
}
__device__ __forceinline__ void store_bytes(unsigned char* to, const int (&values)[VECTOR])
{
#if VECTOR == 1
    *to = (unsigned char)values[0];
#else
    unsigned words[VECTOR / 4] = {};
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) words[i / 4] |= (unsigned)values[i] << 8 * (i % 4);
#if VECTOR == 8
    *reinterpret_cast<Bytes*>(to) = make_uint2(words[0], words[1]);
#else
    *reinterpret_cast<Bytes*>(to) = words[0];
#endif
#endif
}
