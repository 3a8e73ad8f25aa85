// SPDX-License-Identifier: MIT
// Tensor cores: a product of small matrices whose elements lie all over a warp's registers.
// Compiled with the runtime and not with the kernel: it reads other lanes' registers, which no
// code of a kernel may.
#include "numbers.h"
#include "runtime.h"

namespace emu {

namespace {

struct Operands {
    float* d;
    const unsigned *a, *b;
};

template <class Word>
void multiply(void* const* lanes) {
    constexpr int NUMBERS = Word::NUMBERS, DEPTH = 8 * NUMBERS, COLUMNS = 8;
    double a[DEPTH * ROWS], b[DEPTH * COLUMNS], d[ROWS * COLUMNS];
    const auto at = [&](int lane, int i) -> double& {
        return d[(lane / 4 + i / 2 * 8) * COLUMNS + 2 * (lane % 4) + i % 2];
    };
    for (int lane = 0; lane < int(WARP); lane++) {
        if (!lanes[lane]) return;  // undefined where a lane has exited: nothing is written
        const Operands& own = *static_cast<const Operands*>(lanes[lane]);
        const int g = lane / 4, t = lane % 4;
        for (int k = 0; k < NUMBERS; k++) {
            const auto depth = [&](int half) { return (t + 4 * half) * NUMBERS + k; };
            for (int i = 0; i < 4; i++)
                a[depth(i / 2) * ROWS + g + i % 2 * 8] = Word::number(own.a[i], k);
            for (int i = 0; i < 2; i++) b[depth(i) * COLUMNS + g] = Word::number(own.b[i], k);
        }
        for (int i = 0; i < 4; i++) at(lane, i) = own.d[i];
    }
    multiply_add<COLUMNS>(d, a, b, DEPTH, COLUMNS);
    for (int lane = 0; lane < int(WARP); lane++)
        for (int i = 0; i < 4; i++)
            static_cast<const Operands*>(lanes[lane])->d[i] = towards_zero(at(lane, i));
}

struct Rows {
    unsigned* words;
    const unsigned* row;
    bool transposed;
};

void deal(void* const* lanes) {
    const auto of = [&](int lane) { return static_cast<const Rows*>(lanes[lane]); };
    for (int lane = 0; lane < int(WARP); lane++)
        if (!lanes[lane]) return;  // undefined where a lane has exited
    for (int lane = 0; lane < int(WARP); lane++)
        for (int i = 0; i < 4; i++) {
            const int g = lane / 4, t = lane % 4;
            const auto half = [&](int row) {  // number g of a row of matrix i
                return of(8 * i + row)->row[g / 2] >> 16 * (g % 2) & 0xffffu;
            };
            of(lane)->words[i] = of(lane)->transposed ? half(2 * t) | half(2 * t + 1) << 16
                                                      : of(8 * i + g)->row[t];
        }
}

}  // namespace

void mma_m16n8k8_tf32(float* d, const unsigned* a, const unsigned* b, int line) {
    Operands operands{d, a, b};
    warp_together(&operands, multiply<TF32>, line);
}
void mma_m16n8k16_bf16(float* d, const unsigned* a, const unsigned* b, int line) {
    Operands operands{d, a, b};
    warp_together(&operands, multiply<BF16>, line);
}
void deal_matrices(unsigned* words, const unsigned* row, bool transposed, int line) {
    Rows rows{words, row, transposed};
    warp_together(&rows, deal, line);
}

}  // namespace emu
