# SPDX-License-Identifier: MIT
"""Every function as a CPU does it well: matrix products through BLAS, the rest through NumPy."""

import functools

import numpy as np

from convstudy.conv import cpu
from convstudy.nn.ops import Ops, pooled_shape
from convstudy.nn.reference import averaging, interpolation
from convstudy.problem import ConvProblem


class BlasOps(Ops):
    """The CPU as it deserves to be compared with.

    Parameters
    ----------
    threads : int, optional
        Threads of BLAS; what it is set to, if not given. NumPy's own loops run on one.
    """

    name = "cpu-blas"

    def __init__(self, threads=None):
        if threads is not None and (type(threads) is not int or threads < 1):
            raise ValueError(f"BlasOps: threads must be an integer of at least 1, got {threads!r}")
        self._limit, self.threads = threads, threads or cpu.threads()

    def conv2d(self, x, w, padding=(0, 0), stride=(1, 1), bias=None):
        return self._convolve(x, w, bias, stride, padding)

    def batch_norm(self, x, weight, bias, mean, var, eps=1e-5):
        # One multiplication and one addition a pixel; what is left of the formula is per channel.
        scale = weight / np.sqrt(var + np.float32(eps))
        shift = bias - mean * scale
        x *= scale[:, None, None]
        x += shift[:, None, None]
        return x

    def relu(self, x):
        return np.maximum(x, 0, out=x)

    def max_pool2d(self, x, window=2, stride=2, padding=0):
        *_, p, q = pooled_shape(x.shape, window, stride, padding)
        if padding:
            around = [(0, 0), (0, 0), (padding, padding), (padding, padding)]
            x = np.pad(x, around, constant_values=-np.inf)
        # Rows first: they lie side by side, and leave fewer columns to pick from.
        rows = _largest([x[:, :, _places(r, p, stride)] for r in range(window)])
        return _largest([rows[..., _places(s, q, stride)] for s in range(window)])

    def average_pool2d(self, x, size=1):
        n, c, h, w = x.shape
        with cpu.limit_threads(self._limit):
            y = cpu.multiply(x.reshape(n * c, h * w), _averaging(h, w, size))
        return y.reshape(n, c, size, size)

    def add(self, x, y):
        return np.add(x, y, out=x)

    def linear(self, x, w, bias):
        with cpu.limit_threads(self._limit):
            y = np.ascontiguousarray(cpu.multiply(w, x.reshape(len(x), -1).T).T)
        y += bias
        return y

    def conv_transpose2d(self, x, w, bias):
        n, c, height, width = x.shape
        k = w.shape[1]
        y = np.empty((n, k, 2 * height, 2 * width), np.float32)
        with cpu.limit_threads(self._limit):
            taps = cpu.multiply(w.reshape(c, 4 * k).T, x.reshape(n, c, height * width))
        taps = taps.reshape(n, k, 2, 2, height, width)
        for r in range(2):
            for s in range(2):
                np.add(taps[:, :, r, s], bias[:, None, None], out=y[:, :, r::2, s::2])
        return y

    def upsample_bilinear(self, x):
        n, c, h, w = x.shape
        down, across = _interpolation(h), _interpolation(w)
        with cpu.limit_threads(self._limit):
            wide = cpu.multiply(x.reshape(n * c * h, w), across.T)
            y = cpu.multiply(down, wide.reshape(n * c, h, 2 * w))
        return y.reshape(n, c, 2 * h, 2 * w)

    def pad_concat(self, skip, x):
        n, c, h, w = skip.shape
        y = np.zeros((n, c + x.shape[1], h, w), np.float32)
        top, left = (h - x.shape[2]) // 2, (w - x.shape[3]) // 2
        y[:, :c] = skip
        y[:, c:, top : top + x.shape[2], left : left + x.shape[3]] = x
        return y

    def head(self, x, w, bias):
        return self._convolve(x, w, bias)

    def _convolve(self, x, w, bias, stride=(1, 1), padding=(0, 0)):
        problem = ConvProblem.of(x, w, stride, padding)
        y = np.empty(problem.y_shape, np.float32)
        with cpu.limit_threads(self._limit):
            cpu.blas(problem, x, w, bias, y)
        return y


def _places(first, count, stride):
    return slice(first, first + (count - 1) * stride + 1, stride)


def _largest(arrays):
    """Return the largest of arrays of one shape, element by element, as an array of its own."""
    first, *others = arrays
    largest = np.maximum(first, others[0]) if others else first.copy()
    for other in others[1:]:
        np.maximum(largest, other, out=largest)
    return largest


@functools.cache
def _averaging(h, w, size):
    """Return the (h w, size^2) matrix that averages an image's pixels over its windows."""
    down, across = (averaging(pixels, size, np.float32) for pixels in (h, w))
    return np.ascontiguousarray(np.kron(down, across).T)


@functools.cache
def _interpolation(size):
    return interpolation(size, np.float32)
