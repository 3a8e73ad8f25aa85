# SPDX-License-Identifier: MIT
"""One look for one thing, in every figure: its label, colour, marker and hatch.

The colours are Okabe and Ito's and Paul Tol's, which the colour-blind tell apart; marker and hatch
tell them apart in grey print.

References
----------
M. Okabe, K. Ito, "Color Universal Design", 2008. P. Tol, "Colour Schemes", SRON technical note
SRON/EPS/TN/09-002, 2021.
"""

import zlib
from dataclasses import dataclass, replace

BLACK, ORANGE, SKY, GREEN = "#000000", "#e69f00", "#56b4e9", "#009e73"
YELLOW, BLUE, VERMILLION, PURPLE = "#f0e442", "#0072b2", "#d55e00", "#cc79a7"
GREY = "#999999"


@dataclass(frozen=True)
class Look:
    """How one thing appears."""

    label: str
    color: str
    marker: str
    hatch: str = ""

    @property
    def line(self):
        """Keywords for a line or points: ``axes.plot(x, y, **look.line)``."""
        return {"label": self.label, "color": self.color, "marker": self.marker}

    @property
    def bar(self):
        """Keywords for bars: ``axes.bar(x, y, **look.bar)``."""
        filled = {"facecolor": self.color, "edgecolor": "white", "hatch": self.hatch}
        return {"label": self.label, **filled}


# By id, in the ladder's order.
ALGORITHMS = {
    "cpu-plain": Look("CPU, plain loops", GREY, "s", "//"),
    "cpu-blas": Look("CPU, BLAS", BLACK, "D"),
    "conv2d_fprop_1_naive": Look("1 naive", VERMILLION, "v", "\\\\"),
    "conv2d_fprop_2_coalesced": Look("2 coalesced", ORANGE, "<", ".."),
    "conv2d_fprop_3_tiled": Look("3 tiled (the paper's)", GREEN, "o", "xx"),
    "conv2d_fprop_4_register_blocked": Look("4 register-blocked", BLUE, "^"),
    "conv2d_fprop_5_vectors": Look("5 vectors", "#332288", "d", "//"),
    "conv2d_fprop_6_stages": Look("6 stages", "#44aa99", "h", "\\\\"),
    "conv2d_fprop_7_warp_tiles": Look("7 warp tiles", "#882255", ">", ".."),
    "conv2d_fprop_8_mma": Look("8 tensor cores", YELLOW, "p", "xx"),
    "conv2d_fprop_9_direct": Look("9 direct, few channels", "#999933", "X", "//"),
    "conv2d_fprop_10_wgmma": Look("10 warpgroups and TMA", "#117733", "8", "\\\\"),
    "conv2d_fprop_11_halo": Look("11 patches with halo", "#88ccee", "H", ".."),
    "conv2d_fprop_12_gemv": Look("12 few pixels", "#661100", "x", "||"),
    "cudnn": Look("cuDNN", PURPLE, "*", "--"),
    "pytorch-cpu": Look("PyTorch, CPU", SKY, "P", "++"),
}

# Table 1's rows, in the order in which the network meets them; Tol's "bright".
FUNCTIONS = {
    "convolution": Look("convolution", "#4477aa", "o"),
    "batch norm": Look("batch norm", "#ee6677", "s", "//"),
    "ReLU": Look("ReLU", "#228833", "^", "\\\\"),
    "pooling": Look("pooling", "#ccbb44", "v", ".."),
    "residual sum": Look("residual sum", "#ee8866", "<", "oo"),
    "linear": Look("linear", "#bbcc33", ">", "||"),
    "up-convolution": Look("up-convolution", "#66ccee", "D", "xx"),
    "padding and concatenation": Look("padding and concatenation", "#aa3377", "P", "++"),
    "head": Look("head", "#bbbbbb", "*", "--"),
}


def _as(environment, algorithm, **changes):
    return replace(ALGORITHMS[algorithm], label=environment, **changes)


# Fig. 4's bars: each has the colour of the algorithm that it runs.
ENVIRONMENTS = {
    look.label: look
    for look in (
        _as("CPU, plain loops", "cpu-plain"),
        _as("CPU, BLAS", "cpu-blas"),
        _as("GPU, not optimised", "conv2d_fprop_1_naive"),
        _as("1 GPU, tiled", "conv2d_fprop_3_tiled"),
        _as("2 GPUs, tiled + data parallel", "conv2d_fprop_3_tiled", marker="h", hatch="oo"),
        _as("1 GPU, register-blocked", "conv2d_fprop_4_register_blocked"),
    )
}

_SPARE_COLORS = (SKY, PURPLE, "#117733", "#ddcc77")
_SPARE_MARKERS = ("1", "2", "3")


def look(name):
    """Return the look of an algorithm, an environment or a function.

    A name that has none yet, such as a new kernel's id, gets one made from its letters: the same
    in every figure and on every machine. A row of its own above is better.

    Examples
    --------
    >>> look("cudnn").label
    'cuDNN'
    >>> look("conv2d_fprop_9_new") == look("conv2d_fprop_9_new")
    True
    """
    for known in (ALGORITHMS, ENVIRONMENTS, FUNCTIONS):
        if name in known:
            return known[name]
    number = zlib.crc32(name.encode())
    color = _SPARE_COLORS[number % len(_SPARE_COLORS)]
    return Look(name, color, _SPARE_MARKERS[number % len(_SPARE_MARKERS)])
