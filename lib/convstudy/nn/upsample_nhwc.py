# SPDX-License-Identifier: MIT
"""Interpolation of NHWC arrays into larger images, its gradient, and the zeros around them.

What is enlarged is written where it will be read: among the channels of what it is to be joined
with, (top, left) pixels from the corner of an image that may be larger. Pitches are C by default.
"""

import functools
import math

from convstudy.nn.pixels import check_part, count_pixels, share

KERNELS = ("upsample_fprop_2_channels", "upsample_dgrad_1_gather", "concat_fprop_2_border")
# Above, a position among the pixels of a side would not fit into 32 bits.
_LONGEST = 2**15


@functools.cache
def launch_upsample(shape, dtype, size=None, corner=(0, 0), *, pitch_x=None, pitch_y=None):
    """Return the launch that takes (x, y), for x of (N, H, W, C) and y of (N, *size, C).

    Parameters
    ----------
    shape : (N, H, W, C)
    dtype : {"float32", "bfloat16"}
    size : (int, int), optional
        Of y; by default 2 H x 2 W. What is around the result is 0.
    corner : (int, int)
        Where in y the result begins.
    """
    size = _size(shape, size, corner)
    pixels = count_pixels("upsample", (shape[0], *size, shape[3]))
    pitches = (pitch_x, pitch_y)
    kernel = "upsample_fprop_2_channels"
    return _launch(kernel, shape, dtype, (*size, *corner), pitches, pixels)


@functools.cache
def launch_upsample_dgrad(shape, dtype, size=None, corner=(0, 0), *, pitch_dy=None, pitch_dx=None):
    """Return the launch that takes (dy, dx), for dx of (N, H, W, C) and dy of (N, *size, C)."""
    size = _size(shape, size, corner)
    count_pixels("upsample", (shape[0], *size, shape[3]))
    pixels, pitches = count_pixels("upsample", shape), (pitch_dy, pitch_dx)
    return _launch("upsample_dgrad_1_gather", shape, dtype, (*size, *corner), pitches, pixels)


@functools.cache
def launch_border(shape, dtype, part, corner=(0, 0), pitch=None):
    """Return the launch that takes (y,) and writes 0 around a part of each image.

    Parameters
    ----------
    shape : (N, H, W, C)
    dtype : {"float32", "bfloat16"}
    part, corner : (int, int)
        The size of what stays, and where it begins.

    Returns
    -------
    Launch or None
        None where the part is the whole image, and there is nothing to do.
    """
    count_pixels("border", shape)
    check_part("border", shape[1:3], part, *corner)
    n, h, w, _ = shape
    border = n * (h * w - math.prod(part))
    if not border:
        return None
    return _launch("concat_fprop_2_border", shape, dtype, (*part, *corner), (pitch,), border)


def _size(shape, size, corner):
    doubled = tuple(2 * side for side in shape[1:3])
    size = size or doubled
    check_part("upsample", size, doubled, *corner)
    if max(size) > _LONGEST:
        raise ValueError(f"upsample: {size[0]} x {size[1]} has a side above 2^15; cut the image")
    return size


def _launch(kernel, shape, dtype, part, pitches, threads):
    pitches = [pitch or shape[3] for pitch in pitches]
    sharing = share(kernel.split("_")[0], shape[3], dtype, *pitches)
    parts = math.ceil(threads / sharing.rows)
    return sharing.launch(kernel, parts, (*shape, *part, *pitches))
