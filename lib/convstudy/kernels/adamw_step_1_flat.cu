// SPDX-License-Identifier: MIT
// A step of AdamW, of all parameters at once.
//
// Idea      p -= rate decay p, m += (1 - beta1) (g - m), s = beta2 s + (1 - beta2) g^2,
//           p -= rate m' / (sqrt(s') + eps), where m' and s' make good that both began at 0.
//           The gradient is clipped on the way, and the copy that the convolutions read is written
//           with the parameter.
// Threads   Thread t of block b does vector b THREADS + t.
// Shared    None.
// Moves     Reads parameters, gradients, means and squares, writes all but gradients (and copies).
// Source    I. Loshchilov and F. Hutter, "Decoupled weight decay regularization", ICLR 2019.
#include "overlap.cuh"
#include "ptx.cuh"
#include "vectors.cuh"
#include "flat.cuh"
#include "control.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
adamw_step_1_flat(float* __restrict__ parameters, const float* __restrict__ gradients,
                  float* __restrict__ means, float* __restrict__ squares, bf16* __restrict__ copy,
                  const float* __restrict__ control, long long size, float fresh1, float beta2,
                  float fresh2, float eps, float decay)
{
    wait_for_others();
    let_others_begin();
    const long long at = my_parameter();
    if (at >= size || control[FINITE] == 0.0f) return;
    const float rate = control[RATE], factor = control[FACTOR];
    const float step = rate / control[CORRECTION1], larger = 1.0f / sqrtf(control[CORRECTION2]);
    float p[VECTOR], g[VECTOR], m[VECTOR], s[VECTOR];
    read(p, parameters + at);
    read(g, gradients + at);
    read(m, means + at);
    read(s, squares + at);
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) {
        const float gradient = factor * g[i];
        m[i] = fmaf(fresh1, gradient - m[i], m[i]);
        s[i] = fmaf(beta2, s[i], fresh2 * gradient * gradient);
        const float root = fmaf(sqrtf(s[i]), larger, eps);
        p[i] = fmaf(-step, m[i] / root, fmaf(-rate * decay, p[i], p[i]));
    }
    write(means + at, m);
    write(squares + at, s);
    write(parameters + at, p);
    write_copy(copy + at, p);
}
