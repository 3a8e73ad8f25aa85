# SPDX-License-Identifier: MIT
"""Gradients of ReLU and of biases, on NHWC arrays. Pitches are C by default, as in `norm_nhwc`."""

import functools
import math

from convstudy.nn.pixels import check_part, count_pixels, share, share_parts

KERNELS = ("relu_dgrad_1_mask", "bias_wgrad_1_parts", "bias_wgrad_2_combine")
_EACH = 4


@functools.cache
def launch_relu_dgrad(
    shape, dtype, add=False, *, pitch_dy=None, pitch_other=None, pitch_y=None, pitch_dx=None
):
    """Return the launch that takes (dy, other, y, dx): dx is dy, and with `add` other, where y > 0.

    Parameters
    ----------
    shape : (N, H, W, C)
    dtype : {"float32", "bfloat16"}
    add : bool
        Whether the output went two ways; else `other` is None. dx may be any of the others.
    """
    pixels, c = count_pixels("relu", shape), shape[3]
    pitches = [pitch or c for pitch in (pitch_dy, pitch_other, pitch_y, pitch_dx)]
    sharing = share("relu", c, dtype, *pitches)
    parts = math.ceil(pixels / (sharing.rows * _EACH))
    defines = (("ADD", 1),) if add else ()
    return sharing.launch("relu_dgrad_1_mask", parts, (pixels, c, *pitches), defines)


@functools.cache
def launch_bias_wgrad_parts(
    shape, dtype, rows, relu=False, part=None, *, pitch_dy=None, pitch_y=None, pitch_dx=None
):
    """Return the launch that takes (dy, y, dx, parts): sums of dy over every `rows` pixels.

    Parameters
    ----------
    shape : (N, H, W, C)
    dtype : {"float32", "bfloat16"}
    rows : int
        Pixels of a part, as `pixels.part_rows` chooses them; parts are (parts, C), float32.
    relu : bool
        Whether dy is the gradient of ReLU's output y: what passes is summed, and written to dx,
        which may be dy or y. Else both are None.
    part : (int, int, int, int), optional
        Height, width, top and left of the pixels of each image that count; by default all.
    """
    count_pixels("bias", shape)
    n, h, w, c = shape
    p, q, top, left = part or (h, w, 0, 0)
    check_part("bias", (h, w), (p, q), top, left)
    pitches = [pitch or c for pitch in (pitch_dy, pitch_y, pitch_dx)]
    sharing = share("bias", c, dtype, *pitches)
    scalars = (n, h, w, c, p, q, top, left, *pitches, rows)
    defines = (("RELU", 1),) if relu else ()
    return sharing.launch("bias_wgrad_1_parts", math.ceil(n * p * q / rows), scalars, defines)


@functools.cache
def launch_sums(parts, columns, first=None):
    """Return the launch that takes (parts, first, second): the sums of (parts, columns) by columns.

    Parameters
    ----------
    parts, columns : int
    first : int, optional
        How many sums go to the first array; the others go to the second. By default all, and the
        second is None.
    """
    sharing = share_parts("sums", columns, parts)
    scalars = (columns, parts, columns if first is None else first)
    return sharing.launch("bias_wgrad_2_combine", 1, scalars)
