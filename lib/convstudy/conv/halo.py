# SPDX-License-Identifier: MIT
"""How rung 11 is cut: patches of pixels with their halo, and filters tile by tile."""

import math
from typing import NamedTuple

from convstudy.compile import Launch, Sequence
from convstudy.conv import gemm, hopper
from convstudy.conv.epilogue import PLAIN
from convstudy.tensor_map import LINE_BYTES, TensorMap

# conv2d_wgmma.cuh's constants.
_PIXELS, _PATCHES, _CONSUMERS = 256, 2, 2
_FEWEST_STAGES = 3


class Choice(NamedTuple):
    """How many filters a tile has; and whether warpgroups take turns, with a tile for each."""

    columns: int
    pingpong: bool = False

    @property
    def height(self):
        """Lines of a patch of pixels."""
        return 32 if self.pingpong else 16

    @property
    def width(self):
        """Pixels of its lines."""
        return _PIXELS // self.height

    def patch_lines(self, problem):
        """Return the pixels of a patch with its halo."""
        return (self.height + problem.r - 1) * (self.width + problem.s - 1)

    def patch_bytes(self, problem):
        """Return what a patch takes of shared memory, in whole kilobytes."""
        return math.ceil(LINE_BYTES * self.patch_lines(problem) / 1024) * 1024

    def stages(self, problem):
        """Return how many tiles of filters fit beside the patches."""
        used = _PATCHES * self.patch_bytes(problem) + _CONSUMERS * hopper.EXCHANGE_BYTES
        room = hopper.SHARED_BYTES - hopper.RESERVED_BYTES - used
        return min(hopper.MOST_STAGES, room // (LINE_BYTES * self.columns))


_CHOICES = (Choice(64), Choice(128), Choice(64, pingpong=True))


def _which(kernel):
    return kernel.split("_")[1]


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
    if not choices(kernel, problem, device):
        return False, f"a patch with the halo of a {problem.r} x {problem.s} filter does not fit"
    return True, ""


def choices(kernel, problem, device):
    """Return all `Choice` worth a try."""
    return [
        choice
        for choice in _CHOICES
        if choice.stages(problem) >= _FEWEST_STAGES
        and not (choice.pingpong and problem.dtype == "bfloat16")
    ]


def cost(kernel, problem, device):
    """Estimate the cycles of the best choice."""
    return estimate(kernel, problem, device, best(kernel, problem, device))


def _sizes(which, problem):
    """Return height, width and columns of the result, and the channels that are summed over."""
    p = problem
    return (p.h, p.w, p.c, p.k) if which == "dgrad" else (p.p, p.q, p.k, p.c)


def _patches(which, problem, choice):
    height, width, *_ = _sizes(which, problem)
    return problem.n * math.ceil(height / choice.height) * math.ceil(width / choice.width)


def _blocks(which, problem, choice):
    columns = _sizes(which, problem)[2]
    return _patches(which, problem, choice) * math.ceil(columns / choice.columns)


def _steps(which, problem):
    return problem.r * problem.s * _sizes(which, problem)[3] // hopper.depth(problem)


def estimate(kernel, problem, device, choice):
    """Estimate the cycles of a choice as `hopper` does, whose constants are 7% too much here."""
    columns, which = choice.columns, _which(kernel)
    rounds = math.ceil(_blocks(which, problem, choice) / device.sm_count)
    taps = problem.r * problem.s
    loading = LINE_BYTES * (columns + choice.patch_lines(problem) / taps) / 48
    step = max(_PIXELS * columns / 32 / 0.91, loading, 600)
    multiplying, writing = _steps(which, problem) * step, 3100 + 0.16 * _PIXELS * columns
    cycles = rounds * (multiplying + writing)
    if choice.pingpong:
        cycles = rounds * max(multiplying, (multiplying + writing) / 2) + writing
    if which == "dgrad" and problem.itemsize == 4:
        cycles += 5700 + 8 * problem.k * problem.terms / 1100
    return 0.93 * cycles


best = gemm.cheapest(choices, estimate)


def takes_epilogue(kernel, epilogue):
    """Return whether `kernel` can end so: in every way, if its input is whole."""
    return not epilogue.source


def count_tiles(kernel, problem, device, choice=None):
    """Return of how many tiles `plan` can write statistics: patches."""
    return _patches(_which(kernel), problem, choice or best(kernel, problem, device))


def plan(kernel, problem, device, choice=None, epilogue=PLAIN):
    """Return the launch of a kernel of rung 11; `choice` is one of `choices`, or the `best`."""
    p, which = problem, _which(kernel)
    choice = choice or best(kernel, problem, device)
    columns, stages, dtype = choice.columns, choice.stages(p), hopper.map_dtype(p)
    lines = hopper.depth(p)
    taps, patch = p.r * p.s, (choice.width + p.s - 1, choice.height + p.r - 1, 1)
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
    main = Launch(
        kernel,
        (min(_blocks(which, p, choice), device.sm_count),),
        (128 * (_CONSUMERS + 1),),
        (p.n, p.c, p.h, p.w, p.k, p.p, p.q, *p.padding),
        (
            ("FILTER_R", p.r),
            ("FILTER_S", p.s),
            ("PINGPONG", 1) if choice.pingpong else ("TILE_N", columns),
            ("STAGES", stages),
            ("BF16", int(dtype == "bfloat16")),
        ),
        _PATCHES * (choice.patch_bytes(p) + 16)
        + stages * (LINE_BYTES * columns + 16)
        + _CONSUMERS * (hopper.EXCHANGE_BYTES + 24),
        (pixels, filters),
    )
    main = gemm.with_epilogue(main, epilogue)
    if epilogue.residual:
        return Sequence(((main, (0, 1, 4, 2, 3)),), (), 0)
    if not ready:
        return main
    launch, shape = ready
    return Sequence(((launch, (1, 3)), (main, (0, 3, 2))), (shape,), 1)
