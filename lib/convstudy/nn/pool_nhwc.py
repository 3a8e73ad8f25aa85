# SPDX-License-Identifier: MIT
"""Pooling of NHWC arrays, and its gradients. Pitches are C by default, as in `norm_nhwc`."""

import functools
import math

from convstudy.nn.pixels import count_pixels, share

KERNELS = (
    "maxpool_fprop_2_winners",
    "maxpool_dgrad_1_winners",
    "avgpool_fprop_1_image",
    "avgpool_fprop_2_windows",
    "avgpool_dgrad_1_spread",
    "avgpool_dgrad_2_windows",
)
_EACH = 4


def pooled_shape(shape, window=(2, 2), stride=None, padding=(0, 0)):
    """Return the (N, P, Q, C) that max pooling makes of (N, H, W, C): whole windows only."""
    stride = stride or window
    count_pixels("max_pool", shape)
    if min(*window, *stride) < 1 or math.prod(window) > 256:
        raise ValueError(
            f"max_pool: windows are of 1 to 256 pixels and strides at least 1, got {window} and "
            f"{stride}"
        )
    if any(not 0 <= pad <= size // 2 for pad, size in zip(padding, window, strict=True)):
        raise ValueError(
            f"max_pool: padding must be 0 to half the window {window}, got {padding}: "
            "a window would lie outside"
        )
    sizes = zip(shape[1:3], window, stride, padding, strict=True)
    p, q = ((size + 2 * pad - width) // step + 1 for size, width, step, pad in sizes)
    if min(p, q) < 1:
        raise ValueError(
            f"max_pool: an image of {shape[1]} x {shape[2]} has no window of {window[0]} x "
            f"{window[1]}; pass a larger"
        )
    return shape[0], p, q, shape[3]


@functools.cache
def launch_max_pool(
    shape, dtype, window=(2, 2), stride=None, padding=(0, 0), *, pitch_x=None, pitch_y=None
):
    """Return the launch that takes (x, y, winners) for x of `shape` and y of `pooled_shape`.

    Parameters
    ----------
    shape : (N, H, W, C)
    dtype : {"float32", "bfloat16"}
    window, stride, padding : (int, int)
        Strides are the window by default. `winners` are bytes of y's shape, whole, for the
        gradient; None where none is to come.
    """
    made = pooled_shape(shape, window, stride, padding)
    pixels = count_pixels("max_pool", made)
    return _launch_max_pool(
        "fprop_2", shape, made, pixels, dtype, window, stride, padding, (pitch_x, pitch_y)
    )


@functools.cache
def launch_max_pool_dgrad(
    shape, dtype, window=(2, 2), stride=None, padding=(0, 0), *, pitch_dy=None, pitch_dx=None
):
    """Return the launch that takes (dy, winners, dx) for dx of `shape`, as `launch_max_pool`."""
    made = pooled_shape(shape, window, stride, padding)
    pixels = count_pixels("max_pool", shape)
    return _launch_max_pool(
        "dgrad_1", shape, made, pixels, dtype, window, stride, padding, (pitch_dy, pitch_dx)
    )


def _launch_max_pool(kernel, shape, made, pixels, dtype, window, stride, padding, pitches):
    (n, h, w, c), (_, p, q, _) = shape, made
    pitches = [pitch or c for pitch in pitches]
    # Bytes of winners have the pitch C.
    sharing = share("max_pool", c, dtype, *pitches)
    names = ("WINDOW_H", "WINDOW_W", "STRIDE_H", "STRIDE_W")
    defines = tuple(zip(names, (*window, *(stride or window)), strict=True))
    scalars = (n, h, w, c, p, q, *padding, *pitches)
    parts = math.ceil(pixels / sharing.rows)
    return sharing.launch(f"maxpool_{kernel}_winners", parts, scalars, defines)


@functools.cache
def launch_average_pool(shape, dtype, pitch_x=None):
    """Return the launch that takes (x, y): the mean of each channel of each image, (N, C)."""
    count_pixels("average_pool", shape)
    n, h, w, c = shape
    pitch_x = pitch_x or c
    sharing = share("average_pool", c, dtype, pitch_x)
    return sharing.launch("avgpool_fprop_1_image", n, (c, h * w, pitch_x))


@functools.cache
def launch_average_pool_dgrad(shape, dtype, pitch_dx=None):
    """Return the launch that takes (dy, dx), for dy of (N, C) and dx of `shape`."""
    pixels = count_pixels("average_pool", shape)
    n, h, w, c = shape
    pitch_dx = pitch_dx or c
    sharing = share("average_pool", c, dtype, pitch_dx)
    parts = math.ceil(pixels / (sharing.rows * _EACH))
    return sharing.launch("avgpool_dgrad_1_spread", parts, (n, c, h * w, pitch_dx))


@functools.cache
def launch_average_windows(shape, dtype, size):
    """Return the launch that takes (x, y): `size` x `size` windows that share out each image.

    Row p of y, of (N, size, size, C), is the mean of rows floor(p H / size) to
    ceil((p + 1) H / size) of x, and columns likewise: windows overlap where they must.
    """
    n, _, _, c = shape
    return _launch_windows("fprop_2", shape, dtype, size, (n, size, size, c))


@functools.cache
def launch_average_windows_dgrad(shape, dtype, size):
    """Return the launch that takes (dy, dx), for dx of `shape`, as `launch_average_windows`."""
    return _launch_windows("dgrad_2", shape, dtype, size, shape)


def _launch_windows(kernel, shape, dtype, size, made):
    if size < 1:
        raise ValueError(f"average_pool: size must be at least 1, got {size}")
    count_pixels("average_pool", shape)
    pixels, (n, h, w, c) = count_pixels("average_pool", made), shape
    sharing = share("average_pool", c, dtype)
    parts = math.ceil(pixels / sharing.rows)
    return sharing.launch(f"avgpool_{kernel}_windows", parts, (n, h, w, c, size))
