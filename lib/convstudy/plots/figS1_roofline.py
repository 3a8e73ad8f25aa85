# SPDX-License-Identifier: MIT
"""The roofline: how fast each layer is, against what arithmetic and memory allow."""

import numpy as np
import pandas as pd

from convstudy import records
from convstudy.plots import labels
from convstudy.plots.palette import BLUE, GREEN, ORANGE
from convstudy.plots.save import Drawn, footer
from convstudy.plots.style import figure, style
from convstudy.records import statistics

NAME = "figS1_roofline"
COLUMNS = (
    *("machine", "precision", "pass", "n", "layer", "algorithm", "intensity", "tflops"),
    *("roof_tflops", "roof_share", "bound", "peak_tflops", "units_tflops", "bytes_per_s"),
    "stale",
)
_KEYS = ["machine", "pass", "precision", "n", "layer"]
# Three products of tensor cores make one of fp32.
_PRODUCTS = 3
_LINES = {"fprop": (BLUE, "o"), "dgrad": (ORANGE, "s"), "wgrad": (GREEN, "^")}


def bandwidths(machines):
    """Return {machine: bytes/s of its GPU's memory}, as measured (suite "memory").

    Machines that have not measured it are left out.
    """
    table = labels.finished(records.table("memory", machines))
    if table.empty:
        return {}
    wide = table[(table["quantity"] == "bandwidth") & (table["processor"] == "gpu")]
    wide = wide[wide["space"] == "device"]
    return dict(zip(wide["machine"], wide["value_bytes"] / wide["median_s"], strict=True))


def peak(row):
    """Return the FLOP/s that a row's precision allows: by tensor cores, or by fp32 units."""
    if row["precision"] == "bf16":
        return row["peak_bf16_flops"]
    if row["precision"] == "tf32":
        return row["peak_tf32_flops"]
    return np.fmax(row["peak_flops"], row["peak_tf32_flops"] / _PRODUCTS)


def layers(table, widths):
    """Return the fastest kernel of each layer, and what its roof would allow.

    Parameters
    ----------
    table : pandas.DataFrame
        From `figS1_conv_vs_cudnn.read`.
    widths : dict
        From `bandwidths`.

    Returns
    -------
    pandas.DataFrame
        Columns `COLUMNS`. `intensity` is FLOPs for each byte that has to move at least: each
        operand read once, the result written once. `roof_tflops` is the lower of the peak and of
        what memory's bandwidth feeds; a share above 1 means that L2 held what was read.
    """
    done = labels.finished(table)
    if done.empty:
        return pd.DataFrame(columns=COLUMNS)
    ours = done[done["algorithm"] != "cudnn"]
    best = ours.sort_values("median_s").drop_duplicates(_KEYS).sort_index()
    return pd.DataFrame([_roof(row, widths) for row in best.to_dict("records")], columns=COLUMNS)


def _roof(row, widths):
    width = widths.get(row["machine"], float("nan"))
    fed, limit = row["intensity"] * width, peak(row)
    roof = np.fmin(fed, limit)
    return row | {
        "tflops": statistics.tflops(row["flops"], row["median_s"]),
        "roof_tflops": roof / 1e12,
        "roof_share": statistics.share_of_peak(row["flops"], row["median_s"], roof),
        "bound": "memory" if fed < limit else "arithmetic",
        "peak_tflops": limit / 1e12,
        "units_tflops": row["peak_flops"] / 1e12 if row["precision"] == "fp32" else float("nan"),
        "bytes_per_s": width,
    }


@style()
def draw(table, widths):
    """Draw each layer's rate over its intensity, and the roof, for each precision and batch.

    The dotted roof is that of fp32 without tensor cores.

    Parameters
    ----------
    table : pandas.DataFrame
        From `figS1_conv_vs_cudnn.read`.
    widths : dict
        From `bandwidths`.

    Returns
    -------
    Drawn
        Without a figure where nothing was measured.
    """
    plotted = layers(table, widths)
    if plotted.empty:
        return Drawn(NAME, plotted)
    parts = list(plotted.groupby(["machine", "precision"], sort=False))
    batches = sorted(plotted["n"].unique().tolist())
    drawing, axes = figure(
        *(len(parts), len(batches)),
        height=0.8 + 1.45 * len(parts),
        squeeze=False,
        sharex=True,
        sharey="row",
    )
    for panels, ((machine, precision), part) in zip(axes, parts, strict=True):
        for panel, n in zip(panels, batches, strict=True):
            _panel(panel, part[part["n"] == n], plotted["intensity"])
            panel.set_title(f"{machine}: {precision}, {labels.many(n, 'image')}", loc="left")
        panels[0].set_ylabel("TFLOP/s")
    for panel in axes[-1]:
        panel.set_xlabel("FLOP for each byte")
    axes[0, 0].legend(loc="lower right")
    done = labels.finished(table)
    footer(drawing, labels.sources(done))
    return Drawn(NAME, plotted, drawing, labels.record_ids(done))


def _panel(axes, part, intensities):
    for which, rows in part.groupby("pass", sort=False):
        color, marker = _LINES[which]
        axes.plot(rows["intensity"], rows["tflops"], marker, color=color, markersize=3, label=which)
    ends = 0.7 * intensities.min(), 1.5 * intensities.max()
    for first in part[:1].to_dict("records"):
        fed = first["bytes_per_s"] / 1e12
        for limit, line in ((first["peak_tflops"], "-"), (first["units_tflops"], ":")):
            if limit > 0:
                x = np.array([ends[0], np.clip(limit / fed, *ends), ends[1]])
                axes.plot(x, np.fmin(x * fed, limit), line, color="#666666", lw=0.8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: labels.significant(value))
    axes.grid()
