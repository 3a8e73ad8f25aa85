# SPDX-License-Identifier: MIT
"""Every function as the plain loops of its definition, compiled, on one thread."""

import numpy as np

from convstudy.conv import cpu
from convstudy.loops import compiled
from convstudy.nn.ops import Ops, pooled_shape
from convstudy.problem import ConvProblem


class PlainOps(Ops):
    """The CPU as the paper timed it."""

    name = "cpu-plain"

    def conv2d(self, x, w, padding=(0, 0), stride=(1, 1), bias=None):
        problem = ConvProblem.of(x, w, stride, padding)
        y = np.empty(problem.y_shape, np.float32)
        cpu.plain(problem, x, w, bias, y)
        return y

    def batch_norm(self, x, weight, bias, mean, var, eps=1e-5):
        _batch_norm(x, weight, bias, mean, var, np.float32(eps))
        return x

    def relu(self, x):
        _relu(x.reshape(-1))
        return x

    def max_pool2d(self, x, window=2, stride=2, padding=0):
        y = np.empty(pooled_shape(x.shape, window, stride, padding), np.float32)
        _max_pool2d(x, y, window, stride, padding)
        return y

    def average_pool2d(self, x, size=1):
        y = np.empty((*x.shape[:2], size, size), np.float32)
        _average_pool2d(x, y)
        return y

    def add(self, x, y):
        _add(x.reshape(-1), y.reshape(-1))
        return x

    def linear(self, x, w, bias):
        y = np.empty((len(x), len(w)), np.float32)
        _linear(x.reshape(len(x), -1), w, bias, y)
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
        return self.conv2d(x, w, bias=bias)


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
    for i in range(x.size):
        if x[i] < 0:
            x[i] = 0


@compiled
def _max_pool2d(x, y, window, stride, padding):
    height, width = x.shape[2:]
    for n in range(y.shape[0]):
        for c in range(y.shape[1]):
            for p in range(y.shape[2]):
                for q in range(y.shape[3]):
                    largest = np.float32(-np.inf)
                    for r in range(window):
                        for s in range(window):
                            i = p * stride - padding + r
                            j = q * stride - padding + s
                            if 0 <= i < height and 0 <= j < width:
                                largest = max(largest, x[n, c, i, j])
                    y[n, c, p, q] = largest


@compiled
def _average_pool2d(x, y):
    height, width = x.shape[2:]
    rows, columns = y.shape[2:]
    for n in range(y.shape[0]):
        for c in range(y.shape[1]):
            for p in range(rows):
                top, bottom = p * height // rows, -(-(p + 1) * height // rows)
                for q in range(columns):
                    left, right = q * width // columns, -(-(q + 1) * width // columns)
                    total = np.float32(0)
                    for i in range(top, bottom):
                        for j in range(left, right):
                            total += x[n, c, i, j]
                    y[n, c, p, q] = total / np.float32((bottom - top) * (right - left))


@compiled
def _add(x, y):
    for i in range(x.size):
        x[i] += y[i]


@compiled
def _linear(x, w, bias, y):
    for n in range(y.shape[0]):
        for k in range(y.shape[1]):
            total = bias[k]
            for f in range(x.shape[1]):
                total += x[n, f] * w[k, f]
            y[n, k] = total


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
