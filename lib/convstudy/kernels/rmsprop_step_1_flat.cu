// SPDX-License-Identifier: MIT
// A step of RMSprop, of all parameters at once.
//
// Idea      s = alpha s + (1 - alpha) g^2, v = momentum v + g / (sqrt(s) + eps), p -= rate v,
//           with the decay added to g.
//           The gradient is clipped on the way, and the copy that the convolutions read is written
//           with the parameter.
// Threads   Thread t of block b does vector b THREADS + t.
// Shared    None.
// Moves     Reads parameters, gradients, squares and momenta, writes the others (and copies).
// Source    PyTorch's documentation of RMSprop.
#include "overlap.cuh"
#include "ptx.cuh"
#include "vectors.cuh"
#include "flat.cuh"
#include "control.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
rmsprop_step_1_flat(float* __restrict__ parameters, const float* __restrict__ gradients,
                    float* __restrict__ squares, float* __restrict__ momenta,
                    bf16* __restrict__ copy, const float* __restrict__ control, long long size,
                    float alpha, float fresh, float eps, float momentum, float decay)
{
    wait_for_others();
    let_others_begin();
    const long long at = my_parameter();
    if (at >= size || control[FINITE] == 0.0f) return;
    const float rate = control[RATE], factor = control[FACTOR];
    float p[VECTOR], g[VECTOR], s[VECTOR], v[VECTOR];
    read(p, parameters + at);
    read(g, gradients + at);
    read(s, squares + at);
    if (MOMENTUM) read(v, momenta + at);
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) {
        const float gradient = fmaf(decay, p[i], factor * g[i]);
        s[i] = fmaf(alpha, s[i], fresh * gradient * gradient);
        const float step = gradient / (sqrtf(s[i]) + eps);
        v[i] = MOMENTUM ? fmaf(momentum, v[i], step) : step;
        p[i] = fmaf(-rate, v[i], p[i]);
    }
    write(squares + at, s);
    if (MOMENTUM) write(momenta + at, v);
    write(parameters + at, p);
    write_copy(copy + at, p);
}
