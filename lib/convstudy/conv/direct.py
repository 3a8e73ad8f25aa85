# SPDX-License-Identifier: MIT
"""How the convolutions of few input channels are cut: what a block does, and how many there are."""

import functools
import itertools
import math
from dataclasses import dataclass, replace

import numpy as np

from convstudy.compile import Launch, Sequence
from convstudy.conv import gemm
from convstudy.conv.epilogue import PLAIN

_MOST = 2**31 - 1
_MOST_CHANNELS = 4
# Of the filters that a block works on; a line of their weights has a few places more.
_TILE_K, _PITCH_K = 64, 68
# Numbers that a thread can hold: a row of the filter, a line of x, and in wgrad such a line and
# four sums a tap, by how many blocks share the registers of a multiprocessor.
_MOST_LINE_TAPS, _MOST_WINDOW = 28, 96
_MOST_SUMS = {3: 132, 2: 180}
# Parts that one thread adds up in a time that does not show.
_MOST_PARTS = 24


@dataclass(frozen=True)
class _Cut:
    """How a pass of a problem is cut.

    Attributes
    ----------
    blocks, warps, shared_words : int
        Of the launch, of a block, and of a block's dynamic shared memory.
    defines, scalars : tuple
        What the kernel takes besides those of every kernel here.
    parts : (int, int)
        How many parts of the result there are: so many times so many.
    """

    blocks: int
    shared_words: int
    warps: int = 4
    defines: tuple = ()
    scalars: tuple = ()
    parts: tuple[int, int] = (1, 1)


def takes_bf16(kernel):
    """Return whether `kernel` takes arrays of bfloat16: all do, little ones made fp32 first."""
    return True


def _which(kernel):
    return kernel.split("_")[1]


def supports(kernel, problem, device):
    """Return (ok, reason) for a kernel of rung 9; its name says which pass it is."""
    p, which = problem, _which(kernel)
    instead = f"use conv2d_{which}_8_mma"
    if device.compute_capability < (8, 0):
        return False, f"it needs cp.async (sm_80 or later); {device.name} is older"
    if p.c > _MOST_CHANNELS:
        return False, f"it takes at most {_MOST_CHANNELS} input channels; C={p.c}: {instead}"
    if p.s * p.c > _MOST_LINE_TAPS:
        return False, (
            f"a row of a filter has S C={p.s * p.c} weights and a thread holds at most "
            f"{_MOST_LINE_TAPS}; {instead}"
        )
    if max(p.h * p.w * p.c, p.k * p.terms) > _MOST:
        return False, "an image or the filters have 2^31 numbers or more; cut them"
    if which == "dgrad" and 4 % p.stride[1]:
        return False, (
            f"a thread's four pixels are to begin with the same tap, and a stride of "
            f"{p.stride[1]} along W does not divide 4; {instead}"
        )
    cut = best(which, p, device)
    if cut is None:
        return False, (
            f"a thread holds the line of x under its outputs, which is too long at a stride of "
            f"{p.stride[1]} along W; {instead}"
        )
    if 4 * cut.shared_words > device.shared_bytes_per_block:
        return False, (
            f"a block needs {4 * cut.shared_words} bytes of shared memory and has "
            f"{device.shared_bytes_per_block}; {instead}"
        )
    if max(cut.blocks, math.prod(_tiles(p, 2))) > _MOST:
        return False, "it needs more than 2^31 - 1 blocks; cut the batch"
    return True, ""


@functools.cache
def best(which, problem, device):
    """Return how a pass is cut, or None where a thread's part does not fit its registers."""
    return {"fprop": _fprop, "dgrad": _dgrad, "wgrad": _wgrad}[which](problem, device)


def takes_epilogue(kernel, epilogue):
    """Return whether `kernel` can end so: its results stay in one piece."""
    return not (epilogue.pitch or epilogue.source or epilogue.statistics or epilogue.residual)


def plan(kernel, problem, device, epilogue=PLAIN):
    """Return the launch of a kernel of rung 9, or several that add up to its result."""
    if problem.dtype != "float32":
        return _widened(kernel, problem, device, epilogue)
    return _plan(kernel, problem, device, epilogue)


def _plan(kernel, problem, device, epilogue):
    p, which = problem, _which(kernel)
    cut = best(which, p, device)
    defines = (
        ("FILTER_R", p.r),
        ("FILTER_S", p.s),
        ("STRIDE_H", p.stride[0]),
        ("STRIDE_W", p.stride[1]),
        ("CHANNELS", p.c),
        ("VECTOR", 1 if p.k % 4 else 4),
        ("WARPS", cut.warps),
        *cut.defines,
        *((("BF16", 1),) if p.dtype != "float32" else ()),
        *epilogue.constants,
    )
    launch = Launch(
        kernel,
        (cut.blocks,),
        (32 * cut.warps,),
        (p.n, p.c, p.h, p.w, p.k, p.p, p.q, *p.padding, *cut.scalars),
        defines,
        4 * cut.shared_words,
    )
    if which == "dgrad" and p.k > _TILE_K:
        rounds = [
            replace(launch, scalars=(*launch.scalars[:-1], k)) for k in range(0, p.k, _TILE_K)
        ]
        return Sequence(tuple((each, (0, 1, 2)) for each in rounds), (), 0)
    return launch if math.prod(cut.parts) == 1 else _with_sums(launch, p.k * p.terms, *cut.parts)


def _widened(kernel, problem, device, epilogue):
    """Return the launches for bf16: fp32 of what is little, the kernel, and bf16 of its result.

    Little are an input of few channels, its filters and the gradients of both. y and dy, as much as
    the convolution itself moves, stay bf16: copies to and from fp32 took as long as the kernel.
    Only where filters are no multiple of 4, which cannot be copied past the registers, they do not.
    """
    p, which = problem, _which(kernel)
    first_of_y = {"fprop": 2, "dgrad": 0, "wgrad": 1}[which]
    shapes = {
        "fprop": (p.x_shape, p.w_shape, p.y_shape),
        "dgrad": (p.y_shape, p.w_shape, p.x_shape),
        "wgrad": (p.x_shape, p.y_shape, p.w_shape),
    }[which]
    stays = {first_of_y} if p.k % 4 == 0 else set()
    inner_problem = p if stays else replace(p, dtype="float32", precision="fp32")
    inner = _plan(kernel, inner_problem, device, replace(epilogue, wide=False))
    result = 3 if which == "fprop" else 2
    places, temporaries = [0, 1, result], []
    for i in {0, 1, 2} - stays - ({2} if epilogue.wide else set()):
        temporaries.append(shapes[i])
        places[i] = result + len(temporaries)
    steps = [(_widen(math.prod(shapes[i])), (i, places[i])) for i in (0, 1) if places[i] != i]
    main = len(steps)
    arrays = [*places[:2], *((2,) if which == "fprop" else ()), places[2]]
    if isinstance(inner, Sequence):
        before = result + 1 + len(temporaries)
        arrays += [before + i for i in range(len(inner.temporaries))]
        temporaries += inner.temporaries
        main += inner.main
        steps += [
            (each, tuple(at if at is None else arrays[at] for at in ats))
            for each, ats in inner.steps
        ]
    else:
        steps.append((inner, tuple(arrays)))
    if places[2] != result:
        steps.append((gemm.total(math.prod(shapes[2]), 1, 1, p), (places[2], None, result)))
    return Sequence(tuple(steps), tuple(temporaries), main)


def _widen(size):
    threads, each = 256, 4
    return Launch(
        "conv2d_operand_2_widen",
        (math.ceil(size / (threads * each)),),
        (threads,),
        (np.int64(size),),
        (("THREADS", threads), ("EACH", each)),
    )


def _with_sums(launch, size, outer, inner):
    """Return `launch`, which leaves parts of a result, and the sums over its parts.

    Where there are many, threads add up every `inner`-th, and others what that leaves.
    """
    # Of two operands, the result, the parts and sums of parts.
    steps, temporaries = [(launch, (0, 1, 3))], [(outer * inner * size,)]
    if inner > 1:
        steps.append((_total(inner * size, outer), (3, None, 4)))
        temporaries.append((inner * size,))
    last, left = (4, inner) if inner > 1 else (3, outer)
    steps.append((_total(size, left), (last, None, 2)))
    return Sequence(tuple(steps), tuple(temporaries), 0)


def _total(size, parts):
    # The results are few: the smaller the blocks, the more multiprocessors fetch parts.
    threads = 64
    return Launch(
        "conv2d_splits_1_sum",
        (math.ceil(size / threads),),
        (threads,),
        (np.int64(size), parts, 1),
        (("THREADS", threads), ("EACH", 1)),
    )


def _bytes_of_y(problem):
    return problem.itemsize if problem.k % 4 == 0 else 4


def _line(problem, outputs):
    """Return how many numbers of a line of x lie under so many outputs, in whole vectors."""
    return math.ceil(((outputs - 1) * problem.stride[1] + problem.s) * problem.c / 4) * 4


def _tiles(problem, warps):
    """Return the tiles of fprop, 4 lines and 8 pixels a warp: how many lie side by side, and down.

    Side by side are those of other filters and images, too.
    """
    p = problem
    return math.ceil(p.k / _TILE_K) * p.n * math.ceil(p.q / (8 * warps)), math.ceil(p.p / 4)


def _fprop(p, device):
    if _line(p, 8) > _MOST_WINDOW:
        return None

    def cost(choice):
        # In tiles of a warp, whose halo is about a third of one; as much as half a tile of a block
        # is waiting for the first, and for the filters.
        warps, tiles = choice
        across, down = _tiles(p, warps)
        blocks = across * math.ceil(down / tiles)
        return _rounds(blocks, device) * (warps + 0.3) * (min(tiles, down) + 0.5)

    warps, tiles = min(itertools.product((4, 2), (1, 2, 4, 8, 16, 32)), key=cost)
    across, down = _tiles(p, warps)
    # With the filters and the 64 sums, a longer line needs more than 128 registers.
    together = 16 if _line(p, 8) <= 32 else 8
    pitch = (_line(p, 8 * warps) + 7) // 16 * 16 + 8
    return _Cut(
        across * math.ceil(down / tiles),
        p.terms * _PITCH_K + 2 * (3 * p.stride[0] + p.r) * pitch,
        warps,
        (("BLOCKS_PER_SM", together // warps),),
        (tiles,),
    )


def _rounds(blocks, device):
    return math.ceil(blocks / device.sm_count)


def _dgrad(p, device):
    (step_h, step_w), (pad_h, pad_w) = p.stride, p.padding
    live, width = (p.r - 1) // step_h + 1, 64
    lines_all = (pad_h + p.h - 1) // step_h + 1 - pad_h // step_h
    across = math.ceil((pad_w + p.w - pad_w // step_w * step_w) / width)

    def blocks(lines):
        return p.n * across * math.ceil(lines_all / lines)

    def cost(lines):
        # In lines that a multiprocessor full of blocks computes. Alone, a block takes 1.4 times as
        # long for one; the first lines have to be waited for, those of the halo loaded again.
        rounds = _rounds(blocks(lines), device)
        return max(rounds, 1.4) * (lines + (live - 1) / 2) + 2 * math.ceil(rounds / 3)

    lines = min(range(1, min(lines_all, 256) + 1), key=cost)
    columns = (width - 1) // step_w + (p.s - 1) // step_w + 1
    words = p.terms * _PITCH_K + (live + 1) * columns * _TILE_K * _bytes_of_y(p) // 4
    return _Cut(blocks(lines), words, scalars=(lines, 0))


def _wgrad(p, device):
    line, taps = _line(p, 4), p.s * p.c
    fitting = ((blocks, (most - line) // (4 * taps)) for blocks, most in _MOST_SUMS.items())
    together, rows = next((each for each in fitting if each[1] > 0), (0, 0))
    if not rows:
        return None
    chunks = math.ceil(p.r / min(p.r, rows))
    rows = math.ceil(p.r / chunks)
    others = math.ceil(p.k / _TILE_K) * chunks
    down = p.n * math.ceil(p.p / 4)

    def tiles(steps):
        return down * math.ceil(p.q / (8 * steps))

    # In eight pixels a line: what a tile takes besides is about a third of that.
    steps = min((4, 2), key=lambda s: _rounds(tiles(s) * others, device) * (s + 0.3))
    slots = max(1, device.sm_count * together // others)
    parts = (math.ceil(tiles(steps) / math.ceil(tiles(steps) / slots)), 1)
    if parts[0] > _MOST_PARTS:
        outer = math.isqrt(parts[0] - 1) + 1
        parts = (outer, math.ceil(parts[0] / outer))
    stage = 8 * steps * _TILE_K * _bytes_of_y(p) + (3 * p.stride[0] + rows) * _line(p, 8 * steps)
    return _Cut(
        others * math.prod(parts),
        max(2 * stage, 4 * rows * taps * _PITCH_K),
        defines=(("ROWS", rows), ("STEPS", steps), ("BLOCKS_PER_SM", together)),
        scalars=(math.prod(parts),),
        parts=parts,
    )
