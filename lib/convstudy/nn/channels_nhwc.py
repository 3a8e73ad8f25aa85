# SPDX-License-Identifier: MIT
"""Channels of NHWC arrays that ranks share: all side by side, or each rank's by themselves."""

import functools
import math

import numpy as np

from convstudy.nn.pixels import count_pixels, share

KERNELS = ("channels_layout_1_blocks",)
_EACH = 4


@functools.cache
def launch_blocks(shape, dtype, ranks, steps_x, steps_y):
    """Return the launch that takes (x, y): y gets what every rank has in x.

    Parameters
    ----------
    shape : (N, H, W, C)
        Of what one rank has.
    dtype : {"float32", "bfloat16"}
    ranks : int
    steps_x, steps_y : (int, int)
        Numbers from pixel to pixel, and from one rank's first number to the next one's.
    """
    pixels, c = count_pixels("channels", (ranks * shape[0], *shape[1:])) // ranks, shape[3]
    sharing = share("channels", c, dtype, steps_x[0], steps_y[0])
    parts = math.ceil(ranks * pixels / (sharing.rows * _EACH))
    steps = (number for pitch, rank in (steps_x, steps_y) for number in (pitch, np.int64(rank)))
    return sharing.launch("channels_layout_1_blocks", parts, (ranks, pixels, c, *steps))
