# SPDX-License-Identifier: MIT
"""How rung 10's matrix products are cut, what the TMA brings, and what is made ready before."""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from convstudy.compile import Launch, Sequence
from convstudy.conv import gemm
from convstudy.conv.epilogue import PLAIN
from convstudy.tensor_map import LINE_BYTES, TensorMap

# What blocks of one multiprocessor share, less what the system takes of each, and the barriers.
SHARED_BYTES = 228 * 1024
RESERVED_BYTES = 1024 + 256
MOST_STAGES = 8
# In which a warpgroup's lanes exchange what they store.
EXCHANGE_BYTES = 4 * 2048
# Warps that turn an operand: one for each 32 columns of the tiles that have them.
_TURNERS = 2
# How far a corner of an im2col map may lie outside (cuTensorMapEncodeIm2col, four dimensions).
_FARTHEST = 127
# How many blocks may share a sum as a cluster, on every GPU that has clusters.
_CLUSTERS = (2, 4, 8)
# An H200 takes larger ones, as long as there are few. It ran 6 at a time: of 8, some one after the
# other, at 1.4 times what parts take.
_LARGE_CLUSTER, _MOST_LARGE = 16, 6
_MOST_SPLITS = 128
# Of DEPTH, that a block has of the tiles that all share.
_FEWEST_STEPS = 4
# For fp32, in steps of DEPTH: so few that what a product drops shows (badly scaled, an H200's error
# fell by a third or half, in 1.1 times the time); so many that rounding does, where cuDNN rounds
# less: backward, whose error it halved for 1.1 times the time to split 4,608 terms.
_SHORT, _LONGEST_BACK = 10, 96


@dataclass(frozen=True)
class _Tile:
    """Warpgroups that consume, each one's rows by 64, columns, blocks of a multiprocessor.

    And whether the filters of dgrad are the first operand; whether warps turn the second one of
    wgrad, instead of a launch before.
    """

    consumers: int
    rows_64: int
    n: int
    blocks: int
    filters_first: bool = False
    turns: bool = False

    @property
    def m(self):
        return 64 * self.consumers * self.rows_64

    @property
    def threads(self):
        return 128 * (self.consumers + 1)

    def stage_bytes(self, terms):
        return LINE_BYTES * (self.m + self.n * (2 if terms == 3 else 1))

    def _behind_bytes(self, cluster):
        sums = 4 * self.m * self.n if cluster > 1 else 0
        return sums + EXCHANGE_BYTES * self.consumers

    def stages(self, terms, cluster=1):
        room = SHARED_BYTES // self.blocks - RESERVED_BYTES - self._behind_bytes(cluster)
        return min(MOST_STAGES, room // self.stage_bytes(terms))

    def shared_bytes(self, terms, cluster=1):
        stages, barriers = self.stages(terms, cluster), 24 if self.turns else 16
        return stages * (self.stage_bytes(terms) + barriers) + self._behind_bytes(cluster) + 16


# fp32 needs a second set of sums and the parts of its rows in registers.
_TILES_SPLIT = (_Tile(2, 1, 128, 1), _Tile(1, 1, 128, 2), _Tile(2, 2, 64, 1), _Tile(1, 1, 64, 3))
# Of 192 columns, three taps of 64 channels, bf16's wgrad was to fetch pixels for three tiles that
# it fetches for nine; with tiles chosen by estimate it took 1.3 times as long in U-Net's step, and
# where clusters share such a tile's sums it was wrong.
_TILES_WHOLE = (
    *(_Tile(2, 1, 256, 1), _Tile(2, 2, 128, 1), _Tile(2, 1, 128, 1), _Tile(1, 2, 128, 2)),
    *(_Tile(2, 2, 64, 1), _Tile(2, 1, 64, 2), _Tile(1, 1, 128, 2), _Tile(1, 1, 64, 3)),
)


class Choice(NamedTuple):
    """How the work is cut.

    Attributes
    ----------
    tile : _Tile
    splits : int
        Over how many blocks each sum is split.
    rounds : int, optional
        After so many rounds, in which each block has a tile for itself, all blocks share what is
        left evenly: a run of the remaining tiles' sums each, wherever in a tile that begins and
        ends (stream-K; Osama et al., PPoPP 2023).
    """

    tile: object
    splits: int = 1
    rounds: int | None = None


@dataclass(frozen=True)
class _Pass:
    """The matrix product of a pass, with rows and columns as its kernel has them."""

    rows: int
    columns: int
    depth: int

    def blocks(self, tile):
        return math.ceil(self.rows / tile.m) * math.ceil(self.columns / tile.n)


def _terms(problem):
    return 3 if problem.precision == "fp32" else 1


def _cluster(tile, splits, terms, device, sums):
    """Return how many blocks share each of `sums` tiles as a cluster: all that share it, or 1."""
    # The emulator runs one block at a time. For fp32, room for the sums leaves so few stages that
    # a cluster took up to twice the time of parts.
    if not device.is_gpu or terms == 3 or tile.n // 8 % splits:
        return 1
    is_large = splits == _LARGE_CLUSTER and sums <= _MOST_LARGE * tile.blocks
    if splits not in _CLUSTERS and not is_large:
        return 1
    return splits if tile.stages(terms, splits) >= 2 else 1


def _product(which, problem, tile):
    needed = gemm.product(which, problem)
    if tile.filters_first or (which == "wgrad" and problem.itemsize == 4):
        return _Pass(needed.columns, needed.rows, needed.depth)
    return _Pass(needed.rows, needed.columns, needed.depth)


def depth(problem):
    """Return how many places of DEPTH a line of 128 bytes holds."""
    return LINE_BYTES // problem.itemsize


def takes_bf16(kernel):
    """Return whether `kernel` takes arrays of bfloat16: all do."""
    return True


def _which(kernel):
    return kernel.split("_")[1]


def supports(kernel, problem, device):
    """Return (ok, reason) for a kernel of rung 10; its name says which pass it is."""
    p, which = problem, _which(kernel)
    if device.compute_capability != (9, 0):
        return False, f"it needs Hopper's wgmma (compute capability 9.0); {device.name} has none"
    if which == "dgrad" and p.stride != (1, 1):
        return False, f"it turns filters, which serves a stride of 1; the stride is {p.stride}"
    lines = depth(p)
    # Forward, K is the columns of the result alone: they are stored by vectors.
    vector = lines // 8 if which == "fprop" else lines
    for letter, channels, whole in (("C", p.c, lines), ("K", p.k, vector)):
        if channels % whole:
            return False, (
                f"it takes lines of {whole} channels; {letter}={channels} is no multiple of that"
            )
    if max(p.r, p.s) + max(p.padding) > _FARTHEST or max(p.stride) > 8:
        return False, "filter, padding or stride is larger than the TMA walks by itself"
    if min(p.r - 1 - p.padding[0], p.s - 1 - p.padding[1]) < 0 and which == "dgrad":
        return False, f"padding {p.padding} is more than the filter reaches; crop dy first"
    if max(p.r * p.s * max(p.c, p.k), p.n * max(p.h * p.w, p.p * p.q)) >= 2**31:
        return False, "pixels or weights are 2^31 or more; cut the batch"
    return True, ""


def choices(kernel, problem, device):
    """Return all `Choice` worth a try."""
    which, terms = _which(kernel), _terms(problem)
    tiles = _TILES_SPLIT if terms == 3 else _TILES_WHOLE
    if which == "dgrad" and problem.precision == "tf32":
        tiles += tuple(replace(tile, filters_first=True) for tile in tiles)
    if which == "wgrad" and problem.precision == "tf32":
        # Wider tiles are turned faster before: shared memory has little to spare.
        tiles += tuple(replace(tile, turns=True) for tile in tiles if tile.n == 64)
    found = []
    for tile in tiles:
        needed = _product(which, problem, tile)
        # Sums that fill the multiprocessors once, twice or thrice; and those that clusters share.
        slots, blocks = device.sm_count * tile.blocks, needed.blocks(tile)
        steps = math.ceil(needed.depth / depth(problem))
        most = min(_MOST_SPLITS, steps // 2)
        least = math.ceil(steps / _LONGEST_BACK) if terms == 3 and which == "dgrad" else 1
        splits = {least, *_CLUSTERS, *(times * slots // blocks for times in (1, 2, 3))}
        splits |= {_cluster(tile, _LARGE_CLUSTER, terms, device, blocks)}
        found += [
            Choice(tile, count)
            for count in sorted(splits)
            if count == least or least < count <= most
        ]
        # Two sets of rows in registers leave none for what is shared there.
        is_full = (tile.filters_first or which == "wgrad") and problem.precision == "tf32"
        if least > 1 or (is_full and tile.blocks * tile.rows_64 * tile.n == 512):
            continue
        # Whole rounds but one, or all of them, before the rest is shared.
        whole = blocks // slots
        found += [
            Choice(tile, rounds=rounds)
            for rounds in (whole - 1, whole)
            if rounds >= 0
            and blocks % slots
            and _FEWEST_STEPS * slots <= (blocks - rounds * slots) * steps < 2**31
        ]
    return found


def cost(kernel, problem, device):
    """Estimate the cycles of the best choice."""
    return estimate(kernel, problem, device, best(kernel, problem, device))


def estimate(kernel, problem, device, choice):
    """Estimate the cycles of a choice, to compare choices by.

    The constants are fitted to 6,300 timings of U-Net's layers on an H200, for 1, 16 and 64 images.
    What is chosen by them takes 0 to 11% longer than the best of those timed, over all layers of a
    pass, in one precision and batch, and 3% on average; fitted to half of the layers, it took 5%
    longer at the others.
    """
    (tile, splits, whole), which, terms = choice, _which(kernel), _terms(problem)
    needed = _product(which, problem, tile)
    cluster = _cluster(tile, splits, terms, device, needed.blocks(tile))
    items = needed.blocks(tile) * splits
    together = tile.blocks
    if whole is None:
        together = min(together, math.ceil(items / device.sm_count))
    rounds = math.ceil(items / (device.sm_count * together))
    steps = math.ceil(math.ceil(needed.depth / depth(problem)) / splits)
    # A multiprocessor multiplies 1024 pairs of TF32 in a cycle, or twice as many of bf16, of
    # which a line holds as many more; 52 bytes a cycle come from L2.
    multiplying = together * terms * tile.m * tile.n / 32 / 0.86
    loading = together * tile.stage_bytes(terms) / 52
    # What a warpgroup waits for is hidden by others: more of it where an operand passes through
    # its registers.
    is_direct = terms == 1 and (which != "wgrad" or problem.itemsize == 2)
    least, waiting = (240, 85) if is_direct else (360, 350)
    step = max(multiplying, loading, least) + waiting / (together * tile.consumers)
    writing = 2300 + 0.09 * together * tile.m * tile.n
    cycles = rounds * (steps * step + writing)
    if whole is not None:
        slots = device.sm_count * tile.blocks
        shared = needed.blocks(tile) - whole * slots
        # A block gives a tile's sums, and one takes those of all that had a part of its tile.
        handed = together * (1 + math.ceil(slots / shared)) * 4 * tile.m * tile.n / 63
        cycles = whole * (steps * step + writing) + shared * steps / slots * step + writing
        cycles = 1.09 * (cycles + handed + 8600)
    elif cluster > 1:
        cycles = 1.05 * cycles + 2050 + 440 * splits
    elif splits > 1:
        cycles += 6700 + 4 * needed.rows * needed.columns * splits / 2500
    if made := _bytes_made_ready(which, problem, tile, terms):
        cycles += 4800 + made / 2450
    if tile.turns:
        cycles *= 1.2  # what turns keeps shared memory from what multiplies
    if tile.consumers == 2 and tile.n == 64:
        cycles *= 1.1  # by what is not known
    return cycles


best = gemm.cheapest(choices, estimate)


def _bytes_made_ready(which, problem, tile, terms):
    """Return the bytes that are read and written before the products begin."""
    is_ready = tile.filters_first or tile.turns or (which == "fprop" and terms == 1)
    if problem.itemsize == 2 or is_ready:
        return 0
    p = problem
    numbers = p.n * p.p * p.q * p.k if which == "wgrad" else p.k * p.terms
    return 4 * numbers * (3 if terms == 3 else 2)


def takes_epilogue(kernel, epilogue):
    """Return whether `kernel` can end so: in every way."""
    return True


def count_tiles(kernel, problem, device, choice=None):
    """Return of how many tiles `plan` can write statistics: none where blocks share sums."""
    tile, splits, rounds = choice or best(kernel, problem, device)
    if splits > 1 or rounds is not None:
        return 0
    return math.ceil(_product(_which(kernel), problem, tile).rows / tile.m)


def plan(kernel, problem, device, choice=None, epilogue=PLAIN):
    """Return the launches of a kernel of rung 10; `choice` is one of `choices`, or the `best`."""
    p, which, terms = problem, _which(kernel), _terms(problem)
    tile, splits, rounds = choice or best(kernel, problem, device)
    needed = _product(which, p, tile)
    steps = math.ceil(math.ceil(needed.depth / depth(p)) / splits)
    cluster = _cluster(tile, splits, terms, device, needed.blocks(tile))
    if epilogue.statistics and (splits > 1 or rounds is not None):
        raise ValueError(
            f"{kernel}: {splits if splits > 1 else 'some'} blocks share a sum, and none has what "
            f"statistics are of; take a choice that splits none"
        )
    defines = (
        ("FILTER_R", p.r),
        ("FILTER_S", p.s),
        ("STRIDE_H", p.stride[0]),
        ("STRIDE_W", p.stride[1]),
        ("CONSUMERS", tile.consumers),
        ("ROWS_64", tile.rows_64),
        ("TILE_N", tile.n),
        ("STAGES", tile.stages(terms, cluster)),
        ("BLOCKS_PER_SM", tile.blocks),
        ("BF16", int(p.dtype == "bfloat16")),
        ("TERMS", terms),
        ("PARTS", int(splits > cluster)),
        ("CLUSTER", cluster),
        *((("FILTERS_FIRST", 1),) if tile.filters_first else ()),
        *((("TURNERS", _TURNERS),) if tile.turns else ()),
        *((("STREAM", 1),) if rounds is not None else ()),
        *((("SHORT", 1),) if terms == 3 and steps <= _SHORT else ()),
    )
    ready, maps = _OPERANDS[which](p, tile, terms, epilogue.source)
    grid = slots = device.sm_count * tile.blocks
    if rounds is None:
        grid = min(needed.blocks(tile) * splits, slots // cluster * cluster)
    main = Launch(
        kernel,
        (grid,),
        (tile.threads,),
        (
            *(p.n, p.c, p.h, p.w, p.k, p.p, p.q, *p.padding),
            splits if rounds is None else needed.blocks(tile) - rounds * slots,
        ),
        defines,
        tile.shared_bytes(terms, cluster),
        maps,
    )
    if splits == cluster:
        main = gemm.with_epilogue(main, epilogue)
    handed = ()
    if rounds is not None:
        handed = (slots, tile.m, tile.n), (slots, 4 * tile.consumers)
    return _sequence(which, ready, main, needed, splits // cluster, p, epilogue, handed)


def _sequence(which, ready, main, needed, splits, problem, epilogue, handed):
    """Return `main` between what makes its second operand ready and what adds its parts."""
    given = 3
    if which == "fprop":
        given = 5 if epilogue.statistics or epilogue.residual else 4
    steps, temporaries, second, zeros = [], [], 1, ()
    if ready:
        second = given
        steps.append((ready[0], (1, second)))
        temporaries.append(ready[1])
    bias, result = (2, 3) if which == "fprop" else (None, 2)
    out = given + len(temporaries) if splits > 1 else result
    pointers = (None if splits > 1 else bias, out) if which == "fprop" else (out,)
    residual = (4,) if epilogue.residual else ()
    if splits == 1:
        pointers = residual + pointers
    if epilogue.statistics:
        pointers += (4,)
    if handed:
        zeros = (len(temporaries) + 1,)
        pointers += tuple(given + len(temporaries) + i for i in range(2))
        temporaries += handed
    steps.append((main, (0, second, *pointers)))
    if splits > 1:
        size = needed.rows * needed.columns
        temporaries.append((splits * size,))
        adding = gemm.total(size, splits, needed.columns, problem, epilogue)
        steps.append((adding, (out, bias, *residual, result)))
    if len(steps) == 1 and not temporaries and not residual:
        return main
    return Sequence(tuple(steps), tuple(temporaries), 1 if ready else 0, zeros)


def make_ready(lines, depth, turn, terms, order, inner=None):
    """Return the launch that makes an operand ready, and the shape of what it makes."""
    padded, vector = -(-depth // 32) * 32, 1 if lines % 4 else 4
    launch = Launch(
        "conv2d_operand_1_split",
        (padded // 32 * math.ceil(lines / 64),),
        (256,),
        (lines, depth, padded, inner or depth, depth // inner if inner else 1),
        (("TURN", int(turn)), ("TERMS", terms), ("ORDER", int(order)), ("VECTOR", vector)),
    )
    return launch, (2 if terms == 3 else 1, lines, padded)


def map_dtype(problem):
    if problem.dtype == "bfloat16":
        return "bfloat16"
    return "tf32" if problem.precision == "tf32" else "float32"


def lines_map(dtype, sizes, lines):
    """Return the map of a matrix whose lines lie side by side, `lines` of them at a time."""
    return TensorMap(dtype, sizes, (LINE_BYTES // (2 if dtype == "bfloat16" else 4), lines))


def _pixels(dtype, sizes, pixels, lower, upper, steps=(1, 1), source=None):
    """Return the im2col map of an array of `sizes` (channels, width, height, images)."""
    channels = LINE_BYTES // (2 if dtype == "bfloat16" else 4)
    pitches = (source.pitch, source.line, source.image) if source else None
    return TensorMap(dtype, sizes, (channels, pixels), lower, upper, steps, pitches)


def _x_map(problem, dtype, pixels, source):
    p = problem
    lower = (-p.padding[1], -p.padding[0])
    upper = tuple(
        (count - 1) * step + low - (size - 1)
        for count, step, low, size in zip(
            (p.q, p.p), p.stride[::-1], lower, (p.w, p.h), strict=True
        )
    )
    return _pixels(dtype, (p.c, p.w, p.h, p.n), pixels, lower, upper, p.stride[::-1], source)


def _fprop(problem, tile, terms, source):
    p, dtype = problem, map_dtype(problem)
    ready = make_ready(p.k, p.terms, False, terms, True) if terms == 3 else None
    w_lines = p.k * (2 if terms == 3 else 1)
    return ready, (_x_map(p, dtype, tile.m, source), lines_map(dtype, (p.terms, w_lines), tile.n))


def _dgrad(problem, tile, terms, source):
    p, dtype = problem, map_dtype(problem)
    taps, channels = p.r * p.s, LINE_BYTES // p.itemsize
    lower = (p.padding[1] - (p.s - 1), p.padding[0] - (p.r - 1))
    upper = (p.w - p.q + lower[0], p.h - p.p + lower[1])
    pixels = tile.n if tile.filters_first else tile.m
    dy = _pixels(dtype, (p.k, p.q, p.p, p.n), pixels, lower, upper)
    if dtype == "bfloat16" or tile.filters_first:
        return None, (dy, TensorMap(dtype, (p.c, taps, p.k), (channels, 1, channels)))
    ready = make_ready(p.c, taps * p.k, True, terms, terms == 3, p.k)
    w_lines = p.c * (2 if terms == 3 else 1)
    return ready, (dy, lines_map(dtype, (taps * p.k, w_lines), tile.n))


def _wgrad(problem, tile, terms, source):
    p, dtype = problem, map_dtype(problem)
    pixels = p.n * p.p * p.q
    x = _x_map(p, dtype if terms == 1 else "float32", depth(p), source)
    if dtype == "bfloat16" or tile.turns:
        return None, (x, lines_map(dtype, (p.k, pixels), depth(p)))
    ready = make_ready(p.k, pixels, True, terms, False)
    _, lines, padded = ready[1]
    return ready, (x, lines_map(dtype, (padded, lines * (2 if terms == 3 else 1)), tile.n))


_OPERANDS = {"fprop": _fprop, "dgrad": _dgrad, "wgrad": _wgrad}
