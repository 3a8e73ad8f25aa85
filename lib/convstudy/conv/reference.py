# SPDX-License-Identifier: MIT
"""The NumPy twin of every convolution algorithm: short, vectorised, in the input's own type.

Arrays lie as NCHW and KCRS. NumPy's functions take CuPy's arrays too, and work on their GPU.
"""

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
    y = np.zeros_like(x, shape=(n, k, p, q), order="C")
    for i in range(r):
        for j in range(s):
            window = padded[:, :, i : i + stride_h * p : stride_h, j : j + stride_w * q : stride_w]
            # (K, C) times (N, C, P, Q), summed over C: the bulk of the work is one BLAS call.
            y += np.moveaxis(np.tensordot(w[:, :, i, j], window, axes=(1, 1)), 0, 1)
    return y if bias is None else y + bias[:, None, None]


def conv2d_dgrad(dy, w, size, stride=(1, 1), padding=(0, 0)):
    """Return the gradient of the input: each output's, sent back through every filter tap.

    Parameters
    ----------
    dy : (N, K, P, Q) array
    w : (K, C, R, S) array
    size : (int, int)
        H and W of the input.
    stride, padding : (int, int)

    Returns
    -------
    (N, C, H, W) array of dy's dtype
    """
    n, _, p, q = dy.shape
    _, c, r, s = w.shape
    (h, width), (stride_h, stride_w), (pad_h, pad_w) = size, stride, padding
    shape = n, c, h + 2 * pad_h, width + 2 * pad_w
    padded = np.zeros_like(dy, shape=shape, order="C")
    for i in range(r):
        for j in range(s):
            window = padded[:, :, i : i + stride_h * p : stride_h, j : j + stride_w * q : stride_w]
            window += np.moveaxis(np.tensordot(w[:, :, i, j], dy, axes=(0, 1)), 0, 1)
    return padded[:, :, pad_h : pad_h + h, pad_w : pad_w + width]


def conv2d_wgrad(x, dy, size, stride=(1, 1), padding=(0, 0)):
    """Return the gradient of the filters: under each tap, the input times the output's gradient.

    Parameters
    ----------
    x : (N, C, H, W) array
    dy : (N, K, P, Q) array
    size : (int, int)
        R and S of the filters.
    stride, padding : (int, int)

    Returns
    -------
    (K, C, R, S) array of x's dtype
    """
    _, k, p, q = dy.shape
    (r, s), (stride_h, stride_w), (pad_h, pad_w) = size, stride, padding
    padded = np.pad(x, ((0, 0), (0, 0), (pad_h, pad_h), (pad_w, pad_w)))
    dw = np.empty_like(x, shape=(k, x.shape[1], r, s), order="C")
    for i in range(r):
        for j in range(s):
            window = padded[:, :, i : i + stride_h * p : stride_h, j : j + stride_w * q : stride_w]
            dw[:, :, i, j] = np.tensordot(dy, window, axes=((0, 2, 3), (0, 2, 3)))
    return dw
