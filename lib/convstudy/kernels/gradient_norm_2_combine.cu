// SPDX-License-Identifier: MIT
// The norm of all gradients, second half; and the beginning of a step.
//
// Idea      One block adds up the parts in a fixed order. From the norm follow the factor that
//           clips it to `most`, and whether all gradients are finite: else the step is skipped, and
//           counted as such. Without parts nothing is clipped and no gradient looked at. The
//           number of steps lives here, so that a replayed graph knows it.
// Threads   Thread t adds parts t, t + THREADS, ...; thread 0 does the rest.
// Shared    4 bytes a warp, static: 32 with the defaults.
// Moves     Reads the parts.
// Source    PyTorch's clip_grad_norm_, for the formula.
#define VECTOR 1
#define LANES 1
#include "overlap.cuh"
#include "ptx.cuh"
#include "vectors.cuh"
#include "pixels.cuh"
#include "rows.cuh"
#include "control.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
gradient_norm_2_combine(const float* __restrict__ parts, float* control, int* steps, int count,
                        float most, float log_beta1, float log_beta2)
{
    wait_for_others();
    let_others_begin();
    Sums<1> mine[1] = {};
    for (int part = threadIdx.x; part < count; part += THREADS) mine[0].values[0] += parts[part];
    const Sums<1> all = merge_rows(mine);
    if (threadIdx.x > 0) return;
    const float norm = sqrtf(all.values[0]);
    const bool finite = norm - norm == 0.0f;
    const int taken = steps[TAKEN] + (finite ? 1 : 0);
    control[NORM] = norm;
    control[FACTOR] = count > 0 ? fminf(1.0f, most / (norm + 1e-6f)) : 1.0f;
    control[FINITE] = finite ? 1.0f : 0.0f;
    // 1 - beta^steps: of steps log(beta), which is near 0 at first, no digits are lost.
    control[CORRECTION1] = -expm1f(float(taken) * log_beta1);
    control[CORRECTION2] = -expm1f(float(taken) * log_beta2);
    steps[TAKEN] = taken;
    if (!finite) ++steps[SKIPPED];
}
