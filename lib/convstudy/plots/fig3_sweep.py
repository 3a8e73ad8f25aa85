# SPDX-License-Identifier: MIT
"""Fig. 3, the other half: how the time of a batch falls with chunks, streams and GPUs."""

import pandas as pd
from matplotlib.ticker import NullLocator

from convstudy import paths
from convstudy.plots import labels
from convstudy.plots.palette import BLACK, BLUE, GREEN, GREY, PURPLE, VERMILLION
from convstudy.plots.save import Drawn, footer
from convstudy.plots.style import figure, style

NAME = "fig3_sweep"
COLUMNS = (
    *("machine", "gpus", "streams", "chunks", "n", "median_s", "p20_s", "p80_s"),
    *("images_per_s", "stale"),
)
_COLORS = {0: GREY, 1: VERMILLION, 2: BLUE, 4: GREEN, 8: PURPLE}
_LINES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D")


def sweep(table):
    """Return one row a cut: the time of the whole batch, transfers included.

    Parameters
    ----------
    table : pandas.DataFrame
        Of suite "chunks", from `records.table`.

    Returns
    -------
    pandas.DataFrame
        Columns `COLUMNS`.
    """
    done = labels.finished(table)
    if not done.empty:
        done = done[done["kind"] == "sweep"]
        done = done.assign(images_per_s=done["n"] / done["median_s"])
    return done.reindex(columns=COLUMNS).reset_index(drop=True)


def best(plotted):
    """Return the fastest cut of each machine and number of GPUs, against the fastest on one GPU."""
    if plotted.empty:
        return plotted.assign(gain=pd.Series(dtype=float))
    fastest = plotted.loc[plotted.groupby(["machine", "gpus"])["median_s"].idxmin()]
    alone = fastest[fastest["gpus"] == 1].set_index("machine")["median_s"]
    gain = fastest["machine"].map(alone) / fastest["median_s"]
    return fastest.assign(gain=gain).reset_index(drop=True)


def display(plotted):
    """Return `best` as people read it."""
    return labels.shown(
        {
            "machine": row["machine"],
            "GPUs": row["gpus"] or "none (CPU)",
            "fastest cut": _cut(row["streams"], row["chunks"]),
            "images": row["n"],
            "time": labels.marked(labels.quantity(row["median_s"], "s"), row["stale"]),
            "images a second": labels.significant(row["images_per_s"], 3),
            "against one GPU": labels.times(row["gain"]),
        }
        for row in best(plotted).to_dict("records")
    )


def compared(plotted):
    """Return what the second GPU gains here, beside what it gained in the paper."""
    printed = pd.read_csv(paths.PAPER / "execution_time.csv")
    printed = printed.pivot(index="what", columns="environment", values="seconds")
    gains = printed["1 GPU, tiled"] / printed["2 GPUs, tiled + data parallel"]
    return labels.shown(
        {
            "machine": ours["machine"],
            "gain of 2 GPUs over 1": what,
            "ours: the whole network": labels.times(ours["gain"]),
            "the paper": labels.significant(gain, 3) + "×",
            "ours / paper": labels.significant(ours["gain"] / gain),
        }
        for ours in best(plotted).query("gpus == 2").to_dict("records")
        for what, gain in gains.items()
    )


@style()
def draw(table):
    """Draw time against chunks, a line for each number of GPUs and streams.

    Parameters
    ----------
    table : pandas.DataFrame
        Of suite "chunks", from `records.table`.

    Returns
    -------
    Drawn
        Without a figure where nothing was measured.
    """
    plotted = sweep(table)
    if plotted.empty:
        return Drawn(NAME, plotted)
    machines = list(plotted.groupby("machine", sort=False))
    drawing, axes = figure(1, len(machines), height=2.4, squeeze=False)
    for panel, (machine, rows) in zip(axes[0], machines, strict=True):
        _panel(panel, rows)
        name = labels.marked(machine, rows["stale"].any())
        panel.set_title(f"{name}: a batch of {rows['n'].iloc[0]} images", loc="left")
    axes[0, 0].set_ylabel("time of the batch, copies included")
    footer(drawing, labels.sources(labels.finished(table)))
    return Drawn(NAME, plotted, drawing, labels.record_ids(labels.finished(table)))


def _panel(axes, rows):
    streams = sorted(rows["streams"].unique())
    for (gpus, each), line in rows.groupby(["gpus", "streams"]):
        line = line.sort_values("chunks")
        place = streams.index(each)
        axes.errorbar(
            line["chunks"],
            line["median_s"],
            (line["median_s"] - line["p20_s"], line["p80_s"] - line["median_s"]),
            color=_COLORS.get(gpus, BLACK),
            ls=_LINES[place % len(_LINES)],
            marker=_MARKERS[place % len(_MARKERS)],
            markersize=3.5,
            elinewidth=0.6,
            label=_label(gpus, each),
        )
    axes.set_xscale("log", base=2)
    chunks = sorted(rows["chunks"].unique())
    axes.set_xticks(chunks, [str(each) for each in chunks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("chunks")
    axes.set_ylim(0, 1.1 * rows["p80_s"].max())
    axes.yaxis.set_major_formatter(lambda value, _: labels.quantity(value, "s"))
    axes.grid(axis="y")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=3)


def _label(gpus, streams):
    return f"{labels.many(gpus, 'GPU')}, {labels.many(streams, 'stream')}" if gpus else "CPU"


def _cut(streams, chunks):
    return f"{labels.many(streams, 'stream')}, {labels.many(chunks, 'chunk')}"
