# SPDX-License-Identifier: MIT
"""Every function as the plain loops of its definition, compiled, on one thread."""

import numpy as np

from convstudy.conv import cpu
from convstudy.loops import compiled
from convstudy.nn.ops import Ops
from convstudy.problem import ConvProblem


class PlainOps(Ops):
    """The CPU as the paper timed it."""

    name = "cpu-plain"

    def conv2d(self, x, w, padding):
        problem = ConvProblem.of(x, w, padding=padding)
        y = np.empty(problem.y_shape, np.float32)
        cpu.plain(problem, x, w, None, y)
        return y

    def batch_norm(self, x, weight, bias, mean, var, eps=1e-5):
        _batch_norm(x, weight, bias, mean, var, np.float32(eps))
        return x

    def relu(self, x):
        _relu(x)
        return x

    def max_pool2d(self, x):
        n, c, h, w = x.shape
        y = np.empty((n, c, h // 2, w // 2), np.float32)
        _max_pool2d(x, y)
        return y

    def conv_transpose2d(self, x, w, bias):
        n, _, height, width = x.shape
        y = np.empty((n, w.shape[1], 2 * height, 2 * width), np.float32)
        _conv_transpose2d(x, w, bias, y)
        return y

    def upsample_bilinear(self, x):
        n, c, h, w = x.shape
        y = np.empty((n, c, 2 * h, 2 * w), np.float32)
        _upsample_bilinear(x, y)
        return y

    def pad_concat(self, skip, x):
        n, c, h, w = skip.shape
        y = np.empty((n, c + x.shape[1], h, w), np.float32)
        _pad_concat(skip, x, y)
        return y

    def head(self, x, w, bias):
        problem = ConvProblem.of(x, w)
        y = np.empty(problem.y_shape, np.float32)
        cpu.plain(problem, x, w, bias, y)
        return y


@compiled
def _batch_norm(x, weight, bias, mean, var, eps):
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            deviation = np.sqrt(var[c] + eps)
            for h in range(x.shape[2]):
                for w in range(x.shape[3]):
                    x[n, c, h, w] = (x[n, c, h, w] - mean[c]) / deviation * weight[c] + bias[c]


@compiled
def _relu(x):
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            for h in range(x.shape[2]):
                for w in range(x.shape[3]):
                    if x[n, c, h, w] < 0:
                        x[n, c, h, w] = 0


@compiled
def _max_pool2d(x, y):
    for n in range(y.shape[0]):
        for c in range(y.shape[1]):
            for p in range(y.shape[2]):
                for q in range(y.shape[3]):
                    largest = x[n, c, 2 * p, 2 * q]
                    for r in range(2):
                        for s in range(2):
                            largest = max(largest, x[n, c, 2 * p + r, 2 * q + s])
                    y[n, c, p, q] = largest


@compiled
def _conv_transpose2d(x, w, bias, y):
    for n in range(y.shape[0]):
        for k in range(y.shape[1]):
            for p in range(y.shape[2]):
                for q in range(y.shape[3]):
                    total = bias[k]
                    for c in range(x.shape[1]):
                        total += x[n, c, p // 2, q // 2] * w[c, k, p % 2, q % 2]
                    y[n, k, p, q] = total


@compiled
def _upsample_bilinear(x, y):
    height, width = x.shape[2:]
    for n in range(y.shape[0]):
        for c in range(y.shape[1]):
            for p in range(y.shape[2]):
                # Whole numbers until the division: position p (height - 1) / (2 height - 1).
                i, rest = divmod(p * (height - 1), 2 * height - 1)
                below = min(i + 1, height - 1)
                down = np.float32(rest / (2 * height - 1))
                for q in range(y.shape[3]):
                    j, rest = divmod(q * (width - 1), 2 * width - 1)
                    right = min(j + 1, width - 1)
                    across = np.float32(rest / (2 * width - 1))
                    upper = x[n, c, i, j] + across * (x[n, c, i, right] - x[n, c, i, j])
                    lower = x[n, c, below, j] + across * (x[n, c, below, right] - x[n, c, below, j])
                    y[n, c, p, q] = upper + down * (lower - upper)


@compiled
def _pad_concat(skip, x, y):
    channels = skip.shape[1]
    height, width = x.shape[2:]
    top = (skip.shape[2] - height) // 2
    left = (skip.shape[3] - width) // 2
    for n in range(y.shape[0]):
        for c in range(y.shape[1]):
            for h in range(y.shape[2]):
                for w in range(y.shape[3]):
                    i = h - top
                    j = w - left
                    if c < channels:
                        y[n, c, h, w] = skip[n, c, h, w]
                    elif 0 <= i < height and 0 <= j < width:
                        y[n, c, h, w] = x[n, c - channels, i, j]
                    else:
                        y[n, c, h, w] = 0
