// SPDX-License-Identifier: MIT
// Batch norm of NHWC arrays, forward and backward, once the statistics are known; and what is done
// in the same pass, which needs the same numbers: ReLU, a residual, 2 x 2 pooling.
//
// A cell is one pixel; if POOL, it is the 2 x 2 pixels of a window, read and written by the one
// thread that needs them all. An odd image's last cells are cut: they are in no window.
#ifndef RELU
#define RELU 1
#endif
#ifndef POOL
#define POOL 0
#endif
// Whether a residual is added before ReLU.
#ifndef RESIDUAL
#define RESIDUAL 0
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

struct Forward {
    const Element *x, *residual;
    Element *y, *pooled;
    int H, W, pitch_x, pitch_residual, pitch_y, pitch_pooled;

    // Does EACH cells from `first` on, which is there, of those before `end`: y may be x, so that a
    // thread must read no other's.
    __device__ __forceinline__ void run(int first, int end, int c, const float (&a)[VECTOR],
                                        const float (&b)[VECTOR]) const
    {
        Packed in[EACH][TAPS], added[EACH][TAPS];
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            const Cell cell = cell_at(first + i * ROWS, end, first, H, W);
#pragma unroll
            for (int t = 0; t < TAPS; ++t) {
                in[i][t] = load(x + offset(cell.pixel[t], pitch_x, c));
                if (RESIDUAL)
                    added[i][t] = load(residual + offset(cell.pixel[t], pitch_residual, c));
            }
        }
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            const Cell cell = cell_at(first + i * ROWS, end, first, H, W);
            float largest[VECTOR];
#pragma unroll
            for (int t = 0; t < TAPS; ++t) {
                float out[VECTOR];
#pragma unroll
                for (int v = 0; v < VECTOR; ++v) {
                    float value = fmaf(a[v], at(in[i][t], v), b[v]);
                    if (RESIDUAL) value += at(added[i][t], v);
                    out[v] = activated(value);
                    largest[v] = t == 0 ? out[v] : larger(largest[v], out[v]);
                }
                if (y && cell.inside[t]) store(y + offset(cell.pixel[t], pitch_y, c), pack(out));
            }
            if (POOL && cell.whole)
                store(pooled + offset(cell.pooled, pitch_pooled, c), pack(largest));
        }
    }
};

// What the gradient of a cell is made of, as read.
struct Loaded {
    Packed dz[TAPS], x[TAPS], dpooled;

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
#if POOL
#pragma unroll
        for (int t = 0; t < TAPS; t += 2) round_both(stored[t], stored[t + 1]);
        largest = fmaxf(fmaxf(stored[0], stored[1]), fmaxf(stored[2], stored[3]));
#endif
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

struct Backward {
    const Element *dz, *dpooled, *x;
    int H, W, pitch_dz, pitch_dpooled, pitch_x;

    __device__ __forceinline__ void fetch(Loaded& loaded, const Cell& cell, int c) const
    {
#pragma unroll
        for (int t = 0; t < TAPS; ++t) {
            loaded.x[t] = load(x + offset(cell.pixel[t], pitch_x, c));
            if (DIRECT) loaded.dz[t] = load(dz + offset(cell.pixel[t], pitch_dz, c));
        }
        if (POOL && cell.whole)
            loaded.dpooled = load(dpooled + offset(cell.pooled, pitch_dpooled, c));
    }

    // The sums of the gradient g of a x + b and of g (x - mean), over cells begin to end. Thread
    // t < CHUNK gets those of the block's channel t.
    __device__ __forceinline__ Sums<2> sums(const Place& place, int C, int begin, int end,
                                            const float* factors, const float* statistics) const
    {
        const int from = readable(place, C);
        float a[VECTOR], b[VECTOR], mean[VECTOR];
        read(a, factors + from);
        read(b, factors + C + from);
        read(mean, statistics + from);
        Sums<2> mine[VECTOR] = {};
        for (int first = begin; first < end; first += ROWS * EACH) {
            Loaded loaded[EACH];
#pragma unroll
            for (int i = 0; i < EACH; ++i)
                fetch(loaded[i], cell_at(first + place.row + i * ROWS, end, begin, H, W), from);
            loads_end();
#pragma unroll
            for (int i = 0; i < EACH; ++i) {
                const Cell cell = cell_at(first + place.row + i * ROWS, end, begin, H, W);
#pragma unroll
                for (int v = 0; v < VECTOR; ++v) {
                    float g[TAPS], value[TAPS];
                    loaded[i].step_back(g, value, cell, v, a[v], b[v]);
#pragma unroll
                    for (int t = 0; t < TAPS; ++t) {
                        mine[v].values[0] += g[t];
                        mine[v].values[1] = fmaf(g[t], value[t] - mean[v], mine[v].values[1]);
                    }
                }
            }
        }
        return merge_rows(mine);
    }

    // Does EACH cells as Forward::run: dx = a g - (p x - q) may be dz or x.
    __device__ __forceinline__ void run(int first, int end, int c, const float (&a)[VECTOR],
                                        const float (&b)[VECTOR], const float (&p)[VECTOR],
                                        const float (&q)[VECTOR], Element* dx, int pitch_dx) const
    {
        Loaded loaded[EACH];
#pragma unroll
        for (int i = 0; i < EACH; ++i)
            fetch(loaded[i], cell_at(first + i * ROWS, end, first, H, W), c);
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            const Cell cell = cell_at(first + i * ROWS, end, first, H, W);
            float out[TAPS][VECTOR];
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) {
                float g[TAPS], value[TAPS];
                loaded[i].step_back(g, value, cell, v, a[v], b[v]);
#pragma unroll
                for (int t = 0; t < TAPS; ++t)
                    out[t][v] = fmaf(a[v], g[t], fmaf(-p[v], value[t], q[v]));
            }
#pragma unroll
            for (int t = 0; t < TAPS; ++t)
                if (cell.inside[t]) store(dx + offset(cell.pixel[t], pitch_dx, c), pack(out[t]));
        }
    }
};

// What follows from a channel's sums: the gradients of its parameters, and what the statistics take
// back of the gradient of x, which is p x - q; nothing where they were given.
struct Taken {
    float dweight, dbias, p, q;
};
__device__ __forceinline__ Taken taken_back(const Sums<2>& sums, float mean, float scale, float a,
                                            int pixels, int training)
{
    const float share = training ? a / float(pixels) : 0.0f;
    const float p = share * scale * scale * sums.values[1];
    return {scale * sums.values[1], sums.values[0], p, fmaf(p, mean, -share * sums.values[0])};
}
