# SPDX-License-Identifier: MIT
"""Fig. 4, the ceiling: what faster convolutions can do for a network whose rest stays."""

import numpy as np
import pandas as pd
from matplotlib.ticker import FixedLocator, NullLocator

from convstudy.plots import labels
from convstudy.plots.fig4_execution_time import bars, paper
from convstudy.plots.palette import BLACK, ENVIRONMENTS, GREY, look
from convstudy.plots.save import Drawn, footer
from convstudy.plots.style import figure, style
from convstudy.records import statistics

NAME = "fig4_amdahl"
PAPER = "the paper"
_CPU = "CPU, plain loops"
COLUMNS = (
    *("machine", "environment", "execution", "convolution_share", "convolution_speedup"),
    *("network_speedup", "amdahl", "ceiling"),
)


def points(table):
    """Return how much faster than plain loops each environment with a GPU is.

    Parameters
    ----------
    table : pandas.DataFrame
        Of suite "environments", from `records.table`.

    Returns
    -------
    pandas.DataFrame
        Columns `COLUMNS`, the paper's rows last. `amdahl` is what the network gains by Amdahl's
        law where nothing but the convolutions is faster, `ceiling` where they take no time.
    """
    measured = bars(table)
    measured = measured[measured["clock"] == "synchronised"]
    rows = []
    for machine, here in measured.groupby("machine", sort=False):
        keys = ["environment", "execution"]
        times = here.pivot(index=keys, columns="what", values="median_s")
        times = times.loc[here[keys].drop_duplicates().itertuples(index=False)]
        rows += _rows(machine, times.reindex(columns=["convolution", "network"]).dropna())
    printed = paper().unstack().dropna().reindex(list(ENVIRONMENTS))
    printed.index = pd.MultiIndex.from_tuples(
        [(name, "cpu" if name == _CPU else "offload") for name in printed.index]
    )
    return pd.DataFrame(rows + _rows(PAPER, printed.dropna()), columns=COLUMNS)


def _rows(machine, times):
    if (_CPU, "cpu") not in times.index:
        return []
    plain = times.loc[(_CPU, "cpu")]
    share = plain["convolution"] / plain["network"]
    rows = []
    for (environment, execution), row in times.iterrows():
        if execution == "cpu":
            continue
        faster = statistics.speedup(row["convolution"], plain["convolution"])
        rows.append(
            {
                "machine": machine,
                "environment": environment,
                "execution": execution,
                "convolution_share": share,
                "convolution_speedup": faster,
                "network_speedup": statistics.speedup(row["network"], plain["network"]),
                "amdahl": statistics.amdahl(share, faster),
                "ceiling": statistics.amdahl(share, float("inf")),
            }
        )
    return rows


def display(plotted):
    """Return the plotted table as people read it."""
    return labels.shown(
        {
            "machine": row["machine"],
            "environment": row["environment"],
            "execution": row["execution"],
            "convolution faster": labels.times(row["convolution_speedup"]),
            "Amdahl says": labels.times(row["amdahl"]),
            "network faster": labels.times(row["network_speedup"]),
            "ceiling": labels.times(row["ceiling"]),
        }
        for row in plotted.to_dict("records")
    )


@style()
def draw(table):
    """Draw the network's gain against the convolutions', and Amdahl's curve for each share.

    Parameters
    ----------
    table : pandas.DataFrame
        Of suite "environments", from `records.table`.

    Returns
    -------
    Drawn
        Always with the paper's own points.
    """
    plotted = points(table)
    machines = list(plotted.groupby("machine", sort=False))
    drawing, axes = figure(1, len(machines), height=3.1, sharex=True, sharey=True, squeeze=False)
    right = 5 * plotted["convolution_speedup"].max()
    for panel, (machine, rows) in zip(axes[0], machines, strict=True):
        _panel(panel, rows, right)
        panel.set_title(machine, loc="left")
        panel.set_xlabel("convolutions: times as fast")
    axes[0, 0].set_ylabel("whole network: times as fast")
    top = 3 * plotted["network_speedup"].max()
    axes[0, 0].set(xscale="log", yscale="log", xlim=(0.5, right), ylim=(0.7, top))
    axes[0, 0].xaxis.set_major_locator(FixedLocator([1, 100, 10000]))
    axes[0, 0].xaxis.set_minor_locator(NullLocator())
    for axis in (axes[0, 0].xaxis, axes[0, 0].yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    _legend(drawing, axes[0, 0], plotted)
    used = labels.finished(table)
    used = used[used["machine"].isin(plotted["machine"])]
    footer(drawing, labels.sources(used))
    return Drawn(NAME, plotted, drawing, labels.record_ids(used))


def _panel(axes, rows, right):
    share, ceiling = rows[["convolution_share", "ceiling"]].iloc[0]
    gains = np.geomspace(0.5, right, 200)
    axes.plot(gains, statistics.amdahl(share, gains), color=BLACK, lw=1)
    axes.axhline(ceiling, color=GREY, lw=0.8, ls="--")
    axes.annotate(
        f"convolution {share:.1%}: at most {labels.times(ceiling)}",
        *((0.8, ceiling), (0, 3)),
        textcoords="offset points",
        fontsize=6.5,
        color="#555555",
    )
    for row in rows.to_dict("records"):
        appearance = look(row["environment"])
        resident = row["execution"] == "resident"
        axes.plot(
            *(row["convolution_speedup"], row["network_speedup"], appearance.marker),
            markeredgecolor=appearance.color,
            markerfacecolor="white" if resident else appearance.color,
            markersize=6,
        )
    axes.grid()


def _legend(drawing, axes, plotted):
    names = [name for name in ENVIRONMENTS if name in set(plotted["environment"])]
    handles = [
        axes.plot([], [], look(name).marker, color=look(name).color, label=name, markersize=6)[0]
        for name in names
    ]
    handles += axes.plot([], [], "o", color=GREY, label="filled: offload")
    handles += axes.plot(
        *([], [], "o"), markeredgecolor=GREY, markerfacecolor="white", label="hollow: resident"
    )
    handles += axes.plot([], [], color=BLACK, label="Amdahl's law")
    drawing.legend(handles=handles, loc="outside upper center", ncols=4)
