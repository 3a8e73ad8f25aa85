# SPDX-License-Identifier: MIT
"""How far each way of computing a convolution lies from float64, on inputs of three kinds."""

import dataclasses

import numpy as np
import pandas as pd

from convstudy.conv import reference
from convstudy.conv.algorithm import plan
from convstudy.device import EMULATOR
from convstudy.plots.palette import look
from convstudy.plots.save import Drawn
from convstudy.problem import ConvProblem
from convstudy.tolerance import relative_error

NAME = "tabS2_precision"
PROBLEM = ConvProblem(n=1, c=256, h=8, w=11, k=32, r=3, s=3, padding=(1, 1))
WAYS = (
    ("conv2d_fprop_4_register_blocked", "NCHW", "fp32"),
    ("conv2d_fprop_8_mma", "NHWC", "fp32"),
    ("conv2d_fprop_8_mma", "NHWC", "tf32"),
    ("conv2d_fprop_8_mma", "NHWC", "bf16"),
)


def inputs(problem, seed=0):
    """Yield (name, x, w): random, as after a ReLU, and scaled from 10^-6 to 10^6."""
    rng = np.random.default_rng(seed)
    x, w = (rng.standard_normal(s, dtype=np.float32) for s in (problem.x_shape, problem.w_shape))
    yield "normal", x, w
    yield "after a ReLU", np.maximum(x, 0), w
    scales = (10.0 ** rng.uniform(-6, 6, a.shape) for a in (x, w))
    yield "badly scaled", *((a * s).astype(np.float32) for a, s in zip((x, w), scales, strict=True))


def draw(problem=PROBLEM):
    """Run each way on the emulator, and return its largest relative error.

    Returns
    -------
    Drawn
        Columns algorithm, precision, input, error. bf16 is given the inputs rounded to it, and
        so is its reference: its error is that of the sums and of the result's rounding.
    """
    rows = []
    for name, x, w in inputs(problem):
        for algorithm, layout, precision in WAYS:
            dtype = "bfloat16" if precision == "bf16" else "float32"
            way = dataclasses.replace(problem, layout=layout, dtype=dtype, precision=precision)
            given = x.astype(dtype), w.astype(dtype)
            exact = (a.astype(float) for a in given)
            truth = reference.conv2d(*exact, None, padding=problem.padding)
            row = {"algorithm": algorithm, "precision": precision, "input": name}
            rows.append(row | {"error": relative_error(_run(algorithm, way, *given), truth)})
    return Drawn(NAME, pd.DataFrame(rows))


def _run(algorithm, problem, x, w):
    if problem.layout == "NHWC":
        x, w = (np.ascontiguousarray(np.moveaxis(a, 1, 3)) for a in (x, w))
    y = np.full(problem.y_shape, np.nan, x.dtype)
    plan(algorithm, problem, EMULATOR).run(EMULATOR, (x, w, None, y), checked=False)
    return np.moveaxis(y, 3, 1) if problem.layout == "NHWC" else y


def display(table):
    """Return one line a way, one column a kind of input."""
    named = table.assign(algorithm=[look(name).label for name in table["algorithm"]])
    wide = named.pivot(index=["algorithm", "precision"], columns="input", values="error")
    return wide.map(lambda error: f"{error:.1e}")
