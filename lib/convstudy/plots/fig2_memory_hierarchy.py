# SPDX-License-Identifier: MIT
"""Fig. 2: how far away each level of memory is, and how wide the way."""

import pandas as pd
from matplotlib.ticker import LogLocator, NullLocator

from convstudy.plots import labels
from convstudy.plots.palette import BLUE, GREY, VERMILLION
from convstudy.plots.save import Drawn, footer
from convstudy.plots.style import figure, style
from convstudy.records import statistics

NAME = "fig2_memory_hierarchy"
# The text: shared memory is about 100 times faster to reach than global memory.
PAPER_RATIO = 100

# From near to far; each processor's last is its main memory.
SPACES = {
    "gpu": ("registers", "shared", "L1", "L2", "device"),
    "cpu": ("L1", "L2", "L3", "DRAM"),
}
_TITLES = {"shared": "shared memory", "device": "device memory", "registers": "registers (bound)"}
_COLORS = {"gpu": BLUE, "cpu": GREY}
COLUMNS = (
    *("machine", "processor", "space", "working_set_bytes", "latency_s", "latency_cycles"),
    *("bandwidth_bytes_per_s", "latency_ratio", "bandwidth_ratio", "paper_ratio"),
    *("bound", "stale"),
)


def levels(table):
    """Return one row a level of memory.

    Parameters
    ----------
    table : pandas.DataFrame
        Of suite "memory", from `records.table`.

    Returns
    -------
    pandas.DataFrame
        Columns `COLUMNS`. The ratios say how many times better a level is than the processor's
        main memory. `bound`: a register has no load of its own; its latency is that of a
        multiply-add that waits for the one before (registers are no slower), its bandwidth the
        operands that multiply-adds consume (registers are no narrower).
    """
    done = labels.finished(table)
    rows = [
        row
        for machine in done["machine"].drop_duplicates()
        for processor in SPACES
        for row in _of_processor(done[done["machine"] == machine], machine, processor)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def _of_processor(done, machine, processor):
    rows = []
    for space in SPACES[processor]:
        found = done[(done["processor"] == processor) & (done["space"] == space)]
        if found.empty:
            continue
        by = {row["quantity"]: row for _, row in found.iterrows()}
        latency, bandwidth = by.get("latency"), by.get("bandwidth")
        rows.append(
            {
                "machine": machine,
                "processor": processor,
                "space": space,
                "working_set_bytes": found["value_working_set_bytes"].iloc[0],
                "latency_s": latency["median_s"] if latency is not None else float("nan"),
                "latency_cycles": _cycles(latency),
                "bandwidth_bytes_per_s": _rate(bandwidth),
                "paper_ratio": PAPER_RATIO if space == "shared" else float("nan"),
                "bound": space == "registers",
                "stale": bool(found["stale"].any()),
            }
        )
    main = rows[-1] if rows and rows[-1]["space"] == SPACES[processor][-1] else {}
    for row in rows:
        row["latency_ratio"] = main.get("latency_s", float("nan")) / row["latency_s"]
        row["bandwidth_ratio"] = row["bandwidth_bytes_per_s"] / main.get(
            "bandwidth_bytes_per_s", float("nan")
        )
    return rows


def _cycles(row):
    cycles = None if row is None else row.get("value_cycles")
    return statistics.median(cycles) if isinstance(cycles, list) else float("nan")


def _rate(row):
    return float("nan") if row is None else row["value_bytes"] / row["median_s"]


def compared(plotted):
    """Return, for each GPU, how much faster shared memory is, beside the paper's number."""
    rows = []
    for row in plotted[plotted["space"] == "shared"].to_dict("records"):
        for name in ("latency", "bandwidth"):
            ours = row[f"{name}_ratio"]
            rows.append(
                {
                    "machine": row["machine"],
                    "shared against device memory": name,
                    "ours": labels.times(ours),
                    "the paper": f"about {labels.times(PAPER_RATIO)}",
                    "ours / paper": labels.significant(ours / PAPER_RATIO),
                }
            )
    return labels.shown(rows)


def display(plotted):
    """Return the plotted table as people read it."""
    rows = []
    for row in plotted.to_dict("records"):
        cycles = row["latency_cycles"]
        rows.append(
            {
                "machine": row["machine"],
                "processor": row["processor"].upper(),
                "memory": labels.marked(title(row), row["stale"]),
                "latency": labels.quantity(row["latency_s"], "s"),
                "cycles": f"{cycles:.0f}" if cycles == cycles else "",
                "nearer than main memory": labels.times(row["latency_ratio"]),
                "bandwidth": labels.quantity(row["bandwidth_bytes_per_s"], "B/s"),
                "wider than main memory": labels.times(row["bandwidth_ratio"]),
            }
        )
    return labels.shown(rows)


def title(row):
    """Return a level's name as a figure shows it."""
    return _TITLES.get(row["space"], row["space"])


@style()
def draw(table):
    """Draw latency and bandwidth of each level, labelled with their ratio to main memory.

    Parameters
    ----------
    table : pandas.DataFrame
        Of suite "memory", from `records.table`.

    Returns
    -------
    Drawn
        Without a figure where nothing was measured.
    """
    plotted = levels(table)
    if plotted.empty:
        return Drawn(NAME, plotted)
    heads, rows = _lines(plotted)
    bottom = rows[-1][0]
    drawing, (left, right) = figure(1, 2, height=0.8 + 0.165 * bottom, sharey=True)
    for axes, quantity in ((left, _LATENCY), (right, _BANDWIDTH)):
        _panel(axes, rows, *quantity)
    left.set_yticks([height for height, *_ in rows], [name for _, name, *_ in rows])
    left.set_ylim(bottom + 0.7, -0.6)
    across = left.get_yaxis_transform()
    for height, text in heads:
        left.text(0.01, height, text, transform=across, va="center", weight="bold", fontsize=7)
    footer(drawing, labels.sources(labels.finished(table)))
    return Drawn(NAME, plotted, drawing, labels.record_ids(labels.finished(table)))


# Column, its ratio, unit, sign of a bound, and what the axis is called.
_LATENCY = ("latency_s", "latency_ratio", "s", "≤ ", "latency: one load after another")
_BANDWIDTH = (
    *("bandwidth_bytes_per_s", "bandwidth_ratio", "B/s", "≥ "),
    "bandwidth: all cores reading",
)


def _lines(plotted):
    """Return (height, heading) of each processor, and (height, name, row, is_paper) of each line.

    The paper's ratio has a line of its own below the level that it speaks of.
    """
    heads, lines, height = [], [], 0.0
    for (machine, processor), group in plotted.groupby(["machine", "processor"], sort=False):
        heads.append((height, f"{processor.upper()} of {machine}"))
        for row in group.to_dict("records"):
            height += 1
            lines.append((height, labels.marked(title(row), row["stale"]), row, False))
            if row["paper_ratio"] == row["paper_ratio"]:
                height += 1
                lines.append((height, "the paper's claim", row, True))
        height += 1.5
    return heads, lines


def _panel(axes, lines, column, ratio, unit, sign, label):
    values = [row[column] for _, _, row, _ in lines if row[column] == row[column]]
    low, high = min(values) / 2, max(values)
    for height, _, row, is_paper in lines:
        value, times, bound = row[column], row[ratio], row["bound"]
        color = _COLORS[row["processor"]]
        if value != value:
            continue
        if is_paper:
            # Where shared memory would lie, were it the paper's ratio away from main memory.
            further = row["paper_ratio"] / times
            value = value / further if ratio == "latency_ratio" else value * further
            times, color = row["paper_ratio"], VERMILLION
        face = "white" if bound or is_paper else color
        axes.plot([low, value], [height, height], color=color, lw=0.6, alpha=0.5)
        axes.plot(value, height, "D" if is_paper else "o", color=color, markerfacecolor=face)
        text = [(sign if bound else "") + labels.quantity(value, unit)]
        if column == "latency_s" and not is_paper and row["latency_cycles"] > 0:
            text.append(f"{row['latency_cycles']:.0f} cycles")
        if row["space"] != SPACES[row["processor"]][-1]:
            text.append(("≥ " if bound else "") + labels.times(times))
        axes.annotate(
            "  ·  ".join(text),
            *((value, height), (6, -0.5)),
            textcoords="offset points",
            va="center",
            fontsize=6.5,
            color=color if is_paper else "black",
        )
    axes.set_xscale("log")
    # Room for what is written to the right of the last point.
    axes.set_xlim(low, high * (high / low) ** 0.75)
    axes.xaxis.set_major_locator(LogLocator(numticks=5))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: labels.quantity(value, unit))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(label)
