# SPDX-License-Identifier: MIT
"""The NumPy twin of every convolution algorithm: short, vectorised, in the input's own type."""

import numpy as np


def conv2d(x, w, bias=None, stride=(1, 1), padding=(0, 0)):
    """Convolve `x` with `w`, one filter tap at a time.

    Parameters
    ----------
    x : (N, C, H, W) array
        In float64 the result is the reference of every test.
    w : (K, C, R, S) array
    bias : (K,) array, optional
    stride, padding : (int, int)

    Returns
    -------
    (N, K, P, Q) array of x's dtype
    """
    n, _, h, width = x.shape
    k, _, r, s = w.shape
    (stride_h, stride_w), (pad_h, pad_w) = stride, padding
    p = (h + 2 * pad_h - r) // stride_h + 1
    q = (width + 2 * pad_w - s) // stride_w + 1
    padded = np.pad(x, ((0, 0), (0, 0), (pad_h, pad_h), (pad_w, pad_w)))
    y = np.zeros((n, k, p, q), dtype=x.dtype)
    for i in range(r):
        for j in range(s):
            window = padded[:, :, i : i + stride_h * p : stride_h, j : j + stride_w * q : stride_w]
            # (K, C) times (N, C, P, Q), summed over C: the bulk of the work is one BLAS call.
            y += np.moveaxis(np.tensordot(w[:, :, i, j], window, axes=(1, 1)), 0, 1)
    return y if bias is None else y + bias[:, None, None]
