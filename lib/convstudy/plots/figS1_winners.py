# SPDX-License-Identifier: MIT
"""Who wins each layer: the rung of our fastest kernel, and how it does against cuDNN."""

import math
import re

import pandas as pd
from matplotlib.colors import Normalize

from convstudy.plots import figS1_conv_vs_cudnn, labels
from convstudy.plots.save import Drawn, footer
from convstudy.plots.style import figure, style

NAME = "figS1_winners"
COLUMNS = ("machine", "precision", "pass", "n", "layer", "algorithm", "ratio", "stale")
# Four times as fast, and as slow, have the deepest colours.
_DEEPEST = 2.0
_COLORS = "PuOr_r"


def winners(table):
    """Return the fastest of our kernels for each layer.

    Parameters
    ----------
    table : pandas.DataFrame
        From `figS1_conv_vs_cudnn.read`.

    Returns
    -------
    pandas.DataFrame
        Columns `COLUMNS`; `ratio` is cuDNN's time over ours.
    """
    plotted = figS1_conv_vs_cudnn.compare(table)
    single = plotted[plotted["layer"] != figS1_conv_vs_cudnn.ALL]
    if single.empty:
        return pd.DataFrame(columns=COLUMNS)
    return figS1_conv_vs_cudnn.fastest(single)[list(COLUMNS)].reset_index(drop=True)


def rung(algorithm):
    """Return the number of a kernel's rung.

    Examples
    --------
    >>> rung("conv2d_wgrad_10_wgmma")
    '10'
    """
    return re.search(r"_(\d+)_", algorithm)[1]


@style()
def draw(table):
    """Draw a map of layers by pass and batch for each precision: colour the ratio, text the rung.

    Parameters
    ----------
    table : pandas.DataFrame
        From `figS1_conv_vs_cudnn.read`.

    Returns
    -------
    Drawn
        Without a figure where nothing was measured.
    """
    plotted = winners(table)
    if plotted.empty:
        return Drawn(NAME, plotted)
    parts = list(plotted.groupby("machine", sort=False))
    precisions = list(plotted["precision"].drop_duplicates())
    layers = list(table["layer"].drop_duplicates())
    drawing, axes = figure(
        *(len(parts), len(precisions)),
        height=0.6 + len(parts) * (0.8 + 0.145 * len(layers)),
        squeeze=False,
        sharey=True,
    )
    for panels, (machine, part) in zip(axes, parts, strict=True):
        for panel, precision in zip(panels, precisions, strict=True):
            shown = _map(panel, part[part["precision"] == precision], layers)
            panel.set_title(f"{machine}: {precision}", loc="left")
    bar = drawing.colorbar(shown, ax=axes, shrink=0.5, aspect=30, pad=0.01)
    bar.ax.yaxis.set_major_formatter(lambda value, _: labels.times(2.0**value))
    bar.set_label("times as fast as cuDNN")
    done = labels.finished(table)
    footer(drawing, labels.sources(done))
    return Drawn(NAME, plotted, drawing, labels.record_ids(done))


def _map(axes, part, layers):
    columns = sorted(
        set(part[["pass", "n"]].itertuples(index=False, name=None)),
        key=lambda each: (list(part["pass"].drop_duplicates()).index(each[0]), each[1]),
    )
    values = pd.DataFrame(float("nan"), index=layers, columns=range(len(columns)))
    for row in part.to_dict("records"):
        column = columns.index((row["pass"], row["n"]))
        values.loc[row["layer"], column] = math.log2(row["ratio"])
        dark = abs(values.loc[row["layer"], column]) > 0.7 * _DEEPEST
        axes.text(
            *(column, layers.index(row["layer"]), rung(row["algorithm"])),
            ha="center",
            va="center",
            fontsize=5.5,
            color="white" if dark else "black",
        )
    shown = axes.imshow(values.to_numpy(), _COLORS, Normalize(-_DEEPEST, _DEEPEST), aspect="auto")
    axes.set_xticks(range(len(columns)), [f"{which}, {n}" for which, n in columns], rotation=90)
    axes.set_yticks(range(len(layers)), layers)
    axes.tick_params(length=0)
    return shown
