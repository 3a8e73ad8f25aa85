# SPDX-License-Identifier: MIT
"""How far a computed array may lie from its float64 reference: one function, used everywhere."""

import math

import numpy as np

# Of what keeps 10 bits of the fraction, or 7; see `ConvProblem.precision`.
_EPS_OF_PRECISION = {"fp32": 0.0, "tf32": 2.0**-10, "bf16": 2.0**-7}


def tolerance(dtype, *terms, precision="fp32"):
    """Return the largest relative error that rounding alone explains.

    Parameters
    ----------
    dtype : dtype
        The type in which the sums were accumulated: float32 for bf16, too.
    *terms : int
        Products summed for one output: C R S for a convolution. A network passes one number a
        layer.
    precision : {"fp32", "tf32", "bf16"}
        To what operands were rounded before they were multiplied (TF32), or results after they
        were summed (bf16; the reference is computed from the operands as they are).

    Returns
    -------
    float
        ``4 eps sqrt(sum(terms))``, and ``4 eps_of_precision sqrt(layers)`` more, to be compared
        with `relative_error`.

    Notes
    -----
    Adding T products of random sign rounds T times; each rounding is at most eps/2 of a partial
    sum that grows as sqrt(i), so the error's standard deviation is about ``eps T / 5`` against a
    result of about ``sqrt(T)``: a relative error near ``eps sqrt(T) / 5``. The largest of a
    million outputs lies five or six deviations out. The factor 4 leaves room for three times
    that, and for no wrong term: leaving out one product of T shows as ``1 / sqrt(T)``.
    Errors of layers in sequence are independent, so their squares add.

    An operand that is rounded errs by eps/2 at most and eps/5 as a rule, and so do, relative to
    the result, T products of random sign: the number of terms plays no part. Two operands, and
    the largest of a million outputs, make that 1.5 eps.

    A result that is rounded errs by eps/2 of its own value at most, and `relative_error` compares
    with the root mean square of all: the largest of a million outputs lies five of those out, of
    a hundred million six, and that makes 3 eps. Four leave room for outputs eight out, which sums
    of very few products have. Here a left-out product shows less well, as ``1 / sqrt(T)`` may be
    smaller than that; but its largest in a million outputs is ten times as large.
    """
    if not terms or min(terms) < 1:
        raise ValueError(f"tolerance: terms must be positive numbers of products, got {terms}")
    if precision not in _EPS_OF_PRECISION:
        raise ValueError(
            f"tolerance: no precision {precision!r}; use {' or '.join(_EPS_OF_PRECISION)}"
        )
    rounded = _EPS_OF_PRECISION[precision] * math.sqrt(len(terms))
    return 4 * (float(np.finfo(dtype).eps) * math.sqrt(sum(terms)) + rounded)


def gradient_tolerance(dtype, *terms, precision="fp32"):
    """Return the largest error of a network's gradient that rounding alone explains.

    Parameters
    ----------
    dtype, *terms, precision
        As of `tolerance`; one number of terms a layer.

    Returns
    -------
    float
        To be compared with the length of the error of all parameters' gradients together, over
        the length of these gradients.

    Notes
    -----
    A gradient goes through every layer three times: forward, back to the input, and to the
    weights. What is more, a result near zero that is rounded may pass a ReLU which it should not
    pass, or stay behind: of each layer's results a share of about eps does, each with the whole
    of its gradient. The error's square is then that share: ``sqrt(layers eps)``, far more than
    eps. (PyTorch's autocast on U-Net at 2x3x49x66: 0.28 of the gradient's length in bf16, and
    with operands rounded to TF32 0.09, where ``sqrt(23 eps)`` is 0.42 and 0.15.) Two leave room
    for small images, whose batch norm averages over few pixels.
    """
    passes = [count for count in terms for _ in range(3)]
    eps = _EPS_OF_PRECISION[precision] or float(np.finfo(dtype).eps)
    wrongly_passed = 2 * math.sqrt(len(terms) * eps)
    return tolerance(dtype, *passes, precision=precision) + wrongly_passed


def relative_error(actual, reference, own=None):
    """Return the largest error of `actual`, relative to the root mean square of `reference`.

    A NaN or an infinity in `actual` gives infinity, so that it never passes.

    Parameters
    ----------
    actual, reference : array
    own : array, optional
        The scale of each output by itself: the root of the sum of its squared products. An error
        is then relative to that, where it is less than the root mean square of all.

    Notes
    -----
    Judged by all, an output that is much smaller than most may be wrong and pass: one that only
    a corner of the filter reaches, an image or a filter of small numbers, and above all one that
    no product reaches (between the pixels of a gradient whose stride exceeds the filter), which
    has to be zero. Rounding errs by a share of the very products that an output is made of, so
    that each can be held to its own scale by the same tolerance.
    """
    actual, reference = (_as_float64(array) for array in (actual, reference))
    if actual.shape != reference.shape:
        raise ValueError(f"relative_error: shapes differ, {actual.shape} and {reference.shape}")
    if reference.size == 0:
        return 0.0
    if not np.isfinite(actual).all():
        return math.inf
    scale = math.sqrt(float(np.mean(np.square(reference)))) or 1.0
    errors = np.abs(actual - reference)
    if own is None:
        return float(np.max(errors)) / scale
    errors, scales = errors[errors > 0], np.minimum(_as_float64(own), scale)[errors > 0]
    if not errors.size:
        return 0.0
    return float(np.max(errors / scales)) if scales.all() else math.inf


def _as_float64(array):
    # NumPy's functions take CuPy's arrays too, and work on their GPU.
    on_gpu = hasattr(array, "__cuda_array_interface__")
    return (array if on_gpu else np.asarray(array)).astype(np.float64)


def assert_close(actual, reference, *terms, dtype=None, precision="fp32", own=None):
    """Raise AssertionError unless `actual` agrees with `reference` within `tolerance`."""
    limit = tolerance(dtype or np.asarray(actual).dtype, *terms, precision=precision)
    error = relative_error(actual, reference, own)
    if not error <= limit:
        raise AssertionError(f"relative error {error:.3g} exceeds the tolerance {limit:.3g}")
