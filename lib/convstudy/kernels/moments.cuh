// SPDX-License-Identifier: MIT
// Mean and variance of the channels of NHWC arrays: of any pixels, and of several such together.

// How many, their mean, and the sum of their squared distances from it.
struct Moments {
    static constexpr int SIZE = 3;
    float values[3];

    // T. F. Chan, G. H. Golub and R. J. LeVeque, "Updating formulae and a pairwise algorithm for
    // computing sample variances", 1979: no large squares whose difference would be lost.
    __device__ __forceinline__ void merge(const Moments& other)
    {
        const float count = values[0] + other.values[0];
        // Of nothing and another, the other is taken as it is.
        const float share = values[0] > 0.0f ? __fdividef(other.values[0], count) : 1.0f;
        const float between = other.values[1] - values[1];
        values[2] += fmaf(between * between, values[0] * share, other.values[2]);
        values[1] = fmaf(between, share, values[1]);
        values[0] = count;
    }
};

// The moments of pixels begin to end, of the channels of a block, counted from the first of these
// pixels: a large mean does not swallow the differences. Thread t < CHUNK gets those of channel t.
__device__ __forceinline__ Moments moments_of(const Element* x, const Place& place, int C,
                                              int pitch, int begin, int end)
{
    // Pixels whose loads are under way together. What is beyond the end is read as the last one,
    // and not counted: a condition would have one load wait for another.
    constexpr int TOGETHER = 4;
    const int from = readable(place, C), first = begin + place.row;
    float zero[VECTOR], sum[VECTOR] = {}, square[VECTOR] = {};
    const Packed packed = load(x + offset(begin, pitch, from));
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) zero[v] = at(packed, v);
    for (int base = begin; base < end; base += ROWS * TOGETHER) {
        const int pixel = base + place.row;
        Packed in[TOGETHER];
#pragma unroll
        for (int i = 0; i < TOGETHER; ++i)
            in[i] = load(x + offset(min(pixel + i * ROWS, end - 1), pitch, from));
        loads_end();
#pragma unroll
        for (int i = 0; i < TOGETHER; ++i)
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) {
                const float distance = pixel + i * ROWS < end ? at(in[i], v) - zero[v] : 0.0f;
                sum[v] += distance;
                square[v] = fmaf(distance, distance, square[v]);
            }
    }

    Moments mine[VECTOR];
    const float count = first < end ? float((end - first + ROWS - 1) / ROWS) : 0.0f;
    const float share = 1.0f / fmaxf(count, 1.0f);
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) {
        const float mean = sum[v] * share;
        mine[v] = {count, mean, fmaxf(fmaf(-mean, sum[v], square[v]), 0.0f)};
    }
    Moments all = merge_rows(mine);
    const int c = place.chunk + threadIdx.x;
    if (threadIdx.x < CHUNK && c < C) all.values[1] += number(x[offset(begin, pitch, c)]);
    return all;
}

// What a layer learns of a channel's moments, and keeps.
struct Learnt {
    float *running_mean, *running_var;
    float *statistics, *factors;

    // Without moments, those are the statistics that were learnt before.
    __device__ __forceinline__ void keep(const Moments& moments, bool any, int c, int C, int pixels,
                                         float weight, float bias, float eps, float momentum) const
    {
        float mean = running_mean[c], var = running_var[c];
        if (any) {
            const float kept = 1.0f - momentum, old_mean = mean, old_var = var;
            mean = moments.values[1];
            var = moments.values[2] / float(pixels);
            running_mean[c] = fmaf(momentum, mean, kept * old_mean);
            running_var[c] = fmaf(momentum, moments.values[2] / float(pixels - 1), kept * old_var);
        }
        const float scale = 1.0f / sqrtf(var + eps), a = weight * scale;
        statistics[c] = mean;
        statistics[C + c] = scale;
        factors[c] = a;
        factors[C + c] = fmaf(-mean, a, bias);
    }
};
