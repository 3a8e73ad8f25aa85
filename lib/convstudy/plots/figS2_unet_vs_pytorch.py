# SPDX-License-Identifier: MIT
"""The whole network, run and trained: ours against PyTorch in each of its ways."""

import pandas as pd
from matplotlib.ticker import NullLocator

from convstudy.plots import labels
from convstudy.plots.palette import BLUE, GREEN, ORANGE
from convstudy.plots.save import Drawn, footer
from convstudy.plots.style import figure, style
from convstudy.records import statistics

NAME = "figS2_unet_vs_pytorch"
_WAYS = {"eager": "pytorch-eager", "graph": "pytorch-graph", "compile": "pytorch-compile"}
COLUMNS = (
    *("machine", "what", "precision", "n", "ours_ms", *(f"pytorch_{way}_ms" for way in _WAYS)),
    *("ratio_to_best", "ours_peak_bytes", "pytorch_peak_bytes", "error", "stale"),
)
_KEYS = ["machine", "what", "precision", "n"]
_LOOKS = {"fp32": (ORANGE, "o"), "tf32": (BLUE, "s"), "bf16": (GREEN, "^")}


def compare(table):
    """Return one row for each thing done, precision and batch that was measured on both sides.

    Parameters
    ----------
    table : pandas.DataFrame
        Of suite "unet", from `records.table`.

    Returns
    -------
    pandas.DataFrame
        Columns `COLUMNS`. Of PyTorch's layouts the faster counts, in each way; `ratio_to_best` is
        to the fastest of all, and `pytorch_peak_bytes` that way's. `error` is ours against
        float64: of scores the largest, of gradients that of all together.
    """
    done, rows = labels.finished(table), []
    for key, group in done.groupby(_KEYS, sort=False) if len(done) else ():
        fastest = group.sort_values("median_s").drop_duplicates("side").set_index("side")
        theirs = fastest.drop(index="ours", errors="ignore")
        if "ours" not in fastest.index or theirs.empty:
            continue
        ours, best = fastest.loc["ours"], theirs.iloc[0]
        row = dict(zip(_KEYS, key, strict=True))
        row |= {
            f"pytorch_{way}_ms": 1e3 * fastest["median_s"].get(side, float("nan"))
            for way, side in _WAYS.items()
        }
        rows.append(
            row
            | {
                "ours_ms": 1e3 * ours["median_s"],
                "ratio_to_best": statistics.speedup(ours["median_s"], best["median_s"]),
                "ours_peak_bytes": ours["value_peak_bytes"],
                "pytorch_peak_bytes": best["value_peak_bytes"],
                "error": ours["error"],
                "stale": bool(group["stale"].any()),
            }
        )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def display(plotted):
    """Return the comparison as people read it."""
    return labels.shown(
        {
            "machine": row["machine"],
            "what": row["what"],
            "precision": row["precision"],
            "images": row["n"],
            "ours": labels.marked(labels.quantity(row["ours_ms"] / 1e3, "s"), row["stale"]),
            **{
                f"PyTorch, {way}": labels.quantity(row[f"pytorch_{way}_ms"] / 1e3, "s")
                for way in _WAYS
            },
            "times as fast as its best": labels.significant(row["ratio_to_best"], 3),
            "our memory": labels.quantity(row["ours_peak_bytes"], "B"),
            "PyTorch's": labels.quantity(row["pytorch_peak_bytes"], "B"),
        }
        for row in plotted.to_dict("records")
    )


@style()
def draw(table):
    """Draw how many times as fast as PyTorch's best ours is, by batch, for each thing done.

    Parameters
    ----------
    table : pandas.DataFrame
        Of suite "unet", from `records.table`.

    Returns
    -------
    Drawn
        Without a figure where nothing was measured.
    """
    plotted = compare(table)
    if plotted.empty:
        return Drawn(NAME, plotted)
    parts = list(plotted.groupby(["machine", "what"], sort=False))
    drawing, axes = figure(1, len(parts), height=2.6, squeeze=False, sharey="row")
    for panel, ((machine, what), part) in zip(axes[0], parts, strict=True):
        ratios(panel, part, "ratio_to_best")
        panel.set_ylim(bottom=0)
        panel.set_title(f"{labels.marked(machine, part['stale'].any())}: {what}", loc="left")
    axes[0, 0].set_ylabel("times as fast as PyTorch's best")
    axes[0, -1].legend(loc="best")
    footer(drawing, labels.sources(labels.finished(table)))
    return Drawn(NAME, plotted, drawing, labels.record_ids(labels.finished(table)))


def ratios(axes, part, column):
    """Draw a column of ratios to PyTorch against the batch, a line for each precision."""
    for precision, rows in part.groupby("precision", sort=False):
        color, marker = _LOOKS[precision]
        rows = rows.sort_values("n")
        axes.plot(rows["n"], rows[column], marker=marker, color=color, label=precision)
    axes.axhline(1, color="#666666", lw=0.8)
    sizes = sorted(part["n"].unique())
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(int(each)) for each in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: labels.times(value))
    axes.set_xlabel("images in the batch")
    axes.grid(axis="y")
