# SPDX-License-Identifier: MIT
"""How rung 11 is cut backwards to the filters: taps and channels, filters, and runs of pixels."""

import math
from typing import NamedTuple

from convstudy.compile import Launch, Sequence
from convstudy.conv import gemm, hopper
from convstudy.conv.epilogue import PLAIN
from convstudy.tensor_map import LINE_BYTES, TensorMap

# conv2d_wgmma.cuh's and conv2d_wgrad_11_halo.cu's constants.
_CONSUMERS = 3
# What a window has beyond a tile's pixels.
_MORE = 8
# Channels of a tile: two lines.
_CHANNELS = 64
_THREADS = 128 * (_CONSUMERS + 1)
_MOST_SPLITS = 264


class Choice(NamedTuple):
    """How the work is cut.

    Attributes
    ----------
    rows : int
        Rows of taps that a tile has.
    columns : int
        Filters that it has.
    splits : int
        Over how many blocks each sum is split.
    """

    rows: int
    columns: int
    splits: int = 1

    def is_turned_before(self, problem):
        """Whether a launch turns dy before, and not the kernel itself."""
        return self.rows == 1 and problem.itemsize == 4

    @property
    def m(self):
        return self.rows * _CONSUMERS * _CHANNELS

    def blocks(self, problem):
        """Return how many tiles there are."""
        tiles = problem.c // _CHANNELS * (problem.r // self.rows)
        return tiles * math.ceil(problem.k / self.columns)

    def stage_bytes(self, problem):
        lines = self.rows * (_pixels(problem) + _MORE) * _CHANNELS // hopper.depth(problem)
        return LINE_BYTES * (lines + self.columns)

    def stages(self, problem):
        room = hopper.SHARED_BYTES - hopper.RESERVED_BYTES - _CONSUMERS * hopper.EXCHANGE_BYTES
        return min(hopper.MOST_STAGES, room // self.stage_bytes(problem))


def _pixels(problem):
    """Return the pixels of a tile: as many as a line has channels."""
    return hopper.depth(problem)


# As many sums as registers hold.
_TILES = (Choice(3, 64), Choice(1, 128))


def takes_bf16(kernel):
    """Return whether `kernel` takes arrays of bfloat16: it does."""
    return True


def supports(kernel, problem, device):
    """Return (ok, reason) for the kernel of rung 11 that goes back to the filters."""
    p = problem
    ok, reason = hopper.supports(kernel, problem, device)
    if not ok:
        return ok, reason
    if p.precision == "fp32":
        return False, "its pixels are rounded on their way, which is not fp32; use tf32"
    if (p.r, p.s) != (3, 3):
        return False, f"a warpgroup has a tap of a row, or a row; the filter is {p.r} x {p.s}"
    if p.stride != (1, 1):
        return False, f"neighbouring outputs read neighbouring lines; the stride is {p.stride}"
    if p.c % _CHANNELS:
        return False, f"it takes {_CHANNELS} channels at once; C={p.c} is no multiple of that"
    if p.n * p.p * _filled(p) >= 2**31:
        return False, "pixels are 2^31 or more; cut the batch"
    return True, ""


def _filled(problem):
    """Return the places of a line of dy, filled up."""
    return math.ceil(problem.q / _pixels(problem)) * _pixels(problem)


def _steps(problem):
    return problem.n * problem.p * _filled(problem) // _pixels(problem)


def choices(kernel, problem, device):
    """Return all `Choice` worth a try: sums that fill half the multiprocessors, all, or twice."""
    found = []
    for tile in _TILES:
        if tile.columns > 64 and problem.k <= 64:
            continue
        most = min(_MOST_SPLITS, _steps(problem) // 2)
        splits = {halves * device.sm_count // (2 * tile.blocks(problem)) for halves in (1, 2, 4)}
        found += [
            tile._replace(splits=count)
            for count in sorted({1, *splits})
            if count == 1 or 1 < count <= most
        ]
    return found


def cost(kernel, problem, device):
    """Estimate the cycles of the best choice."""
    return estimate(kernel, problem, device, best(kernel, problem, device))


def estimate(kernel, problem, device, choice):
    """Estimate the cycles of a choice, with constants fitted to some 60 timings on an H200."""
    p, items = problem, choice.blocks(problem) * choice.splits
    rounds = math.ceil(items / device.sm_count)
    steps = math.ceil(_steps(p) / choice.splits)
    # Of a product of 64 rows and 8 pixels; what reads the first operand is not hidden whole.
    product = choice.columns / 2 + 14
    step = max(choice.m / 16 * product, choice.stage_bytes(p) / 48)
    cycles = rounds * (steps * step + 3100 + 0.16 * choice.m * choice.columns)
    if _has_parts(p, choice):
        cycles += 4000 + 4 * p.k * p.terms * choice.splits / 2000
    if choice.is_turned_before(p):
        cycles += 5700 + 8 * p.n * p.p * p.q * p.k / 2300
    elif p.itemsize == 4:
        cycles *= 1.2  # what turns keeps shared memory from what multiplies
    return cycles


def _has_parts(problem, choice):
    # Blocks write float32.
    return choice.splits > 1 or problem.dtype == "bfloat16"


best = gemm.cheapest(choices, estimate)


def takes_epilogue(kernel, epilogue):
    """Return whether `kernel` can end so: in every way."""
    return True


def plan(kernel, problem, device, choice=None, epilogue=PLAIN):
    """Return the launches of the kernel; `choice` is one of `choices`, or the `best`."""
    p = problem
    choice = choice or best(kernel, p, device)
    filled, lines, dtype = _filled(p), hopper.depth(p), hopper.map_dtype(p)
    source = epilogue.source
    pitches = (source.pitch, source.line, source.image) if source else None
    window = lines, _pixels(p) + _MORE, 1, 1
    x = TensorMap(dtype, (p.c, p.w, p.h, p.n), window, pitches=pitches)
    temporaries, steps, second = [], [], 1
    if not choice.is_turned_before(p):
        dy = TensorMap(dtype, (p.k, p.q, p.p, p.n), (lines, _pixels(p), 1, 1))
    else:
        depth, second = p.n * p.p * filled, 3
        dy = hopper.lines_map(dtype, (depth, p.k), choice.columns)
        temporaries.append((p.k, depth))
        steps.append((_turning(p, depth, filled), (1, 3)))
    has_parts = _has_parts(p, choice)
    main = Launch(
        kernel,
        (min(choice.blocks(p) * choice.splits, device.sm_count),),
        (_THREADS,),
        (p.n, p.c, p.h, p.w, p.k, p.p, p.q, *p.padding, choice.splits),
        (
            ("FILTER_R", p.r),
            ("FILTER_S", p.s),
            ("CHANNELS", p.c),
            ("WINDOWS", choice.rows),
            ("TILE_N", choice.columns),
            ("STAGES", choice.stages(p)),
            ("BF16", int(dtype == "bfloat16")),
            ("PARTS", int(has_parts)),
        ),
        choice.stages(p) * (choice.stage_bytes(p) + 24) + _CONSUMERS * hopper.EXCHANGE_BYTES + 16,
        (x, dy),
    )
    steps.append((main, (0, second, 3 + len(temporaries) if has_parts else 2)))
    if has_parts:
        size = p.k * p.terms
        adding = gemm.total(size, choice.splits, p.k, p, epilogue)
        steps.append((adding, (3 + len(temporaries), None, 2)))
        temporaries.append((choice.splits * size,))
    if len(steps) == 1:
        return main
    return Sequence(tuple(steps), tuple(temporaries), int(second == 3))


def _turning(problem, depth, filled):
    """Return the launch that turns dy, each line of it filled up with zeros."""
    p = problem
    return Launch(
        "conv2d_operand_1_split",
        (depth // 32 * math.ceil(p.k / 64),),
        (256,),
        (p.k, depth, depth, p.q, filled),
        (("TURN", 1), ("TERMS", 1), ("ORDER", 0), ("VECTOR", 4), ("GAPS", 1)),
    )
