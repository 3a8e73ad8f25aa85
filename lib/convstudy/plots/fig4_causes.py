# SPDX-License-Identifier: MIT
"""Fig. 4, the slow GPU: what an unoptimised GPU could lose its time to, each measured."""

import pandas as pd

from convstudy.plots import labels
from convstudy.plots.fig4_execution_time import paper
from convstudy.plots.palette import BLACK, GREY, SKY, VERMILLION
from convstudy.plots.save import Drawn, footer
from convstudy.plots.style import figure, style

NAME = "fig4_causes"
COLUMNS = ("machine", "cause", "kind", "median_s", "of_paper", "stale")

ONCE, COPY, ACCESS = "once in a process", "copies, every image", "the kernel, every image"
_COLORS = {ONCE: GREY, COPY: SKY, ACCESS: VERMILLION}
_STARTUP = {
    ("import", ""): ("importing the library", ONCE),
    ("context", ""): ("creating the GPU's context", ONCE),
    ("arrays", ""): ("making the arrays", ONCE),
    ("compile", ""): ("compiling the kernels", ONCE),
    ("first launch", ""): ("first pass of the naive kernel", ONCE),
    ("transfers", "pageable"): ("copying each layer, pageable memory", COPY),
    ("transfers", "pinned"): ("copying each layer, pinned memory", COPY),
}
_LAUNCH = {
    "conv2d_fprop_1_naive": ("access order: naive", ACCESS),
    "conv2d_fprop_2_coalesced": ("access order: coalesced", ACCESS),
}


def causes(startup, launch):
    """Return one row a cause, for one image of each machine.

    Parameters
    ----------
    startup, launch : pandas.DataFrame
        Of the suites of these names, from `records.table`.

    Returns
    -------
    pandas.DataFrame
        Columns `COLUMNS`. `of_paper` is the share of the time that the paper's unoptimised GPU
        takes for its convolutions.
    """
    measured = []
    for row in labels.finished(startup).to_dict("records"):
        measured.append((_STARTUP.get((row["what"], row["memory"])), row))
    for row in labels.finished(launch).to_dict("records"):
        if row["clock"] == "synchronised" and row["n"] == 1:
            measured.append((_LAUNCH.get(row["algorithm"]), row))
    printed = paper()["GPU, not optimised", "convolution"]
    rows = [
        {
            "machine": row["machine"],
            "cause": cause[0],
            "kind": cause[1],
            "median_s": row["median_s"],
            "of_paper": row["median_s"] / printed,
            "stale": row["stale"],
        }
        for cause, row in measured
        if cause
    ]
    machines = list(dict.fromkeys(row["machine"] for row in rows))
    known = [cause for cause, _ in (*_STARTUP.values(), *_LAUNCH.values())]
    rows.sort(key=lambda row: (machines.index(row["machine"]), known.index(row["cause"])))
    return pd.DataFrame(rows, columns=COLUMNS)


def excess():
    """Return the seconds by which the paper's unoptimised GPU is slower than its CPU."""
    printed = paper()
    return float(
        printed["GPU, not optimised", "convolution"] - printed["CPU, plain loops", "convolution"]
    )


def display(plotted):
    """Return the plotted table as people read it."""
    return labels.shown(
        {
            "machine": row["machine"],
            "cause": labels.marked(row["cause"], row["stale"]),
            "when": row["kind"],
            "time": labels.quantity(row["median_s"], "s"),
            "of the paper's 17.34 s": f"{row['of_paper']:.2%}",
        }
        for row in plotted.to_dict("records")
    )


@style()
def draw(startup, launch):
    """Draw each cause against the paper's two times.

    Parameters
    ----------
    startup, launch : pandas.DataFrame
        Of the suites of these names, from `records.table`.

    Returns
    -------
    Drawn
        Without a figure where nothing was measured.
    """
    plotted = causes(startup, launch)
    tables = [labels.finished(table) for table in (startup, launch)]
    sources = pd.concat([table for table in tables if len(table)] or tables[:1])
    if plotted.empty:
        return Drawn(NAME, plotted)
    parts = list(plotted.groupby("machine", sort=False))
    counts = [len(part) for _, part in parts]
    drawing, axes = figure(
        *(len(parts), 1),
        height=0.9 + 0.19 * sum(counts) + 0.3 * len(parts),
        sharex=True,
        squeeze=False,
        height_ratios=counts,
    )
    marks = {excess(): "the paper's excess", _whole(): "the paper, in all"}
    for panel, (machine, part) in zip(axes[:, 0], parts, strict=True):
        _panel(panel, part, marks)
        panel.set_title(machine, loc="left")
    seconds = plotted["median_s"]
    axes[-1, 0].set_xlim(min(1e-3, seconds.min() / 2), 2.5 * max(*marks, seconds.max()))
    axes[-1, 0].set_xlabel("time, for one image")
    axes[0, 0].figure.legend(
        handles=[axes[0, 0].barh(0, 0, color=color, label=kind) for kind, color in _COLORS.items()],
        loc="outside upper center",
        ncols=3,
    )
    footer(drawing, labels.sources(sources))
    return Drawn(NAME, plotted, drawing, labels.record_ids(sources))


def _whole():
    return float(paper()["GPU, not optimised", "convolution"])


def _panel(axes, part, marks):
    across = axes.get_xaxis_transform()
    for seconds, text in marks.items():
        axes.axvline(seconds, color=BLACK, lw=0.9, ls="--")
        text = f"{text}: {labels.significant(seconds, 4)} s"
        axes.text(seconds, 1.02, text, transform=across, ha="right", fontsize=6.5)
    for place, row in enumerate(part.to_dict("records")):
        axes.barh(place, row["median_s"], height=0.7, color=_COLORS[row["kind"]])
        axes.annotate(
            labels.quantity(row["median_s"], "s"),
            *((row["median_s"], place), (3, 0)),
            textcoords="offset points",
            va="center",
            fontsize=6.5,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.4},
        )
    names = [labels.marked(*pair) for pair in part[["cause", "stale"]].to_numpy()]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: labels.quantity(value, "s"))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
