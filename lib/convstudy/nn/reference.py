# SPDX-License-Identifier: MIT
"""The NumPy twin of every function: short, vectorised, in the input's own type."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from convstudy.conv import reference
from convstudy.nn.ops import Ops, pooled_shape


class ReferenceOps(Ops):
    """What every other execution is compared with.

    Parameters
    ----------
    dtype : dtype
        What `to_device` converts to, so that a float32 network is computed in float64.
    """

    name = "reference"

    def __init__(self, dtype=np.float64):
        self._dtype = dtype

    def to_device(self, array):
        return array.astype(self._dtype)

    def conv2d(self, x, w, padding=(0, 0), stride=(1, 1), bias=None):
        return reference.conv2d(x, w, bias, stride, padding)

    def conv2d_dgrad(self, dy, w, size, padding=(0, 0), stride=(1, 1)):
        """Return the gradient of a convolution's input, of height and width `size`."""
        return reference.conv2d_dgrad(dy, w, size, stride, padding)

    def conv2d_wgrad(self, x, dy, size, padding=(0, 0), stride=(1, 1)):
        """Return the gradient of a convolution's filters, of height and width `size`."""
        return reference.conv2d_wgrad(x, dy, size, stride, padding)

    def batch_norm(self, x, weight, bias, mean, var, eps=1e-5):
        mean, deviation, weight, bias = (
            values[:, None, None] for values in (mean, np.sqrt(var + eps), weight, bias)
        )
        return (x - mean) / deviation * weight + bias

    def relu(self, x):
        return np.maximum(x, 0)

    def max_pool2d(self, x, window=2, stride=2, padding=0):
        *_, p, q = pooled_shape(x.shape, window, stride, padding)
        around = [(0, 0), (0, 0), (padding, padding), (padding, padding)]
        windows = sliding_window_view(
            np.pad(x, around, constant_values=-np.inf), (window, window), axis=(2, 3)
        )
        return windows[:, :, ::stride, ::stride].max(axis=(4, 5))[:, :, :p, :q]

    def average_pool2d(self, x, size=1):
        down, across = (averaging(pixels, size, x.dtype) for pixels in x.shape[2:])
        return down @ x @ across.T

    def add(self, x, y):
        return x + y

    def linear(self, x, w, bias):
        return x.reshape(len(x), -1) @ w.T + bias

    def conv_transpose2d(self, x, w, bias):
        n, _, height, width = x.shape
        y = np.einsum("nchw,ckrs->nkhrws", x, w, optimize=True)
        return y.reshape(n, w.shape[1], 2 * height, 2 * width) + bias[:, None, None]

    def upsample_bilinear(self, x):
        down, across = (interpolation(size, x.dtype) for size in x.shape[2:])
        return down @ x @ across.T

    def pad_concat(self, skip, x):
        lacking = [large - small for large, small in zip(skip.shape[2:], x.shape[2:], strict=True)]
        margins = [(lack // 2, lack - lack // 2) for lack in lacking]
        return np.concatenate([skip, np.pad(x, [(0, 0), (0, 0), *margins])], axis=1)

    def head(self, x, w, bias):
        return np.einsum("nchw,kc->nkhw", x, w[:, :, 0, 0], optimize=True) + bias[:, None, None]


def interpolation(size, dtype):
    """Return the (2 size, size) matrix that interpolates `size` values to twice as many.

    Value ``i`` of the result lies at ``i (size - 1) / (2 size - 1)`` among those given, so that
    the first and the last are kept.
    """
    position = np.arange(2 * size, dtype=np.float64) * (size - 1) / (2 * size - 1)
    # A value's share falls from 1 at its own place to 0 at its neighbours'.
    distance = np.abs(position[:, None] - np.arange(size))
    return np.maximum(0, 1 - distance).astype(dtype)


def averaging(pixels, size, dtype):
    """Return the (size, pixels) matrix whose row `i` averages window `i` of `pixels` pixels.

    Windows share out the pixels as `Ops.average_pool2d` says.
    """
    first = np.arange(size)[:, None] * pixels
    begin, end = first // size, -(-(first + pixels) // size)
    inside = (begin <= np.arange(pixels)) & (np.arange(pixels) < end)
    return (inside / (end - begin)).astype(dtype)
