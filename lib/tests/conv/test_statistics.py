# SPDX-License-Identifier: MIT
"""Statistics that a convolution writes beside its result, against those of the result."""

import numpy as np
import pytest

from convstudy import compile as compiler
from convstudy import tolerance
from convstudy.conv import gemm, halo, hopper
from convstudy.conv.algorithm import ALGORITHMS, plan
from convstudy.conv.epilogue import Epilogue
from convstudy.device import EMULATOR
from convstudy.problem import ConvProblem

STATISTICS = Epilogue(statistics=True)
WIDE, NARROW = hopper._TILES_WHOLE[0], hopper._TILES_WHOLE[2]
CASES = {
    "10 wide": ("conv2d_fprop_10_wgmma", "bf16", gemm.Choice(WIDE, 1), hopper),
    "10 tf32": ("conv2d_fprop_10_wgmma", "tf32", gemm.Choice(NARROW, 1), hopper),
    "10 fp32": ("conv2d_fprop_10_wgmma", "fp32", gemm.Choice(hopper._TILES_SPLIT[2], 1), hopper),
    "11 bf16": ("conv2d_fprop_11_halo", "bf16", halo.Choice(64), halo),
}


def problem_of(precision):
    # Tiles and patches that are cut off below and at the right, and columns that are.
    dtype = "bfloat16" if precision == "bf16" else "float32"
    sizes = 2, 64, 21, 19, 72, 3, 3
    return ConvProblem(*sizes, padding=(1, 1), dtype=dtype, layout="NHWC", precision=precision)


def excess(case, rng):
    """Return how far the statistics are from those of the result, in tolerances."""
    kernel, precision, choice, family = case
    p = problem_of(precision)
    x = (rng.standard_normal(p.x_shape) + 1).astype(p.dtype)
    w = rng.standard_normal(p.w_shape).astype(p.dtype)
    y = np.full(p.y_shape, np.nan, p.dtype)
    tiles = family.count_tiles(kernel, p, EMULATOR, choice)
    moments = np.full(tiles * (2 * p.k + 1), np.nan, np.float32)
    launch = ALGORITHMS[kernel].plan(p, EMULATOR, choice, epilogue=STATISTICS)
    launch.run(EMULATOR, [x, w, rng.standard_normal(p.k).astype(np.float32), y, moments])
    values, counts = y.astype(np.float64).reshape(-1, p.k), moments[tiles * 2 * p.k :, None]
    assert counts.sum() == len(values)
    means, squares = moments[: tiles * 2 * p.k].reshape(tiles, 2, p.k).astype(float).swapaxes(0, 1)
    mean = (counts * means).sum(0) / len(values)
    var = (squares + counts * (means - mean) ** 2).sum(0) / len(values)
    errors = abs(mean - values.mean(0)) / values.std(0), abs(var / values.var(0) - 1)
    return max(e.max() for e in errors) / tolerance.tolerance("float32", len(values))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_statistics_are_those_of_the_result(case, rng):
    assert excess(case, rng) < 1


def test_rows_beyond_the_last_must_not_count(rng, monkeypatch):
    source = compiler.source

    def planted(kernel, defines=()):
        text = source(kernel, defines)
        assert text.count("if (has[m][half]) sum") == 1
        return text.replace("if (has[m][half]) sum", "sum")

    monkeypatch.setattr(compiler, "source", planted)
    compiler._on_emulator.cache_clear()
    try:
        assert not excess(CASES["11 bf16"], rng) < 1
    finally:
        compiler._on_emulator.cache_clear()


def test_refusals_say_why():
    problem = problem_of("bf16")
    for kernel in ("conv2d_fprop_8_mma", "conv2d_dgrad_10_wgmma"):
        ok, reason = ALGORITHMS[kernel].supports(problem, EMULATOR, STATISTICS)
        assert not ok
        assert "statistics" in reason
    with pytest.raises(ValueError, match="3 blocks share a sum"):
        plan("conv2d_fprop_10_wgmma", problem, EMULATOR, gemm.Choice(NARROW, 3), STATISTICS)
