# SPDX-License-Identifier: MIT
"""The transpose of a matrix: a transposed convolution's filters as a product takes them."""

import functools
import math

from convstudy.nn.pixels import launch_tiles

KERNELS = ("matrix_transpose_1_tile",)


@functools.cache
def launch_transpose(lines, columns, dtype):
    """Return the launch that takes (x, y), for x of (lines, columns) and y of (columns, lines).

    Parameters
    ----------
    lines, columns : int
    dtype : {"float32", "bfloat16"}
    """
    tiles = math.ceil(lines / 32) * math.ceil(columns / 32)
    return launch_tiles("transpose", KERNELS[0], tiles, (lines, columns), dtype)
