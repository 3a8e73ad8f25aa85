// SPDX-License-Identifier: MIT
// What tensor cores make of numbers.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace emu {

inline float as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
inline uint32_t as_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

// To nearest, ties away from zero: 10 bits of the fraction are kept.
inline uint32_t rounded_to_tf32(uint32_t bits) {
    const bool is_finite = (bits & 0x7f800000u) != 0x7f800000u;
    return (is_finite ? bits + 0x1000u : bits) & 0xffffe000u;
}

// What a register holds of an operand: so many numbers that follow each other in depth.
struct TF32 {
    static constexpr int NUMBERS = 1;
    // The hardware does not look at the 13 bits that fp32 has beyond TF32.
    static float number(uint32_t word, int) { return as_float(word & 0xffffe000u); }
};
struct BF16 {
    static constexpr int NUMBERS = 2;
    static float number(uint32_t word, int i) { return as_float(word >> 16 * i << 16); }
};

// What does not fit into fp32 is dropped, as by tensor cores; a double holds the sum until then.
inline float towards_zero(double x) {
    const float near = float(x);
    return as_float(as_bits(near) - (std::fabs(double(near)) > std::fabs(x)));
}

// Rows of what one warp computes at a time.
constexpr int ROWS = 16;
// What one register holds: wider ones g++ 12 moves to the stack and back between two operations.
#if defined(__AVX512F__)
constexpr int WIDTH = 8;
#elif defined(__AVX__)
constexpr int WIDTH = 4;
#else
constexpr int WIDTH = 2;
#endif
typedef double Doubles __attribute__((vector_size(WIDTH * sizeof(double)), aligned(8)));

// d += a b, for `columns` columns, TOGETHER at a time. d lies by rows, a and b by depth.
template <int TOGETHER>
inline void multiply_add(double* d, const double* a, const double* b, int depth, int columns) {
    constexpr int VECTORS = TOGETHER / WIDTH;
    for (int column = 0; column < columns; column += TOGETHER)
        for (int row = 0; row < ROWS; row++) {
            auto* sums = reinterpret_cast<Doubles*>(d + row * columns + column);
            Doubles sum[VECTORS];
            for (int i = 0; i < VECTORS; i++) sum[i] = sums[i];
            for (int k = 0; k < depth; k++) {
                const auto* factors = reinterpret_cast<const Doubles*>(b + k * columns + column);
                for (int i = 0; i < VECTORS; i++) sum[i] += a[k * ROWS + row] * factors[i];
            }
            for (int i = 0; i < VECTORS; i++) sums[i] = sum[i];
        }
}

}  // namespace emu
