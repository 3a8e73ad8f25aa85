# SPDX-License-Identifier: MIT
"""VGG-16 and ResNet: the share of time of each function, while convolution is slow and after."""

import pandas as pd
from matplotlib.ticker import PercentFormatter

from convstudy.plots import labels, tab1_function_time
from convstudy.plots.fig1_function_share import bar
from convstudy.plots.figS4_networks import NETWORKS
from convstudy.plots.palette import FUNCTIONS
from convstudy.plots.save import Drawn, footer
from convstudy.plots.style import figure, named, style
from convstudy.plots.tab1_function_time import WHOLE, title

NAME = "figS4_shares"
COLUMNS = ("machine", "network", *tab1_function_time.COLUMNS[1:])
# P4: "more than 70%".
PAPER_SHARE = 0.7


def shares(table):
    """Return one row a function, of each network and way of executing it, for one image.

    Parameters
    ----------
    table : pandas.DataFrame
        Of suite "networks", from `records.table`.

    Returns
    -------
    pandas.DataFrame
        Columns `COLUMNS`. Of PyTorch's layouts the faster one counts. In fp32, as all that is
        compared here.
    """
    done = labels.finished(table)
    if done.empty:
        return pd.DataFrame(columns=COLUMNS)
    # As one program, a network's functions are launches of a graph, timed by events.
    fused = (done["execution"] == "program") & (done["what"] == "inference")
    fused &= done["precision"] == "fp32"
    done = done[(done["n"] == 1) & (done["gpus"] < 2)]
    done = done[(done["clock"] == "synchronised") | fused.loc[done.index]]
    done = done.fillna({"layout": ""}) if "layout" in done else done.assign(layout="")
    whole = done[done["function"] == WHOLE].sort_values("median_s")
    chosen = whole.drop_duplicates(["machine", "network", "execution", "algorithm", "rest"])
    keys = ["machine", "network", "execution", "algorithm", "rest", "layout"]
    done = done.merge(chosen[keys], on=keys)
    frames = [
        tab1_function_time.functions(rows).assign(network=network)
        for network, rows in done.groupby("network", sort=False)
    ]
    if not frames:
        return pd.DataFrame(columns=COLUMNS)
    found = pd.concat(frames, ignore_index=True)
    return found[found["function"] != WHOLE].reindex(columns=COLUMNS).reset_index(drop=True)


def display(plotted):
    """Return convolution's share and all of the time, as people read them."""
    ways = ["machine", "network", "execution", "algorithm", "rest"]
    rows = []
    for _, group in plotted.groupby(ways, sort=False):
        first, times = group.iloc[0], group.set_index("function")["median_s"]
        rows.append(
            {
                "machine": first["machine"],
                "network": NETWORKS[first["network"]],
                "execution": labels.marked(title(first), group["stale"].any()),
                "convolution": f"{times['convolution'] / times.sum():.1%}",
                "all functions": labels.quantity(times.sum(), "s"),
            }
        )
    return labels.shown(rows)


@style()
def draw(table):
    """Draw, for each machine and network, a bar of 100% for each execution.

    Parameters
    ----------
    table : pandas.DataFrame
        Of suite "networks", from `records.table`.

    Returns
    -------
    Drawn
        Without a figure where nothing was measured.
    """
    plotted = shares(table)
    if plotted.empty:
        return Drawn(NAME, plotted)
    parts = [
        (f"{machine}: {NETWORKS[network]}", _bars(rows))
        for (machine, network), rows in plotted.groupby(["machine", "network"], sort=False)
    ]
    heights = [len(bars) for _, bars in parts]
    drawing, axes = figure(
        *(len(parts), 1),
        height=0.9 + 0.19 * sum(heights) + 0.35 * len(parts),
        squeeze=False,
        sharex=True,
        height_ratios=heights,
    )
    for (name, bars), panel in zip(parts, axes[:, 0], strict=True):
        _panel(panel, bars)
        panel.set_title(name, loc="left")
    axes[-1, 0].set_xlabel("share of the time of all functions")
    _legend(drawing, axes[:, 0])
    footer(drawing, labels.sources(labels.finished(table)))
    return Drawn(NAME, plotted, drawing, labels.record_ids(labels.finished(table)))


def _bars(rows):
    ways = ["execution", "algorithm", "rest"]
    return [group for _, group in rows.groupby(ways, sort=False)]


def _panel(axes, bars):
    for place, group in enumerate(bars):
        bar(axes, place, group)
        total = labels.quantity(group["median_s"].sum(), "s")
        axes.text(1.01, place, total, va="center", fontsize=7)
    names = [labels.marked(title(group.iloc[0]), group["stale"].any()) for group in bars]
    axes.set_yticks(range(len(bars)), names)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.axvline(PAPER_SHARE, color="#666666", lw=0.8, ls="--")
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _legend(drawing, panels):
    found = named(panels)
    names = [name for name in FUNCTIONS if name in found]
    drawing.legend(
        *([found[name] for name in names], names),
        loc="outside upper center",
        ncols=len(names),
        fontsize=6.5,
        handlelength=1.2,
        columnspacing=1,
    )
