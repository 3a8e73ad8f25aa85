# SPDX-License-Identifier: MIT
"""Fig. 4: run time per environment, the paper's and ours, under each clock."""

import numpy as np
import pandas as pd
from matplotlib.ticker import FixedLocator, NullLocator

from convstudy import paths
from convstudy.plots import labels
from convstudy.plots.palette import BLACK, ENVIRONMENTS, look
from convstudy.plots.save import Drawn, footer
from convstudy.plots.style import figure, style

NAME = "fig4_execution_time"
PAPER = "the paper"
COLUMNS = ("environment", "execution", "clock", "what", "median_s", "paper_s", "machine")
WHATS = {"convolution": "the 18 convolutions", "network": "the whole network"}
_CLOCKS = ("synchronised", "event", "host", "")
_EXECUTIONS = ("cpu", "offload", "resident")
# The host's clock, when nobody waits for the GPU; the GPU's own events.
_MARKS = {"host": "<", "event": "o"}
_HOLLOW = {
    "markeredgecolor": BLACK,
    "markerfacecolor": "white",
    "markeredgewidth": 0.7,
    "markersize": 4.5,
}


def paper():
    """Return the seconds that the paper prints, by environment and what was timed."""
    printed = pd.read_csv(paths.PAPER / "execution_time.csv")
    return printed.set_index(["environment", "what"])["seconds"]


def bars(table):
    """Return one row for each time of one image.

    What `offload` leaves on the CPU runs as plain loops, as the paper's does.

    Parameters
    ----------
    table : pandas.DataFrame
        Of suite "environments", from `records.table`.

    Returns
    -------
    pandas.DataFrame
        Columns `COLUMNS`. The paper's seconds stand beside the executions that it had, whatever
        the clock: it does not say which it used. What no machine has measured of the paper's comes
        last: machine `PAPER`, no clock, `median_s` NaN.
    """
    done = labels.finished(table)
    if done.empty:
        return pd.DataFrame(columns=COLUMNS)
    done = done[done["rest"] != "cpu-blas"]
    printed = paper()
    known = [
        printed.get((row.environment, row.what), float("nan"))
        if row.execution in ("cpu", "offload")
        else float("nan")
        for row in done.itertuples()
    ]
    done = pd.concat([done.assign(paper_s=known), _alone(printed, done)], ignore_index=True)
    orders = {
        "machine": list(done["machine"].drop_duplicates()),
        "environment": list(ENVIRONMENTS),
        "execution": _EXECUTIONS,
        "what": list(WHATS),
        "clock": _CLOCKS,
    }
    order = pd.DataFrame(
        {name: done[name].map(list(values).index) for name, values in orders.items()}
    )
    return done.loc[order.sort_values(list(orders)).index, list(COLUMNS)].reset_index(drop=True)


def _alone(printed, done):
    """Return rows of what the paper printed and `done` has no time to put beside."""
    beside = done[done["execution"] != "resident"][printed.index.names]
    theirs = printed[~printed.index.isin(pd.MultiIndex.from_frame(beside))]
    theirs = theirs.rename("paper_s").reset_index().assign(machine=PAPER, clock="")
    on_cpu = theirs["environment"].str.startswith("CPU")
    return theirs.assign(execution=on_cpu.map({True: "cpu", False: "offload"}))


def impossible(plotted, slack=0.1):
    """Return, one sentence each, what cannot be: a sign that something else was measured.

    Parameters
    ----------
    plotted : pandas.DataFrame
        From `bars`.
    slack : float
        Medians of separate runs may contradict each other by this share.
    """
    found = []
    names = ["machine", "environment", "execution"]
    for key, rows in plotted.groupby(names, sort=False):
        times = rows.set_index(["what", "clock"])["median_s"].to_dict()
        for smaller, larger in (
            (("convolution", "synchronised"), ("network", "synchronised")),
            (("convolution", "event"), ("convolution", "synchronised")),
            (("network", "event"), ("network", "synchronised")),
        ):
            pair = times.get(smaller), times.get(larger)
            if None not in pair and pair[0] > (1 + slack) * pair[1]:
                found.append(
                    f"{', '.join(key)}: {' by '.join(smaller)} is longer than {' by '.join(larger)}"
                )
    return found


def compared(plotted):
    """Return ours, theirs and the ratio, by the clock that waits."""
    rows = plotted[(plotted["clock"] == "synchronised") & plotted["paper_s"].notna()]
    return labels.shown(
        {
            "machine": row["machine"],
            "environment": row["environment"],
            "what": row["what"],
            "ours": labels.quantity(row["median_s"], "s"),
            "the paper": labels.quantity(row["paper_s"], "s"),
            "ours / paper": labels.significant(row["median_s"] / row["paper_s"]),
        }
        for row in rows.to_dict("records")
    )


@style()
def draw(table):
    """Draw a bar for each environment and execution, the paper's numbers as diamonds.

    Parameters
    ----------
    table : pandas.DataFrame
        Of suite "environments", from `records.table`.

    Returns
    -------
    Drawn
        Without a figure where nothing was measured.
    """
    plotted = bars(table)
    if plotted.empty:
        return Drawn(NAME, plotted)
    parts = [(machine, _lines(rows)) for machine, rows in plotted.groupby("machine", sort=False)]
    heights = [len(lines) for _, lines in parts]
    drawing, axes = figure(
        *(len(parts), 2),
        height=1.0 + 0.175 * sum(heights) + 0.25 * len(parts),
        squeeze=False,
        sharex=True,
        sharey="row",
        height_ratios=heights,
    )
    for (machine, lines), panels in zip(parts, axes, strict=True):
        for panel, (what, title) in zip(panels, WHATS.items(), strict=True):
            _panel(panel, [(rows[rows["what"] == what], name) for rows, name in lines])
            panel.set_title(f"{machine}: {title}", loc="left")
    seconds = plotted[["median_s", "paper_s"]]
    axes[0, 0].set_xlim(seconds.min().min() / 2, 7000 * seconds.max().max())
    _legend(drawing, axes[0, 0])
    footer(drawing, labels.sources(labels.finished(table)))
    return Drawn(NAME, plotted, drawing, labels.record_ids(labels.finished(table)))


def _lines(rows):
    """Return (rows, name) of each bar: an environment's name stands at its first only."""
    lines, last = [], None
    for (environment, execution), group in rows.groupby(["environment", "execution"], sort=False):
        name = environment if environment != last else ""
        how = "" if execution == "cpu" else execution
        lines.append((group, "   ".join(part for part in (name, how) if part)))
        last = environment
    return lines


def _panel(axes, lines):
    for place, (rows, _) in enumerate(lines):
        for row in rows.to_dict("records"):
            _mark(axes, place, row)
        printed = rows["paper_s"].dropna()
        if len(printed):
            axes.plot(printed.iloc[0], place, "D", color=BLACK, markersize=4.5, zorder=4)
    axes.set_yticks(range(len(lines)), [name for _, name in lines])
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator([1e-5, 1e-3, 0.1, 10]))
    axes.xaxis.set_major_formatter(lambda value, _: labels.quantity(value, "s"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)


def _mark(axes, place, row):
    appearance = look(row["environment"])
    if row["clock"] in _MARKS:
        axes.plot(row["median_s"], place, _MARKS[row["clock"]], **_HOLLOW, zorder=3)
        return
    faint = 0.55 if row["execution"] == "resident" else 1
    axes.barh(place, row["median_s"], height=0.72, **appearance.bar | {"alpha": faint})
    right = np.nanmax([row["median_s"], row["paper_s"]])
    text = labels.quantity(row["median_s"], "s") or "not measured"
    if row["paper_s"] > 0:
        text += f" (paper {labels.quantity(row['paper_s'], 's')})"
    axes.annotate(
        text,
        *((right, place), (6, 0)),
        textcoords="offset points",
        va="center",
        fontsize=6.5,
    )


def _legend(drawing, axes):
    handles = [
        axes.barh(0, 0, facecolor="#777777", label="until the work is done (synchronised clock)"),
        *axes.plot([], [], _MARKS["event"], **_HOLLOW, label="event clock"),
        *axes.plot([], [], _MARKS["host"], **_HOLLOW, label="host clock that does not wait"),
        *axes.plot([], [], "D", color=BLACK, label="the paper"),
    ]
    drawing.legend(handles=handles, loc="outside upper center", ncols=4)
