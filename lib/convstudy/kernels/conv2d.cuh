// SPDX-License-Identifier: MIT
// What every two-dimensional convolution here agrees on.
//
// Layout: x (N, C, H, W), w (K, C, R, S), bias (K) or null, y (N, K, P, Q), all contiguous.
// Order of summation: c, then r, then s, each product added by one fused multiply-add, the bias
// last. Every fp32 rung keeps this order, so that all of them give the same bits.
//
// The filter's size and the stride are constants of the compilation, in every rung alike: what a
// rung gains over the one before is its own idea, not the compiler's.
#ifndef FILTER_R
#define FILTER_R 3
#endif
#ifndef FILTER_S
#define FILTER_S 3
#endif
#ifndef STRIDE_H
#define STRIDE_H 1
#endif
#ifndef STRIDE_W
#define STRIDE_W 1
#endif

constexpr int R = FILTER_R;
constexpr int S = FILTER_S;

// Sizes of one problem that are known at the launch only.
#define CONV2D_SIZES int N, int C, int H, int W, int K, int P, int Q, int pad_h, int pad_w

__device__ __forceinline__ int divide_up(int a, int b) { return (a + b - 1) / b; }
