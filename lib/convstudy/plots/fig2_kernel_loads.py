# SPDX-License-Identifier: MIT
"""Fig. 2, the other half: how often each rung goes to memory, counted on the CPU emulator."""

from dataclasses import replace

import numpy as np
import pandas as pd

from convstudy.conv.algorithm import kernels_for, plan
from convstudy.device import EMULATOR
from convstudy.plots import labels
from convstudy.plots.palette import look
from convstudy.plots.save import Drawn, footer
from convstudy.plots.style import figure, style
from convstudy.problem import ConvProblem

NAME = "fig2_kernel_loads"
# A layer of U-Net's kind, small enough to be counted in seconds, and a chip that is as small: it
# is then cut into tiles as the real layers are on a real chip.
PROBLEM = ConvProblem(n=1, c=8, h=32, w=47, k=64, r=3, s=3, padding=(1, 1))
CHIP = replace(EMULATOR, sm_count=8)

_PANELS = (
    ("global_loads_per_mac", "loads from global memory\nper multiply-add"),
    ("sectors_per_request", "32-byte sectors\nper load of a warp"),
    ("global_bytes_per_mac", "bytes fetched in sectors\nper multiply-add"),
    ("shared_loads_per_mac", "words from shared memory\nper multiply-add"),
)


def count(problem=PROBLEM):
    """Run each convolution kernel on the emulator, and return what it did.

    Returns
    -------
    pandas.DataFrame
        One row a kernel, in the ladder's order: algorithm; global_loads, global_load_requests
        (of a warp), global_load_sectors (of 32 bytes), shared_loads (words), barriers, blocks;
        and from them global_loads_per_mac, sectors_per_request, global_bytes_per_mac,
        shared_loads_per_mac, barriers_per_block.
    """
    x, w = np.ones(problem.x_shape, np.float32), np.ones(problem.w_shape, np.float32)
    rows = []
    for kernel in kernels_for(problem, CHIP):
        y = np.empty(problem.y_shape, np.float32)
        counts = plan(kernel, problem, CHIP).run(CHIP, (x, w, None, y))
        rows.append(_row(kernel, counts, problem.macs))
    return pd.DataFrame(rows)


def _row(kernel, counts, macs):
    return {
        "algorithm": kernel,
        "global_loads": counts.global_loads,
        "global_load_requests": counts.global_load_requests,
        "global_load_sectors": counts.global_load_sectors,
        "shared_loads": counts.shared_loads,
        "barriers": counts.barriers,
        "blocks": counts.blocks,
        "global_loads_per_mac": counts.global_loads / macs,
        "sectors_per_request": counts.global_load_sectors / counts.global_load_requests,
        "global_bytes_per_mac": 32 * counts.global_load_sectors / macs,
        "shared_loads_per_mac": counts.shared_loads / macs,
        "barriers_per_block": counts.barriers / counts.blocks,
    }


def display(counted):
    """Return the counts as people read them."""
    shown = counted.set_index(counted["algorithm"].map(lambda name: look(name).label))
    shown.index.name = "kernel"
    names = {column: title.replace("\n", " ") for column, title in _PANELS}
    names["barriers_per_block"] = "barriers per block"
    return shown[list(names)].map(labels.significant).rename(columns=names)


@style()
def draw(counted, problem=PROBLEM):
    """Draw what `count` returned: one panel a quantity, one bar a kernel."""
    drawing, panels = figure(1, len(_PANELS), height=1.75, sharey=True)
    for axes, (column, title) in zip(panels, _PANELS, strict=True):
        for place, (name, value) in enumerate(counted[["algorithm", column]].to_numpy()):
            axes.barh(place, value, height=0.7, **look(name).bar)
            axes.annotate(
                labels.significant(value),
                *((value, place), (3, 0)),
                textcoords="offset points",
                va="center",
                fontsize=7,
            )
        axes.set_xlim(0, 1.25 * counted[column].max())
        axes.set_title(title, fontsize=7)
        axes.tick_params(length=0, labelbottom=False)
        axes.spines["bottom"].set_visible(False)
    names = [look(name).label for name in counted["algorithm"]]
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    p = problem
    footer(
        drawing,
        f"counted on the CPU emulator · {p.n} image, {p.c} channels of {p.h} × {p.w}, "
        f"{p.k} filters of {p.r} × {p.s}: {p.macs / 1e6:.0f} million multiply-adds",
    )
    return Drawn(NAME, counted, drawing)
