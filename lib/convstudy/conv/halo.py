# SPDX-License-Identifier: MIT
"""How rung 11 is cut: patches of pixels with their halo, and filters tile by tile."""

import math
from typing import NamedTuple

from convstudy.compile import Launch, Sequence
from convstudy.conv import gemm, hopper
from convstudy.conv.epilogue import PLAIN
from convstudy.tensor_map import LINE_BYTES, TensorMap

# conv2d_wgmma.cuh's and conv2d_halo.cuh's constants.
_PATCH, _PATCHES, _CONSUMERS = 16, 2, 2
_COLUMNS = (64, 128)
_FEWEST_STAGES = 3


def _which(kernel):
    return kernel.split("_")[1]


def _patch_lines(problem):
    return (_PATCH + problem.r - 1) * (_PATCH + problem.s - 1)


def _stages(problem, columns):
    patch = math.ceil(LINE_BYTES * _patch_lines(problem) / 1024) * 1024
    used = _PATCHES * patch + _CONSUMERS * hopper.EXCHANGE_BYTES + hopper.RESERVED_BYTES
    return min(hopper.MOST_STAGES, (hopper.SHARED_BYTES - used) // (LINE_BYTES * columns))


def takes_bf16(kernel):
    """Return whether `kernel` takes arrays of bfloat16: all do."""
    return True


def supports(kernel, problem, device):
    """Return (ok, reason) for a kernel of rung 11; its name says which pass it is."""
    ok, reason = hopper.supports(kernel, problem, device)
    if not ok:
        return ok, reason
    if problem.precision == "fp32":
        return False, "its pixels go straight to the products, which are not fp32; use tf32"
    if problem.stride != (1, 1):
        return (
            False,
            f"neighbouring outputs read neighbouring lines; the stride is {problem.stride}",
        )
    if _stages(problem, _COLUMNS[0]) < _FEWEST_STAGES:
        return False, f"a patch with the halo of a {problem.r} x {problem.s} filter does not fit"
    return True, ""


class Choice(NamedTuple):
    """How many columns a tile has."""

    columns: int


def choices(kernel, problem, device):
    """Return all `Choice` worth a try."""
    return [Choice(n) for n in _COLUMNS if _stages(problem, n) >= _FEWEST_STAGES]


def cost(kernel, problem, device):
    """Estimate the cycles of the best choice."""
    return estimate(kernel, problem, device, best(kernel, problem, device))


def _sizes(which, problem):
    """Return height, width and columns of the result, and the channels that are summed over."""
    p = problem
    return (p.h, p.w, p.c, p.k) if which == "dgrad" else (p.p, p.q, p.k, p.c)


def _blocks(which, problem, columns):
    height, width, all_columns, _ = _sizes(which, problem)
    patches = problem.n * math.ceil(height / _PATCH) * math.ceil(width / _PATCH)
    return patches * math.ceil(all_columns / columns)


def _steps(which, problem):
    return problem.r * problem.s * _sizes(which, problem)[3] // hopper.depth(problem)


def estimate(kernel, problem, device, choice):
    """Estimate the cycles of a choice as `hopper` does, whose constants are 7% too much here."""
    (columns,), which = choice, _which(kernel)
    rounds = math.ceil(_blocks(which, problem, columns) / device.sm_count)
    taps = problem.r * problem.s
    loading = LINE_BYTES * (columns + _patch_lines(problem) / taps) / 48
    step = max(_PATCH**2 * columns / 32 / 0.91, loading, 600)
    cycles = rounds * (_steps(which, problem) * step + 3100 + 0.16 * _PATCH**2 * columns)
    if which == "dgrad" and problem.itemsize == 4:
        cycles += 5700 + 8 * problem.k * problem.terms / 1100
    return 0.93 * cycles


best = gemm.cheapest(choices, estimate)


def takes_epilogue(kernel, epilogue):
    """Return whether `kernel` can end so: in every way, if its input is whole."""
    return not epilogue.source


def count_tiles(kernel, problem, device, choice=None):
    """Return of how many tiles `plan` can write statistics: patches."""
    height, width, _, _ = _sizes(_which(kernel), problem)
    return problem.n * math.ceil(height / _PATCH) * math.ceil(width / _PATCH)


def plan(kernel, problem, device, choice=None, epilogue=PLAIN):
    """Return the launch of a kernel of rung 11; `choice` is one of `choices`, or the `best`."""
    p, which = problem, _which(kernel)
    (columns,) = choice or best(kernel, problem, device)
    stages, dtype = _stages(p, columns), hopper.map_dtype(p)
    lines = hopper.depth(p)
    taps, patch = p.r * p.s, (_PATCH + p.s - 1, _PATCH + p.r - 1, 1)
    ready = None
    if which == "fprop":
        pixels = TensorMap(dtype, (p.c, p.w, p.h, p.n), (lines, *patch))
        filters = hopper.lines_map(dtype, (p.terms, p.k), columns)
    else:
        pixels = TensorMap(dtype, (p.k, p.q, p.p, p.n), (lines, *patch))
        if dtype == "bfloat16":
            filters = TensorMap(dtype, (p.c, taps, p.k), (lines, 1, lines))
        else:
            ready = hopper.make_ready(p.c, taps * p.k, True, 1, False, p.k)
            filters = hopper.lines_map(dtype, (taps * p.k, p.c), columns)
    patch_bytes = math.ceil(LINE_BYTES * _patch_lines(p) / 1024) * 1024
    main = Launch(
        kernel,
        (min(_blocks(which, p, columns), device.sm_count),),
        (128 * (_CONSUMERS + 1),),
        (p.n, p.c, p.h, p.w, p.k, p.p, p.q, *p.padding),
        (
            ("FILTER_R", p.r),
            ("FILTER_S", p.s),
            ("TILE_N", columns),
            ("STAGES", stages),
            ("BF16", int(dtype == "bfloat16")),
        ),
        _PATCHES * (patch_bytes + 16)
        + stages * (LINE_BYTES * columns + 16)
        + _CONSUMERS * hopper.EXCHANGE_BYTES
        + 16,
        (pixels, filters),
    )
    main = gemm.with_epilogue(main, epilogue)
    if epilogue.residual:
        return Sequence(((main, (0, 1, 4, 2, 3)),), (), 0)
    if not ready:
        return main
    launch, shape = ready
    return Sequence(((launch, (1, 3)), (main, (0, 3, 2))), (shape,), 1)
