# SPDX-License-Identifier: MIT
"""The NumPy twin of every function's gradient, and of batch norm in training.

Arrays lie as NCHW, and results are of the inputs' own type: in float64 they are the reference of
every test. A convolution's gradients are in `conv.reference`. A name's ending says of what the
gradient is: ``dgrad`` of the input, ``wgrad`` of the parameters.
"""

import functools

import numpy as np

from convstudy.nn.reference import averaging, interpolation


def batch_norm_train(x, weight, bias, eps=1e-5):
    """Normalise each channel by its own mean and variance over all images and pixels.

    Parameters
    ----------
    x : (N, C, H, W) array
    weight, bias : (C,) arrays
    eps : float

    Returns
    -------
    y : (N, C, H, W) array
        ``(x - mean) / sqrt(var + eps) * weight + bias``.
    mean, var : (C,) arrays
        The variance is the mean square, not the unbiased one that running statistics are fed with.
    """
    return batch_norm_everywhere(x, weight, bias, eps)[:3]


def batch_norm_everywhere(x, weight, bias, eps=1e-5, total=None):
    """Do what `batch_norm_train` does, where others may have more images of the batch.

    Parameters
    ----------
    x, weight, bias, eps
        As in `batch_norm_train`.
    total : callable, optional
        ``total(sums)`` adds a float64 array up over all who have images, in place, and returns it.

    Returns
    -------
    y, mean, var : arrays
        As of `batch_norm_train`.
    count : int
        Pixels of a channel that the statistics are of.
    """
    (sums,), count = _everywhere(total, x, x.sum(axis=(0, 2, 3), dtype=np.float64))
    mean = (sums / count).astype(x.dtype)
    y = x - _channels(mean)
    (squares,), _ = _everywhere(total, x, _sums(y, y))
    var = (squares / count).astype(x.dtype)
    y *= _channels(weight / np.sqrt(var + eps))
    y += _channels(bias)
    return y, mean, var, count


def batch_norm_dgrad(dy, x, weight, mean, var, eps=1e-5, training=True, total=None):
    """Return the gradients of batch norm's input, weight and bias.

    Parameters
    ----------
    dy, x : (N, C, H, W) arrays
        The output's gradient, and the input.
    weight, mean, var : (C,) arrays
        The statistics that the input was normalised by.
    eps : float
    training : bool
        The statistics are those of `x`, and change with it; else they are constants.
    total : callable, optional
        As in `batch_norm_everywhere`.

    Returns
    -------
    dx : (N, C, H, W) array
    dweight, dbias : (C,) arrays
        Of these images alone, whoever has more.
    """
    centred = x - _channels(mean)
    scale = 1 / np.sqrt(var + eps)
    dbias = dy.sum(axis=(0, 2, 3), dtype=np.float64)
    dweight = _sums(dy, centred) * scale
    dx = dy * _channels(weight * scale)
    if training:
        # What of dy would shift all outputs, or stretch them, the statistics take back.
        (stretch, shift), count = _everywhere(total, x, dweight, dbias)
        share = weight * scale / count
        centred *= _channels((share * scale * stretch).astype(x.dtype))
        dx -= centred
        dx -= _channels((share * shift).astype(x.dtype))
    return dx, dweight.astype(x.dtype), dbias.astype(x.dtype)


def relu_dgrad(dy, y):
    """Return the gradient of ReLU's input: `dy` where the output is above 0, else 0."""
    return dy * (y > 0)


def max_pool2d_dgrad(dy, x, window=2, stride=2, padding=0):
    """Return the gradient of max pooling's input: the first largest pixel of a window has it.

    Parameters
    ----------
    dy : (N, C, P, Q) array
    x : (N, C, H, W) array
    window, stride, padding : int

    Returns
    -------
    (N, C, H, W) array
        A pixel of several windows has the sum; one of none, 0.
    """
    h, w = x.shape[2:]
    if padding:
        around = [(0, 0), (0, 0), (padding, padding), (padding, padding)]
        x = np.pad(x, around, constant_values=-np.inf)
    ends = [stride * (count - 1) + 1 for count in dy.shape[2:]]
    taps = [
        (..., slice(r, r + ends[0], stride), slice(s, s + ends[1], stride))
        for r in range(window)
        for s in range(window)
    ]
    largest = functools.reduce(np.maximum, (x[tap] for tap in taps))
    dx = np.zeros(x.shape, dy.dtype)
    free = np.ones(dy.shape, bool)
    for tap in taps:
        hit = free & (x[tap] == largest)
        dx[tap] += dy * hit
        free &= ~hit
    if not padding:
        return dx
    return np.ascontiguousarray(dx[:, :, padding : padding + h, padding : padding + w])


def average_pool2d_dgrad(dy, size):
    """Return the gradient, (N, C, *size), of what was averaged to the (N, C, P, P) of `dy`."""
    down, across = (averaging(pixels, dy.shape[2], dy.dtype) for pixels in size)
    return down.T @ dy @ across


def linear_dgrad(dy, w, shape):
    """Return the gradient, of `shape`, of what a matrix was multiplied with; `w` is (K, F)."""
    return (dy @ w).reshape(shape)


def linear_wgrad(x, dy):
    """Return the gradients of a matrix, (K, F), and of its bias, (K,)."""
    return dy.T @ x.reshape(len(x), -1), bias_grad(dy)


def bias_grad(dy):
    """Return the gradient, (K,), of a bias that was added to the (N, K, ...) of `dy`."""
    others = (0, *range(2, dy.ndim))
    return dy.sum(axis=others, dtype=np.float64).astype(dy.dtype)


def conv_transpose2d_dgrad(dy, w):
    """Return the gradient of a transposed convolution's input.

    Parameters
    ----------
    dy : (N, K, 2 H, 2 W) array
    w : (C, K, 2, 2) array

    Returns
    -------
    (N, C, H, W) array
    """
    n, _, height, width = dy.shape
    dx = w.reshape(len(w), -1) @ _gathered(dy)
    return dx.reshape(n, len(w), height // 2, width // 2)


def conv_transpose2d_wgrad(x, dy):
    """Return the gradients of a transposed convolution's filters and bias.

    Parameters
    ----------
    x : (N, C, H, W) array
    dy : (N, K, 2 H, 2 W) array

    Returns
    -------
    dw : (C, K, 2, 2) array
    dbias : (K,) array
    """
    n, c, height, width = x.shape
    dw = np.matmul(x.reshape(n, c, height * width), _gathered(dy).swapaxes(1, 2)).sum(axis=0)
    return dw.reshape(c, dy.shape[1], 2, 2), bias_grad(dy)


def upsample_bilinear_dgrad(dy):
    """Return the gradient, (N, C, H, W), of what was interpolated to (N, C, 2 H, 2 W)."""
    down, across = (interpolation(size // 2, dy.dtype) for size in dy.shape[2:])
    return down.T @ dy @ across


def pad_concat_dgrad(dy, skip_shape, x_shape):
    """Return the gradients of what was joined: copies of their own parts of `dy`.

    Parameters
    ----------
    dy : (N, C + D, H, W) array
    skip_shape, x_shape : tuple
        (N, C, H, W) and (N, D, H', W').

    Returns
    -------
    dskip : (N, C, H, W) array
    dx : (N, D, H', W') array
    """
    c, (height, width) = skip_shape[1], x_shape[2:]
    top, left = (dy.shape[2] - height) // 2, (dy.shape[3] - width) // 2
    dx = dy[:, c:, top : top + height, left : left + width]
    return dy[:, :c].copy(), dx.copy()


def head_dgrad(dy, w):
    """Return the gradient, (N, C, H, W), of the head's input; `w` is (K, C, 1, 1)."""
    n, k, height, width = dy.shape
    dx = w[:, :, 0, 0].T @ dy.reshape(n, k, height * width)
    return dx.reshape(n, -1, height, width)


def head_wgrad(x, dy):
    """Return the gradients of the head's filters, (K, C, 1, 1), and of its bias, (K,)."""
    n, c, height, width = x.shape
    flat = dy.reshape(n, -1, height * width)
    dw = np.matmul(flat, x.reshape(n, c, height * width).swapaxes(1, 2)).sum(axis=0)
    return dw[:, :, None, None], bias_grad(dy)


def _everywhere(total, x, *sums):
    """Return sums over the pixels of a channel, and how many these are, with others' images too."""
    count = x.size // x.shape[1]
    if total is None:
        return sums, count
    *sums, counts = total(np.array([*sums, np.full(x.shape[1], count)], np.float64))
    return sums, int(counts[0])


def _channels(values):
    """Return one value a channel so that it meets (N, C, H, W) arrays."""
    return values[:, None, None]


def _sums(a, b):
    """Return the sum of ``a b`` over each channel, rows first so that rounding stays small."""
    return np.einsum("nchw,nchw->nch", a, b).sum(axis=(0, 2), dtype=np.float64)


def _gathered(dy):
    """Return (N, 4 K, H W): the 2 x 2 pixels that each pixel was spread over, side by side."""
    n, k, height, width = dy.shape
    taps = dy.reshape(n, k, height // 2, 2, width // 2, 2).transpose(0, 1, 3, 5, 2, 4)
    return taps.reshape(n, 4 * k, height * width // 4)
