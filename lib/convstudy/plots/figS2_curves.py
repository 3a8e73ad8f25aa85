# SPDX-License-Identifier: MIT
"""One training by us and by PyTorch: the loss of each step, and how far the two are apart."""

import pandas as pd

from convstudy.plots import labels
from convstudy.plots.palette import BLUE, ORANGE, VERMILLION
from convstudy.plots.save import Drawn, footer
from convstudy.plots.style import figure, style

NAME = "figS2_curves"
_SIDES = {"ours": "ours", "pytorch NCHW": "pytorch_nchw", "pytorch NHWC": "pytorch_nhwc"}
COLUMNS = ("machine", "step", *(f"{side}_loss" for side in _SIDES.values()))
# Mean distances over so many steps: that of a single one depends on its batch.
_WINDOW = 20


def losses(table):
    """Return one row a step, with the loss of each side.

    Parameters
    ----------
    table : pandas.DataFrame
        Of suite "curves", from `records.table`.

    Returns
    -------
    pandas.DataFrame
        Columns `COLUMNS`.
    """
    done, found = labels.finished(table), []
    for machine, group in done.groupby("machine", sort=False) if len(done) else ():
        of = group.set_index("side")["value_loss"]
        if set(_SIDES) - set(of.index):
            continue
        columns = {f"{name}_loss": of[side] for side, name in _SIDES.items()}
        found.append(
            pd.DataFrame({"machine": machine, "step": range(1, len(of["ours"]) + 1)} | columns)
        )
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=COLUMNS)


def distances(plotted):
    """Return, a row a machine, how far losses are apart: mean and largest, as shares of the loss.

    PyTorch's two layouts are one training, rounded in two ways. What lies no further from one of
    them than twice as far as they lie apart follows it.
    """
    rows = []
    for machine, group in plotted.groupby("machine", sort=False):
        ours, other = _apart(group)
        rows.append(
            {
                "machine": machine,
                "steps": len(group),
                "ours to PyTorch, mean": ours.mean(),
                "PyTorch to itself, mean": other.mean(),
                "ours to PyTorch, largest": ours.max(),
                "PyTorch to itself, largest": other.max(),
                "follows": bool(ours.mean() <= 2 * other.mean()),
            }
        )
    return pd.DataFrame(rows)


def _apart(group):
    base = group["pytorch_nchw_loss"]
    return (abs(group[f"{side}_loss"] - base) / base for side in ("ours", "pytorch_nhwc"))


@style()
def draw(table):
    """Draw the losses, and how far ours and PyTorch's other layout are from PyTorch's first.

    Parameters
    ----------
    table : pandas.DataFrame
        Of suite "curves", from `records.table`.

    Returns
    -------
    Drawn
        Without a figure where nothing was measured.
    """
    plotted = losses(table)
    if plotted.empty:
        return Drawn(NAME, plotted)
    drawing, (left, right) = figure(1, 2, height=2.6)
    for _, group in plotted.groupby("machine", sort=False):
        left.plot(group["step"], group["pytorch_nchw_loss"], color=ORANGE, label="PyTorch")
        left.plot(group["step"], group["ours_loss"], color=BLUE, ls="--", label="ours")
        ours, other = (each.rolling(_WINDOW, min_periods=1).mean() for each in _apart(group))
        right.plot(group["step"], ours, color=BLUE, label="ours to PyTorch")
        right.plot(group["step"], other, color=VERMILLION, label="PyTorch to itself")
    left.set(xlabel="step", ylabel="loss", ylim=(0, None))
    right.set(xlabel="step", ylabel="distance / loss", yscale="log")
    left.legend(loc="best")
    right.legend(loc="best")
    footer(drawing, labels.sources(labels.finished(table)))
    return Drawn(NAME, plotted, drawing, labels.record_ids(labels.finished(table)))
