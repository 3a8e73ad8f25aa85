# SPDX-License-Identifier: MIT
"""The registry: one row an algorithm, and for each what it can do and how it is launched.

Adding a kernel is a .cu file in ``kernels/`` and a row in `ALGORITHMS`: the tests, the compile
matrix, the emulator's run, the sweep and the figures pick it up from here.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from convstudy.compile import Launch, source_sha256
from convstudy.conv import cpu, direct, gemm, gemv, halo, hopper, tuned, windows
from convstudy.conv.epilogue import PLAIN, Epilogue, fits
from convstudy.device import CPU, EMULATOR, check_device
from convstudy.problem import ConvProblem

PASSES = ("fprop", "dgrad", "wgrad")
# A block's static shared memory, on every architecture.
_STATIC_SHARED_BYTES = 48 * 1024
_MOST_BLOCKS = 2**31 - 1
_FLOAT32 = ("fp32", "tf32")
_ANY_PRECISION = (*_FLOAT32, "bf16")
# A kernel is tried even where all its choices are estimated to be slow: its own best one, unless
# that is so many times as slow as the best of all.
_FARTHEST = 2.0


@dataclass(frozen=True)
class Algorithm:
    """One way to compute a convolution.

    Attributes
    ----------
    id : str
        ``<op>_<pass>_<rung>_<idea>`` for a kernel, which is also its file, its entry point, its
        colour and its row in every table; ``cpu-...`` for the CPU.
    idea : str
        What it does, in a few words.
    accepts : callable
        ``accepts(problem, device) -> (ok, reason)``; the reason of a refusal says the limit.
    plan : callable or None
        ``plan(problem, device) -> Launch`` of a kernel; ``plan(problem, device, choice)`` of one
        that has choices.
    compute : callable or None
        ``compute(problem, ...)`` of a CPU algorithm.
    which : {"fprop", "dgrad", "wgrad"}
        Its pass: fprop takes (x, w, bias, y), dgrad (dy, w, dx), wgrad (x, dy, dw).
    layouts, precisions : tuple of str
        Those of a problem that it serves; fp32 is more than enough for TF32. Arrays of bfloat16
        come with bf16, and no others.
    cost : callable or None
        ``cost(problem, device)`` estimates the cycles of a kernel, to choose by.
    choices : callable or None
        ``choices(problem, device)`` lists how a kernel's work can be cut, and
    estimate : callable or None
        ``estimate(problem, device, choice)`` the cycles of one of them, to tell which to try.
    takes_epilogue : callable or None
        ``takes_epilogue(epilogue)`` says whether its plan takes an `Epilogue` such as that.
    count_tiles : callable or None
        ``count_tiles(problem, device, choice)`` says of how many tiles its plan can write
        statistics (`Epilogue`).
    """

    id: str
    idea: str
    accepts: Callable
    plan: Callable | None = None
    compute: Callable | None = None
    which: str = "fprop"
    layouts: tuple[str, ...] = ("NCHW",)
    precisions: tuple[str, ...] = _FLOAT32
    cost: Callable | None = None
    choices: Callable | None = None
    estimate: Callable | None = None
    takes_epilogue: Callable | None = None
    count_tiles: Callable | None = None

    def supports(self, problem, device, epilogue=PLAIN):
        """Return (ok, reason): whether it serves `problem` on `device`, and if not, why."""
        if problem.layout not in self.layouts:
            return False, f"it takes {' or '.join(self.layouts)}; the arrays are {problem.layout}"
        if problem.precision not in self.precisions:
            return False, f"it does not compute {problem.precision} ({problem.dtype} arrays)"
        if epilogue != PLAIN:
            if self.takes_epilogue is None or not self.takes_epilogue(epilogue):
                return False, f"it cannot end with {epilogue}"
            ok, reason = fits(epilogue, problem, self.which)
            if not ok:
                return ok, reason
        return self.accepts(problem, device)


def _sizes(problem):
    p = problem
    return (p.n, p.c, p.h, p.w, p.k, p.p, p.q, *p.padding)


def _constants(problem):
    return (
        ("FILTER_R", problem.r),
        ("FILTER_S", problem.s),
        ("STRIDE_H", problem.stride[0]),
        ("STRIDE_W", problem.stride[1]),
    )


def _on_kernels(problem, device):
    """Return (ok, reason) for what holds of every kernel alike."""
    if device.kind == "cpu":
        return False, "it is a CUDA kernel and the arrays lie on the CPU; use cpu-blas"
    # Offsets inside one image are 32-bit; those of images and channels are 64-bit.
    if max(problem.h * problem.w, problem.p * problem.q) >= 2**31:
        return False, "one channel has 2^31 pixels or more; cut the image"
    return True, ""


def _outputs(problem):
    return math.prod(problem.y_shape)


def _supports_flat(problem, device):
    blocks = math.ceil(_outputs(problem) / 256)
    if blocks > _MOST_BLOCKS:
        return False, f"it needs {blocks} blocks and a grid has {_MOST_BLOCKS}; cut the batch"
    return _on_kernels(problem, device)


def _plan_flat(kernel, problem, device):
    grid = (math.ceil(_outputs(problem) / 256),)
    return Launch(kernel, grid, (256,), _sizes(problem), _constants(problem))


@dataclass(frozen=True)
class _Tile:
    """What a block of a tiled kernel covers, and how many outputs of it are one thread's."""

    threads_q: int
    threads_p: int
    threads_k: int
    reg_q: int = 1
    reg_k: int = 1

    @property
    def threads(self):
        return self.threads_q * self.threads_p * self.threads_k

    def blocks(self, problem):
        return (
            problem.n
            * math.ceil(problem.p / self.threads_p)
            * math.ceil(problem.q / (self.threads_q * self.reg_q))
            * math.ceil(problem.k / (self.threads_k * self.reg_k))
        )

    def words(self, problem):
        """Shared words for one input channel: pixels with their halo, and weights."""
        in_h = (self.threads_p - 1) * problem.stride[0] + problem.r
        in_w = (self.threads_q * self.reg_q - 1) * problem.stride[1] + problem.s
        # Rows and taps are filled up to 16 bytes and a row of filters has 4 words more.
        taps = problem.r * problem.s + 3
        return in_h * (in_w + 3) + taps * (self.threads_k * self.reg_k + 4)

    def channels(self, problem):
        """Return how many input channels are held at once: 8, or as many as fit; 0 for none."""
        return min(8, problem.c, _STATIC_SHARED_BYTES // (4 * self.words(problem)))

    def cost(self, problem, device):
        """Estimate the cycles of the busiest multiprocessor, to compare tiles by.

        A warp issues, for each input channel, its multiply-adds, its loads from shared memory
        (vectors of four where words lie side by side), and its part of bringing the tile there,
        about six instructions a word. A multiprocessor issues about three instructions a cycle,
        if it has the warps: a single warp issues one in four. Over U-Net's 18 layers, for 1 and
        for 16 images, the tile with the least cost takes 4 to 10% longer than the best one tried
        (H200, all 80 tiles timed).
        """
        products = problem.s * self.reg_q * self.reg_k
        window = (self.reg_q - 1) * problem.stride[1] + problem.s
        loads = math.ceil(window / min(4, self.reg_q)) + problem.s * math.ceil(self.reg_k / 4)
        filling = 6 * self.words(problem) / self.threads
        instructions = problem.c * (problem.r * (products + loads) + filling)
        warps = math.ceil(self.blocks(problem) / device.sm_count) * math.ceil(self.threads / 32)
        return instructions * max(warps / 3, 4)


# Widths 8, 12 and 16 divide, nearly, every width of U-Net's levels at 191 pixels and most others.
_TILES_ONE_OUTPUT = tuple(
    _Tile(q, p, k) for q in (8, 12, 16, 32) for p, k in ((8, 4), (4, 4), (8, 2), (4, 8))
)
_TILES_REGISTERS = tuple(
    _Tile(q, p, k, reg_q, reg_k)
    for reg_q, reg_k in ((4, 8), (4, 4), (2, 4), (2, 2))
    for q in (3, 4, 6, 8)
    for p, k in ((4, 8), (8, 4), (8, 8), (4, 4))
)


@functools.cache
def _best_tile(tiles, problem, device):
    fitting = [tile for tile in tiles if tile.channels(problem) >= 1]
    return min(fitting, key=lambda tile: tile.cost(problem, device), default=None)


def _supports_tiles(tiles, problem, device):
    ok, reason = _on_kernels(problem, device)
    if not ok:
        return ok, reason
    tile = _best_tile(tiles, problem, device)
    if tile is None:
        smallest = 4 * min(tile.words(problem) for tile in tiles)
        return False, (
            f"a tile for R={problem.r}, S={problem.s} and stride {problem.stride} needs "
            f"{smallest} bytes of shared memory and a block has {_STATIC_SHARED_BYTES}; "
            f"use conv2d_fprop_2_coalesced"
        )
    if tile.blocks(problem) > _MOST_BLOCKS:
        return False, f"it needs more than {_MOST_BLOCKS} blocks; cut the batch"
    return True, ""


def _plan_tiled(problem, device):
    tile = _best_tile(_TILES_ONE_OUTPUT, problem, device)
    defines = (
        *_constants(problem),
        ("TILE_Q", tile.threads_q),
        ("TILE_P", tile.threads_p),
        ("TILE_K", tile.threads_k),
        ("TILE_C", tile.channels(problem)),
    )
    return _launch_tile("conv2d_fprop_3_tiled", tile, problem, defines)


def _plan_register_blocked(problem, device):
    tile = _best_tile(_TILES_REGISTERS, problem, device)
    defines = (
        *_constants(problem),
        ("REG_K", tile.reg_k),
        ("REG_Q", tile.reg_q),
        ("THREADS_Q", tile.threads_q),
        ("THREADS_P", tile.threads_p),
        ("THREADS_K", tile.threads_k),
        ("TILE_C", tile.channels(problem)),
    )
    return _launch_tile("conv2d_fprop_4_register_blocked", tile, problem, defines)


def _launch_tile(kernel, tile, problem, defines):
    return Launch(kernel, (tile.blocks(problem),), (tile.threads,), _sizes(problem), defines)


def _on_cpu(problem, device):
    if device.kind != "cpu":
        return False, f"it runs on the CPU and the arrays lie on {device.name}; copy them first"
    return True, ""


def _row(family, kernel, idea):
    """Return the row of a kernel of one family: a module that says how its kernels are cut."""

    def supports(problem, device):
        ok, reason = _on_kernels(problem, device)
        return family.supports(kernel, problem, device) if ok else (ok, reason)

    def own(name):
        return functools.partial(getattr(family, name), kernel) if hasattr(family, name) else None

    return Algorithm(
        kernel,
        idea,
        supports,
        functools.partial(family.plan, kernel),
        which=kernel.split("_")[1],
        layouts=("NHWC",),
        precisions=_ANY_PRECISION if family.takes_bf16(kernel) else _FLOAT32,
        cost=own("cost"),
        choices=own("choices"),
        estimate=own("estimate"),
        takes_epilogue=own("takes_epilogue"),
        count_tiles=own("count_tiles"),
    )


_gemm = functools.partial(_row, gemm)
_direct = functools.partial(_row, direct)
_gemv = functools.partial(_row, gemv)
_hopper = functools.partial(_row, hopper)
_halo = functools.partial(_row, halo)
_windows = functools.partial(_row, windows)


def _through_blas(compute):
    return cpu.in_float32(cpu.in_layout(compute))


_ANY_LAYOUT = ("NCHW", "NHWC")
_ROWS = (
    Algorithm("cpu-plain", "one thread, six plain loops", _on_cpu, compute=cpu.plain),
    Algorithm(
        "cpu-blas",
        "im2col and BLAS, all threads",
        _on_cpu,
        compute=_through_blas(cpu.blas),
        layouts=_ANY_LAYOUT,
        precisions=_ANY_PRECISION,
    ),
    Algorithm(
        "cpu-dgrad",
        "a matrix product for each filter tap, through BLAS",
        _on_cpu,
        compute=_through_blas(cpu.dgrad),
        which="dgrad",
        layouts=_ANY_LAYOUT,
        precisions=_ANY_PRECISION,
    ),
    Algorithm(
        "cpu-wgrad",
        "a matrix product for each filter tap, through BLAS",
        _on_cpu,
        compute=_through_blas(cpu.wgrad),
        which="wgrad",
        layouts=_ANY_LAYOUT,
        precisions=_ANY_PRECISION,
    ),
    Algorithm(
        "conv2d_fprop_1_naive",
        "one thread an output",
        _supports_flat,
        functools.partial(_plan_flat, "conv2d_fprop_1_naive"),
    ),
    Algorithm(
        "conv2d_fprop_2_coalesced",
        "neighbouring threads, neighbouring pixels",
        _supports_flat,
        functools.partial(_plan_flat, "conv2d_fprop_2_coalesced"),
    ),
    Algorithm(
        "conv2d_fprop_3_tiled",
        "input tile and weights in shared memory (the paper's)",
        functools.partial(_supports_tiles, _TILES_ONE_OUTPUT),
        _plan_tiled,
    ),
    Algorithm(
        "conv2d_fprop_4_register_blocked",
        "many outputs a thread, from registers",
        functools.partial(_supports_tiles, _TILES_REGISTERS),
        _plan_register_blocked,
    ),
    _gemm("conv2d_fprop_5_vectors", "implicit GEMM, channels last, in vectors"),
    _gemm("conv2d_fprop_6_stages", "tiles fetched ahead, asynchronously"),
    _gemm("conv2d_fprop_7_warp_tiles", "a tile a warp, without bank conflicts"),
    _gemm("conv2d_fprop_8_mma", "tensor cores, sums split over blocks"),
    _gemm("conv2d_dgrad_8_mma", "tensor cores, back to the input"),
    _gemm("conv2d_wgrad_8_mma", "tensor cores, back to the filters"),
    _direct("conv2d_fprop_9_direct", "few input channels: weights stay, no matrix product"),
    _direct("conv2d_dgrad_9_direct", "few input channels: lanes share the filters"),
    _direct("conv2d_wgrad_9_direct", "few input channels: all sums in registers"),
    _hopper("conv2d_fprop_10_wgmma", "warpgroups, fed by the tensor memory accelerator"),
    _hopper("conv2d_dgrad_10_wgmma", "warpgroups, back to the input"),
    _hopper("conv2d_wgrad_10_wgmma", "warpgroups, back to the filters"),
    _halo("conv2d_fprop_11_halo", "patches with their halo, once for all taps"),
    _halo("conv2d_dgrad_11_halo", "patches with their halo, back to the input"),
    _windows("conv2d_wgrad_11_halo", "windows with their halo, back to the filters"),
    _gemv("conv2d_fprop_12_gemv", "few pixels: each weight is read once, straight to registers"),
)

ALGORITHMS = {row.id: row for row in _ROWS}


def get_algorithm(name):
    """Return the row of `name`, or raise ValueError with the names that exist."""
    if not isinstance(name, str) or name not in ALGORITHMS:
        raise ValueError(
            f"conv2d: no algorithm {name!r}; choose 'auto' or one of {', '.join(ALGORITHMS)}"
        )
    return ALGORITHMS[name]


def refused(row, problem, device, epilogue=PLAIN):
    """Return why an algorithm does not take a problem, as a sentence; None where it does."""
    ok, reason = row.supports(problem, device, epilogue)
    return None if ok else f"{row.id} refuses {problem} on {device.name}: {reason}"


@functools.cache
def plan(name, problem, device, choice=None, epilogue=PLAIN):
    """Return the `Launch` of kernel `name` for `problem` on `device`.

    Parameters
    ----------
    name : str
    problem : ConvProblem
    device : Device
    choice : object, optional
        One of those that the kernel's row lists; by default the tuned one where that kernel was
        found fastest, else the one that is estimated to cost least.
    epilogue : Epilogue
        How it is to end.

    Raises
    ------
    ValueError
        Where the algorithm refuses the problem; the message is its reason.
    """
    row = get_algorithm(name)
    if refusal := refused(row, problem, device, epilogue):
        raise ValueError(refusal)
    if choice is None:
        found, _ = _tuned(problem, device, row.which)
        choice = found.choice if found and found.id == name else None
    return _plan(row, problem, device, choice, epilogue)


def _plan(row, problem, device, choice, epilogue=PLAIN):
    given = {} if choice is None else {"choice": choice}
    if epilogue != PLAIN:
        given["epilogue"] = epilogue
    return row.plan(problem, device, **given)


@functools.cache
def count_tiles(problem, device):
    """Return of how many tiles what "auto" takes forward can write statistics, or 0 for none."""
    row = ALGORITHMS[choose(problem, device)]
    if not row.count_tiles or not row.supports(problem, device, Epilogue(statistics=True))[0]:
        return 0
    found, _ = _tuned(problem, device, row.which)
    return row.count_tiles(problem, device, found.choice if found else None)


class Candidate(NamedTuple):
    """A kernel, and one of its choices; None where it has but one way."""

    id: str
    choice: object = None

    def __str__(self):
        return f"{self.id} {tuned.text(self.choice)}".rstrip()


@functools.cache
def _tuned(problem, device, which):
    """Return the `Candidate` that was found fastest, or None; and where it comes from, or why."""
    found = tuned.find(which, problem, device)
    if found is None:
        return None, "this GPU's tuned table does not have it" if tuned.has_table(device) else ""
    row = ALGORITHMS.get(found.algorithm)
    if row is None or not row.supports(problem, device)[0]:
        return None, f"tuned for {found.algorithm}, which does not take it now"
    choice = tuned.parse(found.choice, row.choices(problem, device)) if found.choice else None
    if found.choice and choice is None:
        return None, f"tuned for {found.choice} of {found.algorithm}, which it no longer offers"
    launch = _plan(row, problem, device, choice)
    how = f"tuned: {1e6 * found.seconds:.1f} µs, {found.tried} tried"
    # How a product is best cut outlives most changes of a kernel: after one, what an H200 had been
    # tuned to took up to 1% longer over U-Net's layers than what it was tuned to anew, and what was
    # estimated then 1 to 16%.
    if source_sha256(launch.kernel, launch.defines) != found.source_sha256:
        how += f", before it changed (record {found.record})"
    return Candidate(row.id, choice), how


def _able(problem, device, which, epilogue=PLAIN):
    rows = [
        row for row in _ROWS if row.which == which and row.supports(problem, device, epilogue)[0]
    ]
    if not rows:
        last = next(row for row in reversed(_ROWS) if row.which == which)
        raise ValueError(
            f"conv2d: no algorithm takes {which} of {problem} on {device.name}; {last.id}, say: "
            f"{last.supports(problem, device, epilogue)[1]}"
        )
    return rows


def _estimated(rows, problem, device):
    """Return the id that is taken where nothing was tuned, and how it was found."""
    costly = [row for row in reversed(rows) if row.cost]
    if not costly:
        return rows[-1].id, "the last rung that takes it"
    return min(costly, key=lambda row: row.cost(problem, device)).id, "estimated"


@functools.cache
def _chosen(problem, device, which, epilogue=PLAIN):
    """Return the id that "auto" takes, and why."""
    found, why = _tuned(problem, device, which)
    if found and ALGORITHMS[found.id].supports(problem, device, epilogue)[0]:
        return found.id, why
    name, how = _estimated(_able(problem, device, which, epilogue), problem, device)
    return name, f"{how}; {why}" if why else how


def read_again():
    """Forget what records were read: what was tuned a moment ago counts from here on."""
    tuned.read_again()
    for known in (plan, count_tiles, _tuned, _chosen):
        known.cache_clear()


def choose(problem, device, which="fprop", epilogue=PLAIN):
    """Return the id of the algorithm that "auto" takes.

    It is the one that was found fastest for this problem on GPUs of this name (suite "tuning"),
    also before its source changed. Where there is no such record, it is, of the rows that do not
    refuse, the one that says it costs least; or, where none says, the last.
    """
    return _chosen(problem, device, which, epilogue)[0]


def explain(problem, device=CPU, which="fprop"):
    """Return one line an algorithm: chosen and why, possible, or refused and why.

    Parameters
    ----------
    problem : ConvProblem
    device : Device
    which : {"fprop", "dgrad", "wgrad"}

    Raises
    ------
    TypeError, ValueError
        Where an argument is none of these, or no algorithm takes the problem.
    """
    if not isinstance(problem, ConvProblem):
        raise TypeError(f"explain: problem must be a ConvProblem, got {problem!r}")
    check_device("explain", device)
    if which not in PASSES:
        raise ValueError(f"explain: which must be {' or '.join(PASSES)}, got {which!r}")
    chosen, why = _chosen(problem, device, which)
    found, _ = _tuned(problem, device, which)
    if found and found.choice:
        why += f", {tuned.text(found.choice)}"
    lines = []
    for row in _ROWS:
        if row.which != which:
            continue
        ok, reason = row.supports(problem, device)
        state = "possible" if ok else f"refused: {reason}"
        lines.append(f"{row.id}: {row.idea}; {f'chosen ({why})' if row.id == chosen else state}")
    return "\n".join(lines)


def candidates(problem, device, which="fprop", within=1.6, most=12):
    """Return what is worth timing, in the order in which the estimates prefer it.

    Parameters
    ----------
    problem : ConvProblem
    device : Device
    which : {"fprop", "dgrad", "wgrad"}
    within : float
        Choices that are estimated to take more than so many times the least are left out, but for
        each kernel's own best.
    most : int
        How many are returned at most; each kernel's own best comes before others' second.

    Returns
    -------
    list of Candidate
        First what is taken where nothing was tuned.
    """
    rows = [row for row in _able(problem, device, which) if row.plan]
    first, _ = _estimated(rows, problem, device)
    ranked = [
        (row.estimate(problem, device, choice) if row.estimate else math.inf, row.id, choice)
        for row in rows
        for choice in (row.choices(problem, device) if row.estimate else (None,))
    ]
    ranked.sort(key=lambda each: each[0])
    least, own = ranked[0][0], {}
    for each in ranked:
        own.setdefault(each[1], each)

    def is_tried(cycles, name):
        # What a kernel without estimates would take is not known.
        return name == first or cycles == math.inf or cycles <= _FARTHEST * least

    favourites = [each for each in own.values() if is_tried(*each[:2])]
    others = [e for e in ranked if e[0] <= within * least and e not in own.values()]
    kept = favourites + others[: max(0, most - len(favourites))]
    kept.sort(key=lambda each: (each is not own[first], each[0]))
    return [Candidate(name, choice) for _, name, choice in kept]


def kernels_for(problem, device=EMULATOR, which="fprop"):
    """Return the ids of the kernels that take `problem` on `device`, in the ladder's order."""
    return tuple(
        r.id for r in _ROWS if r.plan and r.which == which and r.supports(problem, device)[0]
    )
