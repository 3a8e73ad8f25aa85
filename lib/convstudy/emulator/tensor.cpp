// SPDX-License-Identifier: MIT
// Tensor cores: a product of small matrices whose elements lie all over a warp's registers.
// Compiled with the runtime and not with the kernel: it reads other lanes' registers, which no
// code of a kernel may.
#include <cmath>
#include <cstring>

#include "runtime.h"

namespace emu {

namespace {

struct Operands {
    float* d;
    const unsigned *a, *b;
};

// The hardware does not look at the 13 bits that fp32 has beyond TF32.
float as_tf32(unsigned bits) {
    bits &= 0xffffe000u;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// What does not fit into fp32 is dropped, as by tensor cores; a double holds the sum until then.
float towards_zero(double x) {
    const float near = float(x);
    return std::fabs(double(near)) > std::fabs(x) ? std::nextafter(near, 0.0f) : near;
}

void multiply(void* const* lanes) {
    float a[16][8], b[8][8];
    const auto of = [&](int lane) { return *static_cast<const Operands*>(lanes[lane]); };
    for (int lane = 0; lane < int(WARP); lane++) {
        if (!lanes[lane]) return;  // undefined where a lane has exited: nothing is written
        const int g = lane / 4, t = lane % 4;
        for (int i = 0; i < 4; i++) a[g + i % 2 * 8][t + i / 2 * 4] = as_tf32(of(lane).a[i]);
        for (int i = 0; i < 2; i++) b[t + 4 * i][g] = as_tf32(of(lane).b[i]);
    }
    for (int lane = 0; lane < int(WARP); lane++)
        for (int i = 0; i < 4; i++) {
            float& d = of(lane).d[i];
            double sum = d;
            for (int k = 0; k < 8; k++)
                sum += double(a[lane / 4 + i / 2 * 8][k]) * b[k][2 * (lane % 4) + i % 2];
            d = towards_zero(sum);
        }
}

}  // namespace

void mma_m16n8k8_tf32(float* d, const unsigned* a, const unsigned* b, int line) {
    Operands operands{d, a, b};
    warp_together(&operands, multiply, line);
}

}  // namespace emu
