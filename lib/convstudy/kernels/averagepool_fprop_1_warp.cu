// SPDX-License-Identifier: MIT
// Average pooling over windows that share out the image: a warp an output.
//
// Idea      The result has size x size pixels whatever the image has; at size 1 a window is a whole
//           plane. Then there are few outputs, each of many pixels that lie side by side: a thread
//           an output would read them all in turn, a line of memory for each. Windows are
//           floor(p H / size) to ceil((p + 1) H / size), which may overlap.
// Threads   A warp covers one output; its lanes take every 32nd pixel of the window, row after row.
// Shared    None: lanes add up by shuffling, in an order that is always the same.
// Source    M. Lin et al., "Network in network", ICLR 2014 (global); the windows are PyTorch's.
#ifndef THREADS
#define THREADS 256
#endif
constexpr int WARP = 32;

extern "C" __global__ void __launch_bounds__(THREADS)
averagepool_fprop_1_warp(const float* __restrict__ x, float* __restrict__ y, long long outputs,
                         int H, int W, int size)
{
    const long long output = blockIdx.x * (long long)(THREADS / WARP) + threadIdx.x / WARP;
    if (output >= outputs) return;
    const int lane = threadIdx.x % WARP, window = int(output % (size * size));
    const int p = window / size, q = window % size;
    const int top = p * H / size, bottom = ((p + 1) * H + size - 1) / size;
    const int left = q * W / size, right = ((q + 1) * W + size - 1) / size;
    const int width = right - left, pixels = (bottom - top) * width;
    const float* corner = x + output / (size * size) * ((size_t)H * W) + top * W + left;
    float sum = 0.0f;
    for (int i = lane; i < pixels; i += WARP) sum += corner[i / width * W + i % width];
    for (int apart = WARP / 2; apart > 0; apart /= 2)
        sum += __shfl_xor_sync(0xffffffffu, sum, apart);
    if (lane == 0) y[output] = sum / pixels;
}
