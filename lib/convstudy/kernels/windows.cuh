// SPDX-License-Identifier: MIT
// What batch norm's kernels agree on: a thread's cell of pixels, and what becomes of them.
//
// A cell is one pixel; if POOL, it is the 2 x 2 pixels of a window, read and written by the one
// thread that needs them all. An odd image's last cells are cut: they are in no window.
#ifndef RELU
#define RELU 1
#endif
#ifndef POOL
#define POOL 0
#endif
// Whether, beside the pooled pixels, the others were used too and have a gradient.
#ifndef DIRECT
#define DIRECT 1
#endif
// Cells of one thread, ROWS apart, whose loads are under way together: 64 bytes of each array.
#ifndef EACH
#define EACH (POOL ? 1 : 4)
#endif
constexpr int TAPS = POOL ? 4 : 1;
// Blocks of a multiprocessor, at least. To ask for few leaves a thread so many registers that its
// loads need not wait for each other. With POOL, gradients come in blocks of 128 threads: they
// need more registers than the 128 that two blocks of 256 threads would leave.
constexpr int BLOCKS = 2;

struct Cell {
    // What is not inside has the number of a pixel that can be read in its place: loads then need
    // no condition, which would have the compiler wait for one before it asks for the next.
    int pixel[TAPS];
    bool inside[TAPS];
    // Whether it is a window, and its number among the pooled pixels.
    bool whole;
    int pooled;
};

__device__ __forceinline__ int cells_in(int N, int H, int W)
{
    return POOL ? N * ((H + 1) / 2) * ((W + 1) / 2) : N * H * W;
}

// Cell i of those before `end`. Beyond them no pixel is inside, and those of cell `other` are read.
__device__ __forceinline__ Cell cell_at(int i, int end, int other, int H, int W)
{
    const bool any = i < end;
    i = any ? i : other;
#if POOL
    const int across = (W + 1) / 2, down = (H + 1) / 2;
    const int q = i % across, row = i / across, p = row % down, n = row / down;
    const bool right = 2 * q + 1 < W, below = 2 * p + 1 < H;
    const int corner = (n * H + 2 * p) * W + 2 * q, under = corner + (below ? W : 0);
    return {{corner, corner + right, under, under + right},
            {any, any && right, any && below, any && right && below},
            any && right && below,
            (n * (H / 2) + p) * (W / 2) + q};
#else
    return {{i}, {any}, false, 0};
#endif
}

__device__ __forceinline__ float larger(float a, float b) { return a >= b || a != a ? a : b; }
// NaN stays NaN, which fmaxf would turn into 0.
__device__ __forceinline__ float activated(float x) { return RELU && x < 0.0f ? 0.0f : x; }

// What the gradient of a cell is made of, as read.
struct Loaded {
    Packed dz[TAPS], x[TAPS], dpooled;

    __device__ __forceinline__ void fetch(const Element* from_dz, const Element* from_dpooled,
                                          const Element* from_x, const Cell& cell, int c,
                                          int pitch_dz, int pitch_dpooled, int pitch_x)
    {
#pragma unroll
        for (int t = 0; t < TAPS; ++t) {
            x[t] = load(from_x + offset(cell.pixel[t], pitch_x, c));
            if (DIRECT) dz[t] = load(from_dz + offset(cell.pixel[t], pitch_dz, c));
        }
        if (POOL && cell.whole)
            dpooled = load(from_dpooled + offset(cell.pooled, pitch_dpooled, c));
    }

    // Gives x of one channel, and the gradient of a x + b: that of the output, with that of the
    // pooled pixel where the window's first largest output is, and 0 where ReLU gave 0. Outputs
    // are compared as they were stored, since rounding makes ties.
    __device__ __forceinline__ void step_back(float (&gradient)[TAPS], float (&value)[TAPS],
                                              const Cell& cell, int v, float a, float b) const
    {
        float y[TAPS], stored[TAPS], largest = 0.0f;
#pragma unroll
        for (int t = 0; t < TAPS; ++t) {
            value[t] = at(x[t], v);
            y[t] = fmaf(a, value[t], b);
            stored[t] = RELU ? fmaxf(y[t], 0.0f) : y[t];
        }
        if (POOL) {
#pragma unroll
            for (int t = 0; t < TAPS; t += 2) round_both(stored[t], stored[t + 1]);
            largest = fmaxf(fmaxf(stored[0], stored[1]), fmaxf(stored[2], stored[3]));
        }
        bool sought = POOL && cell.whole;
#pragma unroll
        for (int t = 0; t < TAPS; ++t) {
            gradient[t] = DIRECT ? at(dz[t], v) : 0.0f;
            const bool found = sought && stored[t] == largest;
            if (found) gradient[t] += at(dpooled, v);
            sought = sought && !found;
            if (!cell.inside[t] || (RELU && !(y[t] > 0.0f))) gradient[t] = 0.0f;
        }
    }
};
