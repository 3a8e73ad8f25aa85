# SPDX-License-Identifier: MIT
"""The residual sum of NHWC arrays."""

import functools
import math

from convstudy.nn.pixels import count_pixels, share

KERNELS = ("add_fprop_2_relu",)
_EACH = 4


@functools.cache
def launch_add(shape, dtype, relu=False):
    """Return the launch that takes (x, other, y): y is their sum, of which ReLU, if wanted.

    Parameters
    ----------
    shape : (N, H, W, C)
        Of all three, which are whole; y may be one of the others.
    dtype : {"float32", "bfloat16"}
    relu : bool
    """
    pixels, c = count_pixels("add", shape), shape[3]
    sharing = share("add", c, dtype)
    parts = math.ceil(pixels / (sharing.rows * _EACH))
    defines = (("RELU", 1),) if relu else ()
    return sharing.launch("add_fprop_2_relu", parts, (pixels, c), defines)
