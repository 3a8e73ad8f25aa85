# SPDX-License-Identifier: MIT
"""How tiling works, found out by running the kernels: what one block reads, and who writes what."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from matplotlib.patches import Rectangle

from convstudy.conv.algorithm import plan
from convstudy.device import EMULATOR
from convstudy.plots import labels
from convstudy.plots.palette import ORANGE, look
from convstudy.plots.save import Drawn, footer
from convstudy.plots.style import figure, style
from convstudy.problem import ConvProblem

NAME = "figS0_tiling"
KERNELS = ("conv2d_fprop_3_tiled", "conv2d_fprop_4_register_blocked")
# Small enough to be drawn pixel by pixel, on a chip so small that tiles are as on a real one.
PROBLEM = ConvProblem(n=1, c=1, h=12, w=72, k=64, r=3, s=3, padding=(1, 1))
CHIP = replace(EMULATOR, sm_count=1)


@dataclass(frozen=True)
class Tile:
    """What one block of a kernel does, for one filter and one input channel.

    Attributes
    ----------
    launch : Launch
    pixels : (H, W) bool NumPy array
        The input pixels that change the block's outputs.
    thread : (P, Q) int NumPy array
        Which thread of the block owns an output of its first filter; -1 where none does.
    filters : int
        How many filters the block computes.
    """

    launch: object
    pixels: np.ndarray
    thread: np.ndarray
    filters: int

    @property
    def constants(self):
        """The launch's defines as a dict."""
        return dict(self.launch.defines)

    @property
    def across(self):
        """Threads side by side in a row of the block."""
        return self.constants.get("THREADS_Q", self.constants.get("TILE_Q"))

    @property
    def taps(self):
        """Taps of a filter."""
        return self.constants["FILTER_R"] * self.constants["FILTER_S"]

    @property
    def work(self):
        """Return (words, products): what a thread reads for one channel, and makes of it.

        The words are those that it reads from shared memory into registers.
        """
        has = self.constants
        reg_q, reg_k = has.get("REG_Q", 1), has.get("REG_K", 1)
        window = (reg_q - 1) * has["STRIDE_W"] + has["FILTER_S"]
        words = has["FILTER_R"] * (window + has["FILTER_S"] * reg_k)
        return words, self.taps * reg_q * reg_k


def observe(kernel, problem=PROBLEM, chip=CHIP):
    """Run `kernel` on the emulator and return the `Tile` of the block nearest the middle.

    What it writes is seen from an output full of NaN, and what it reads from an input with NaN in
    one pixel: so the drawing follows the kernel's own index arithmetic.
    """
    launch = plan(kernel, problem, chip)
    owned = [_written(launch, problem, block) for block in range(launch.grid[0])]
    middle = np.array([(problem.p - 1) / 2, (problem.q - 1) / 2])
    block = min(
        range(len(owned)),
        key=lambda b: np.abs(np.argwhere(owned[b])[:, 2:].mean(0) - middle).sum(),
    )
    k, rows, columns = (np.unique(axis) for axis in np.nonzero(owned[block])[1:])
    pixels = _read(launch, problem, owned[block], block)
    tile = Tile(launch, pixels, np.full((problem.p, problem.q), -1), len(k))
    # Which of the block's threads writes cannot be seen from outside: as the header has it.
    along = (columns - columns[0]) // tile.constants.get("REG_Q", 1)
    tile.thread[np.ix_(rows, columns)] = (rows - rows[0])[:, None] * tile.across + along
    return tile


def _run(launch, problem, blocks, x):
    y = np.full(problem.y_shape, np.nan, np.float32)
    w = np.ones(problem.w_shape, np.float32)
    if blocks:
        replace(launch, grid=(blocks,)).run(CHIP, (x, w, None, y), checked=False)
    return y


def _written(launch, problem, block):
    x = np.ones(problem.x_shape, np.float32)
    before, after = (np.isfinite(_run(launch, problem, b, x)) for b in (block, block + 1))
    return after & ~before


def _read(launch, problem, owned, block):
    pixels = np.zeros((problem.h, problem.w), bool)
    for h, w in np.ndindex(pixels.shape):
        x = np.ones(problem.x_shape, np.float32)
        x[:, :, h, w] = np.nan
        pixels[h, w] = np.isnan(_run(launch, problem, block + 1, x)[owned]).any()
    return pixels


def cells(tiles):
    """Return what is drawn as a table: kernel, row, column, what, thread.

    `what`: "output" (the pixel at an output of the block) or "halo" (a pixel that it reads
    besides); `thread`: the owner of an output, -1 for the halo.
    """
    rows = []
    for tile in tiles:
        for row, column in np.argwhere(tile.pixels | (tile.thread >= 0)).tolist():
            thread = int(tile.thread[row, column])
            what = "output" if thread >= 0 else "halo"
            rows.append((tile.launch.kernel, row, column, what, thread))
    return pd.DataFrame(rows, columns=("kernel", "row", "column", "what", "thread"))


def display(tiles):
    """Return what a block and a thread of each kernel do, as people read it."""
    rows = []
    for tile in tiles:
        words, products = tile.work
        read, owned = int(tile.pixels.sum()), int((tile.thread >= 0).sum())
        rows.append(
            {
                "kernel": look(tile.launch.kernel).label,
                "threads of a block": tile.launch.threads,
                "its outputs of a filter": owned,
                "its filters": tile.filters,
                "pixels it fetches": read,
                "multiply-adds for a fetched pixel": labels.significant(
                    owned * tile.filters * tile.taps / read, 3
                ),
                "shared words for a multiply-add": labels.significant(words / products),
            }
        )
    return labels.shown(rows, "kernel")


@style()
def draw(tiles=None):
    """Draw one block of the tiled and one of the register-blocked kernel.

    Parameters
    ----------
    tiles : sequence of Tile, optional
        From `observe`; of both kernels where it is left out.

    Raises
    ------
    ValueError
        Where an output is not of its input's size: the two are drawn on top of each other.
    """
    tiles = [observe(kernel) for kernel in KERNELS] if tiles is None else tiles
    for tile in tiles:
        if tile.pixels.shape != tile.thread.shape:
            raise ValueError(
                f"{NAME}: an input of {tile.pixels.shape} gives an output of {tile.thread.shape}; "
                f"draw a problem with stride 1 and padding (R // 2, S // 2), or use display()"
            )
    drawing, axes = figure(len(tiles), 1, height=1.25 * len(tiles), squeeze=False)
    for panel, tile in zip(axes[:, 0], tiles, strict=True):
        _panel(panel, tile)
    footer(drawing, "found by running each kernel on the CPU emulator; one square is one pixel")
    return Drawn(NAME, cells(tiles), drawing)


_MARGIN, _SHOWN, _WIDTH = 2, 30, 62


def _panel(axes, tile):
    appearance = look(tile.launch.kernel)
    rows, columns = np.nonzero(tile.pixels)
    left, top = columns.min() - _MARGIN, rows.min() - _MARGIN
    bottom = rows.max() + 1 + _MARGIN
    for row, column in np.ndindex(bottom - top, _SHOWN):
        _square(axes, top + row, left + column, "#f2f2f2")
    for row, column in np.argwhere(tile.pixels & (tile.thread < 0)).tolist():
        _square(axes, row, column, ORANGE)
    shades = (0.6, 0.3)
    for row, column in np.argwhere(tile.thread >= 0).tolist():
        along = tile.thread[row, column] % tile.across
        _square(axes, row, column, "white")
        _square(axes, row, column, appearance.color, shades[(along + row) % 2])
    _one_thread(axes, tile)
    _explain(axes, tile, left + _SHOWN + 1.5, top)
    axes.set(xlim=(left, left + _WIDTH), ylim=(bottom, top), aspect="equal")
    axes.set_axis_off()


def _explain(axes, tile, x, top):
    appearance = look(tile.launch.kernel)
    words, products = tile.work
    outputs = products // tile.taps
    read, owned = int(tile.pixels.sum()), int((tile.thread >= 0).sum())
    share = f", {tile.constants['REG_Q']} of each of its filters" if outputs > 1 else ""
    lines = (
        (appearance.label, appearance.color, "bold"),
        (f"A block: {tile.launch.threads} threads, {owned} pixels of {tile.filters} filters.", "k"),
        (f"Of each channel it fetches {read} pixels: those {owned},", "k"),
        (f"and a halo of {read - owned}.", "#b37700"),
        (f"A thread: {labels.many(outputs, 'output')}{share}.", "k"),
        (f"Of each channel it reads {words} words (pixels: dotted)", "k"),
        (f"for {products} multiply-adds: {labels.significant(words / products)} each.", "k"),
    )
    for place, (text, color, *weight) in enumerate(lines):
        y = top + 0.7 + 1.42 * place
        axes.text(x, y, text, color=color, weight=(*weight, "normal")[0], fontsize=7, va="center")


def _square(axes, row, column, color, alpha=1.0):
    axes.add_patch(
        Rectangle((column, row), 1, 1, facecolor=color, alpha=alpha, edgecolor="white", lw=0.3)
    )


def _one_thread(axes, tile):
    """Outline the outputs of a thread in the middle, and the pixels that they need."""
    has = tile.constants
    threads = np.unique(tile.thread[tile.thread >= 0])
    chosen = threads[len(threads) // 2] + tile.across // 2
    rows, columns = np.nonzero(tile.thread == chosen)
    pad_h, pad_w = tile.launch.scalars[-2:]
    top, left = rows[0] * has["STRIDE_H"] - pad_h, columns[0] * has["STRIDE_W"] - pad_w
    width = (len(columns) - 1) * has["STRIDE_W"] + has["FILTER_S"]
    solid, dotted = {"lw": 1.4}, {"lw": 0.9, "ls": ":"}
    axes.add_patch(Rectangle((columns[0], rows[0]), len(columns), 1, fill=False, **solid))
    axes.add_patch(Rectangle((left, top), width, has["FILTER_R"], fill=False, **dotted))
