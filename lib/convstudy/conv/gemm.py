# SPDX-License-Identifier: MIT
"""How the convolutions that are matrix products are cut: into tiles, and sums over blocks."""

import functools
import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from convstudy.compile import Launch, Sequence
from convstudy.conv.epilogue import PLAIN

_MOST_BLOCKS = 2**31 - 1
# Threads that are enough to hide what loads wait for, on a large GPU.
_BUSY = 2**18
# A line of a tile that runs along depth has as many bytes, and so has a vector.
_LINE_BYTES, _VECTOR_BYTES = 128, 16


@dataclass(frozen=True)
class _Tile:
    """Warps of a block along M and N, and what each computes: `conv2d_gemm.cuh`'s constants."""

    warps_m: int
    warps_n: int
    warp_m: int
    warp_n: int

    @property
    def m(self):
        return self.warps_m * self.warp_m

    @property
    def n(self):
        return self.warps_n * self.warp_n

    @property
    def threads(self):
        return 32 * self.warps_m * self.warps_n


class Choice(NamedTuple):
    """A tile, and over how many blocks each sum is split."""

    tile: object
    splits: int


@dataclass(frozen=True)
class _Family:
    """What kernels of one kind have in common.

    Attributes
    ----------
    tiles : tuple of _Tile
        To choose from: deep layers of one image have few rows, and narrow layers few columns.
    macs : float
        Multiply-adds of one multiprocessor in a cycle, about, if it has 8 warps.
    splits : bool
        Whether several blocks may share a sum.
    vector_out : int
        Numbers of the result that are stored at once; of bf16, if sums are not split.
    """

    tiles: tuple[_Tile, ...]
    macs: float
    stages: int = 3
    splits: bool = False
    vector_out: int = 4


_SIMT = (_Tile(2, 2, 64, 32), _Tile(1, 2, 64, 32), _Tile(2, 1, 64, 32), _Tile(1, 4, 64, 32))
_MMA = _Family(
    (_Tile(4, 2, 32, 32), _Tile(2, 2, 32, 32), _Tile(2, 4, 32, 32), _Tile(1, 4, 32, 32)),
    200,
    splits=True,
    vector_out=2,
)
# With one product a pair of operands, what warps read from shared memory is the limit: one that
# computes 64 x 64 reads half as much for each product as one that computes 32 x 32. Three products
# need the registers for a second set of sums.
_LARGE = (_Tile(2, 4, 64, 64), _Tile(2, 2, 64, 64), _Tile(2, 2, 64, 32), _Tile(2, 2, 32, 32))
_MMA_TF32 = _Family(_LARGE, 500, splits=True, vector_out=2)
_MMA_BF16 = _Family(_LARGE, 1000, splits=True, vector_out=4)
_FAMILIES = {
    ("5_vectors", "fp32"): _Family(_SIMT, 60, stages=1),
    ("6_stages", "fp32"): _Family(_SIMT, 60),
    ("7_warp_tiles", "fp32"): _Family(_SIMT, 90),
    ("8_mma", "fp32"): _MMA,
    ("8_mma", "tf32"): _MMA_TF32,
    ("8_mma", "bf16"): _MMA_BF16,
}
RUNGS = tuple(sorted({rung for rung, _ in _FAMILIES}))


def _rung(kernel):
    return kernel.split("_", 2)[2]


def _family(kernel, precision):
    # Where TF32 is asked for, a kernel without it does what it always does.
    rung = _rung(kernel)
    return _FAMILIES.get((rung, precision)) or _FAMILIES[rung, "fp32"]


def takes_bf16(kernel):
    """Return whether `kernel` takes arrays of bfloat16."""
    return (_rung(kernel), "bf16") in _FAMILIES


@dataclass(frozen=True)
class _Product:
    """The matrix product that a pass is: (rows x depth) times (depth x columns)."""

    rows: int
    columns: int
    depth: int
    # How much of depth is in one tile.
    tile_d: int
    # Which channels lie side by side in a, in b and in the result.
    of_a: int
    of_b: int
    of_out: int
    # Whether depth runs along the lines of a's tile, and of b's.
    along_a: bool
    along_b: bool

    @property
    def steps(self):
        return math.ceil(self.depth / self.tile_d)

    def shared_bytes(self, tile, stages):
        # Lines have 16 bytes more where depth runs along them, 8 numbers more where it does not.
        sizes = ((tile.m, self.along_a), (tile.n, self.along_b))
        return stages * sum(
            across * (_LINE_BYTES + 16) if along else _LINE_BYTES * (across + 8)
            for across, along in sizes
        )

    def blocks(self, tile):
        return math.ceil(self.rows / tile.m) * math.ceil(self.columns / tile.n)


def product(which, problem):
    """Return the matrix product of pass `which` of `problem`."""
    c, k, taps = problem.c, problem.k, problem.r * problem.s
    tile_d = _LINE_BYTES // problem.itemsize
    pixels_in, pixels_out = problem.n * problem.h * problem.w, problem.n * problem.p * problem.q
    if which == "fprop":
        return _Product(pixels_out, k, taps * c, tile_d, c, c, k, True, True)
    if which == "dgrad":
        return _Product(pixels_in, c, taps * k, tile_d, k, c, c, True, False)
    return _Product(k, taps * c, pixels_out, tile_d, k, c, taps * c, False, False)


def supports(kernel, problem, device):
    """Return (ok, reason) for a kernel of this kind; its name says which pass it is."""
    if device.compute_capability < (8, 0):
        return False, f"it needs cp.async (sm_80 or later); {device.name} is older"
    needed = product(_pass(kernel), problem)
    if max(problem.r * problem.s * max(problem.c, problem.k), needed.columns) >= 2**31:
        return False, "a filter has 2^31 weights or more; filter fewer channels at a time"
    tile, splits = best(kernel, problem, device)
    if needed.blocks(tile) * splits > _MOST_BLOCKS:
        return False, f"it needs more than {_MOST_BLOCKS} blocks; cut the batch"
    return True, ""


def _pass(kernel):
    return kernel.split("_")[1]


def choices(kernel, problem, device):
    """Return all `Choice` worth a try."""
    needed, family = product(_pass(kernel), problem), _family(kernel, problem.precision)
    return [
        Choice(tile, splits)
        for tile in family.tiles
        if needed.shared_bytes(tile, family.stages) <= device.shared_bytes_per_block
        for splits in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
        if splits == 1 or (family.splits and 4 * splits <= needed.steps)
    ]


def estimate(kernel, problem, device, choice):
    """Estimate the cycles of a choice."""
    needed, family = product(_pass(kernel), problem), _family(kernel, problem.precision)
    return _cost(needed, family, *choice, device)


def cheapest(choices, estimate):
    """Return ``best(kernel, problem, device)`` of a family: the choice estimated to cost least."""

    @functools.cache
    def best(kernel, problem, device):
        return min(
            choices(kernel, problem, device),
            key=lambda choice: estimate(kernel, problem, device, choice),
        )

    return best


best = cheapest(choices, estimate)


def _cost(needed, family, tile, splits, device):
    """Estimate the cycles of a choice, to compare choices by.

    A block takes some 3000 cycles to fill its stages and to write its tile; parts are written and
    read at some 2500 bytes a cycle. Neither has been measured yet. A warp reads its two operands
    from shared memory at 128 bytes a cycle, which is a line of a tile.
    """
    rounds = math.ceil(needed.blocks(tile) * splits / device.sm_count)
    busy = min(1, tile.threads / 256 * rounds)
    step = max(
        tile.m * tile.n * needed.tile_d / family.macs,
        tile.threads / 32 * (tile.warp_m + tile.warp_n),
    )
    multiplying = rounds * math.ceil(needed.steps / splits) * step / busy
    parts = 0 if splits == 1 else 4 * needed.rows * needed.columns * (splits + 1) / 2500 + 3000
    return multiplying + 3000 * rounds + parts


def takes_epilogue(kernel, epilogue):
    """Return whether `kernel` can end so: the tensor cores' do, in every way but two."""
    return _rung(kernel) == "8_mma" and not epilogue.statistics and not epilogue.residual


def plan(kernel, problem, device, choice=None, epilogue=PLAIN):
    """Return the launch of `kernel`, with a second one that adds up where sums are split.

    `choice` is one of `choices`, by default the `best`.
    """
    needed, family = product(_pass(kernel), problem), _family(kernel, problem.precision)
    tile, splits = choice or best(kernel, problem, device)
    p = problem
    vector = _VECTOR_BYTES // p.itemsize
    # Parts of sums are fp32.
    vector_out = family.vector_out if splits == 1 and not epilogue.wide else 2
    defines = (
        ("FILTER_R", p.r),
        ("FILTER_S", p.s),
        ("STRIDE_H", p.stride[0]),
        ("STRIDE_W", p.stride[1]),
        ("WARPS_M", tile.warps_m),
        ("WARPS_N", tile.warps_n),
        ("WARP_M", tile.warp_m),
        ("WARP_N", tile.warp_n),
        ("VECTOR_A", 1 if needed.of_a % vector else vector),
        ("VECTOR_B", 1 if needed.of_b % vector else vector),
        ("VECTOR_OUT", 1 if needed.of_out % vector_out else vector_out),
    )
    if family in (_MMA, _MMA_TF32):
        defines += (("TERMS", 3 if family is _MMA else 1),)
    elif family is _MMA_BF16:
        defines += (("BF16", 1), ("PARTS", int(splits > 1)))
    main = (
        kernel,
        (needed.blocks(tile) * splits,),
        (tile.threads,),
        (p.n, p.c, p.h, p.w, p.k, p.p, p.q, *p.padding, splits),
        defines,
        needed.shared_bytes(tile, family.stages),
    )
    launch = Launch(*main)
    if epilogue.source:
        launch = replace(launch, defines=(*launch.defines, *epilogue.source.constants))
    if splits == 1:
        return with_epilogue(launch, epilogue)
    size = needed.rows * needed.columns
    # Of x, w, bias, y and the parts; or of two operands, the result and the parts.
    fprop = _pass(kernel) == "fprop"
    main, adds = ((0, 1, None, 4), (4, 2, 3)) if fprop else ((0, 1, 3), (3, None, 2))
    adding = total(size, splits, needed.columns, p, epilogue)
    steps = (launch, main), (adding, adds)
    return Sequence(steps, ((splits * size,),), 0)


def with_epilogue(launch, epilogue):
    """Return `launch` of a kernel that ends as `epilogue` says."""
    return replace(
        launch,
        scalars=(*launch.scalars, *epilogue.sizes),
        defines=(*launch.defines, *epilogue.constants),
    )


def total(size, splits, columns, problem, epilogue=PLAIN):
    """Return the launch that adds up `splits` parts of `size` numbers each of a result."""
    threads, each, groups = 256, 4 if size >= 4 * _BUSY else 1, 1
    while size * groups < _BUSY and groups < 8 and splits >= 8 * groups:
        groups *= 2
    is_bf16 = problem.dtype == "bfloat16" and not epilogue.wide
    return Launch(
        "conv2d_splits_1_sum",
        (math.ceil(size / (threads // groups * each)),),
        (threads,),
        (
            *(np.int64(size), splits, columns),
            *((problem.p, problem.q) if epilogue.scatter else ()),
            *epilogue.sizes,
        ),
        (
            *(("THREADS", threads), ("EACH", each)),
            *((("GROUPS", groups),) if groups > 1 else ()),
            *((("BF16", 1),) if is_bf16 else ()),
            *replace(epilogue, wide=False).constants,
        ),
    )
