# SPDX-License-Identifier: MIT
"""Images as a network of NHWC arrays takes them."""

import functools

import numpy as np

from convstudy.nn.pixels import count_pixels, itemsize, launch_each

KERNELS = ("images_layout_1_planes", "images_layout_2_bytes")
# Numbers of one thread.
_EACH = 4


@functools.cache
def launch_planes(shape, dtype):
    """Return the launch that takes (images, y), for float32 images of (N, C, H, W).

    Parameters
    ----------
    shape : (N, H, W, C)
        Of y.
    dtype : {"float32", "bfloat16"}
        Of y.
    """
    pixels = count_pixels("images", shape)
    n, h, w, c = shape
    scalars = (n, c, h * w)
    return launch_each("images", "images_layout_1_planes", pixels, scalars, _bf16(dtype))


@functools.cache
def launch_bytes(shape, dtype):
    """Return the launch that takes (images, y), for bytes of (N, H, W, C), which become 0 to 1."""
    size = count_pixels("images", shape) * shape[3]
    scalars = (np.int64(size),)
    return launch_each("images", "images_layout_2_bytes", size, scalars, _bf16(dtype), _EACH)


def _bf16(dtype):
    itemsize("images", dtype)
    return (("BF16", 1),) if dtype == "bfloat16" else ()
