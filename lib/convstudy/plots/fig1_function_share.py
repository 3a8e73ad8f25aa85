# SPDX-License-Identifier: MIT
"""Fig. 1: the share of run time of each function, the paper's and ours."""

import pandas as pd
from matplotlib.ticker import PercentFormatter

from convstudy.plots import labels
from convstudy.plots.palette import FUNCTIONS, look
from convstudy.plots.save import Drawn, footer
from convstudy.plots.style import figure, style
from convstudy.plots.tab1_function_time import WHOLE, functions, title

NAME = "fig1_function_share"
# Section 2 and Fig. 1; the other wedges are not known.
PAPER_SHARE = 0.82
PAPER, OTHERS = "the paper", "all others"
COLUMNS = ("machine", "execution", "algorithm", "rest", "function", "share", "median_s", "stale")


def shares(table):
    """Return the share of each function, the paper's first.

    Parameters
    ----------
    table : pandas.DataFrame
        Of suite "functions", from `records.table`.

    Returns
    -------
    pandas.DataFrame
        Columns `COLUMNS`; of the paper only convolution's share is known, and no seconds.
    """
    ours = functions(table)
    ours = ours[ours["function"] != WHOLE]
    printed = {"machine": PAPER, "execution": "cpu-plain", "algorithm": "", "rest": ""}
    theirs = [
        printed | {"function": "convolution", "share": PAPER_SHARE, "stale": False},
        printed | {"function": OTHERS, "share": 1 - PAPER_SHARE, "stale": False},
    ]
    frames = [pd.DataFrame(theirs), *([ours] if len(ours) else [])]
    return pd.concat(frames, ignore_index=True).reindex(columns=COLUMNS)


def compared(plotted):
    """Return convolution's share of each CPU's time beside the paper's."""
    ours = plotted[(plotted["machine"] != PAPER) & (plotted["function"] == "convolution")]
    ours = ours[ours["execution"].isin(("cpu-plain", "cpu-blas"))]
    return labels.shown(
        {
            "machine": row["machine"],
            "on the CPU": title(row),
            "convolution, ours": f"{row['share']:.1%}",
            "the paper": f"{PAPER_SHARE:.0%}",
            "ours / paper": labels.significant(row["share"] / PAPER_SHARE, 3),
            "ceiling, ours": labels.times(1 / (1 - row["share"])),
            "ceiling, paper": labels.times(1 / (1 - PAPER_SHARE)),
        }
        for row in ours.to_dict("records")
    )


@style()
def draw(table):
    """Draw a bar of 100% for each execution, a piece for each function.

    Parameters
    ----------
    table : pandas.DataFrame
        Of suite "functions", from `records.table`.

    Returns
    -------
    Drawn
    """
    plotted = shares(table)
    bars = [
        (machine, title(group.iloc[0]), group)
        for (machine, *_), group in plotted.groupby(
            ["machine", "execution", "algorithm", "rest"], sort=False
        )
    ]
    places = _places([machine for machine, *_ in bars])
    drawing, axes = figure(height=0.9 + 0.19 * (places[-1] + 1))
    for place, (machine, _, group) in zip(places, bars, strict=True):
        bar(axes, place, group)
        if machine != PAPER:
            total = labels.quantity(group["median_s"].sum(), "s")
            axes.text(1.01, place, total, va="center", fontsize=7)
    names = [labels.marked(name, group["stale"].any()) for _, name, group in bars]
    axes.set_yticks(places, names)
    axes.set_ylim(places[-1] + 0.6, -1.6)
    across = axes.get_yaxis_transform()
    for place, (machine, *_), before in zip(places, bars, [None, *bars], strict=False):
        if before is None or before[0] != machine:
            head = {"transform": across, "va": "center", "weight": "bold", "fontsize": 7}
            axes.text(-0.005, place - 0.95, machine, ha="right", **head)
            axes.text(1.01, place - 0.95, "" if machine == PAPER else "total", ha="left", **head)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("share of the time of all functions")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    handles, known = axes.get_legend_handles_labels()
    first = dict(zip(known, handles, strict=True))
    names = [name for name in FUNCTIONS if name in first]
    drawing.legend(
        *([first[name] for name in names], names),
        loc="outside upper center",
        ncols=len(names),
        fontsize=6.5,
        handlelength=1.2,
        columnspacing=1,
    )
    footer(drawing, labels.sources(labels.finished(table)))
    return Drawn(NAME, plotted, drawing, labels.record_ids(labels.finished(table)))


def _places(machines):
    """Return the bars' heights: a free line above each machine's first, for its name."""
    places, place = [], 0.0
    for before, machine in zip([machines[0], *machines], machines, strict=False):
        place += 1.5 if before != machine else 0
        places.append(place)
        place += 1
    return places


def bar(axes, place, group):
    """Draw the shares of one execution, side by side in the order of their rows."""
    left = 0.0
    for row in group.to_dict("records"):
        known = row["function"] in FUNCTIONS
        fill = look(row["function"]).bar if known else {"facecolor": "#e8e8e8"}
        axes.barh(place, row["share"], height=0.78, left=left, **fill)
        if row["share"] >= 0.06:
            text = labels.percent(row["share"]) + ("" if known else f" {OTHERS}")
            # The hatch must not cross the digits.
            box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8}
            axes.text(
                *(left + row["share"] / 2, place, text),
                ha="center",
                va="center",
                fontsize=6.5,
                bbox=box if known else None,
            )
        left += row["share"]
