# SPDX-License-Identifier: MIT
"""Small convolutions that between them meet every edge an index map can have."""

import numpy as np

from convstudy.problem import ConvProblem

PROBLEMS = {
    "unet, odd width": ConvProblem(1, 3, 12, 19, 8, 3, 3, padding=(1, 1)),
    "several images": ConvProblem(3, 5, 9, 7, 6, 3, 3, padding=(1, 1)),
    "more channels than a tile holds": ConvProblem(1, 19, 6, 11, 9, 3, 3, padding=(1, 1)),
    "one of everything": ConvProblem(1, 1, 1, 1, 1, 1, 1),
    "one pixel, filter in the padding": ConvProblem(2, 2, 1, 1, 3, 3, 3, padding=(1, 1)),
    "one column": ConvProblem(1, 2, 17, 1, 2, 3, 1, padding=(1, 0)),
    "one row": ConvProblem(1, 2, 1, 35, 2, 1, 3, padding=(0, 1)),
    "1x1": ConvProblem(2, 7, 5, 6, 10, 1, 1),
    "5x5 without padding": ConvProblem(1, 3, 11, 13, 4, 5, 5),
    "7x7, stride 2": ConvProblem(1, 3, 21, 23, 4, 7, 7, stride=(2, 2), padding=(3, 3)),
    "unequal taps, strides and padding": ConvProblem(
        2, 3, 14, 10, 5, 2, 4, stride=(3, 2), padding=(0, 2)
    ),
    "padding beyond the filter": ConvProblem(1, 2, 4, 5, 3, 3, 3, padding=(4, 3)),
}

# U-Net's own layers are run on the device, where their size costs nothing.
UNET_PROBLEMS = {
    "first layer": ConvProblem(1, 3, 128, 191, 64, 3, 3, padding=(1, 1)),
    "deepest layer": ConvProblem(2, 256, 8, 11, 512, 3, 3, padding=(1, 1)),
    "wide": ConvProblem(1, 64, 64, 95, 128, 3, 3, padding=(1, 1)),
    "224, stride 2": ConvProblem(1, 3, 224, 224, 64, 7, 7, stride=(2, 2), padding=(3, 3)),
}


def random_arrays(problem, rng):
    """Return x, w and bias of `problem`, float32, drawn afresh."""
    x = rng.standard_normal(problem.x_shape, dtype=np.float32)
    w = rng.standard_normal(problem.w_shape, dtype=np.float32)
    return x, w, rng.standard_normal(problem.k, dtype=np.float32)
