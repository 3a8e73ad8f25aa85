# SPDX-License-Identifier: MIT
"""How work is cut into independent chunks: a batch by images, an image by rows."""

import operator

import numpy as np


def split(n, chunks):
    """Return slices that cut `n` things into chunks as equal as can be.

    Parameters
    ----------
    n, chunks : int
        Both at least 1. There are no more chunks than things.

    Returns
    -------
    list of slice
        In order, without gaps; their lengths differ by at most 1, the longer ones first.

    Examples
    --------
    >>> split(5, 2)
    [slice(0, 3, None), slice(3, 5, None)]
    """
    n = whole("split", "n", n)
    chunks = min(n, whole("split", "chunks", chunks))
    short, longer = divmod(n, chunks)
    stops = [(i + 1) * short + min(i + 1, longer) for i in range(chunks)]
    return [slice(start, stop) for start, stop in zip([0, *stops], stops, strict=False)]


def height_with_halo(rows, taps, stride=1):
    """Return how many input rows so many output rows of a convolution need."""
    return (rows - 1) * stride + taps


def rows_with_halo(x, rows, taps, padding, out, stride=1):
    """Write the input rows that some output rows need, the padding above and below included.

    Convolved without padding along H, they give these output rows and no others.

    Parameters
    ----------
    x : (N, C, H, W) array
    rows : slice
        Of the output of a convolution.
    taps, padding : int
        The filter's height R, and the zeros above and below.
    out : (N, C, H', W) array
        Is written; H' is as `height_with_halo` says.
    stride : int
        Along H.
    """
    # Where `out` begins and ends among the rows of x, those of the padding being outside.
    begin = rows.start * stride - padding
    end = begin + height_with_halo(rows.stop - rows.start, taps, stride)
    first, last = max(begin, 0), min(end, x.shape[2])
    if (first, last) != (begin, end):
        out[...] = 0
    if first < last:
        np.copyto(out[:, :, first - begin : last - begin], x[:, :, first:last])


def whole(who, name, value):
    """Return `value` as an int, or raise TypeError or ValueError unless it is 1 or more."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{who}: {name} must be an integer, got {value!r}") from None
    if number < 1:
        raise ValueError(f"{who}: {name} must be at least 1, got {number}")
    return number
