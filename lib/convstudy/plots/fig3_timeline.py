# SPDX-License-Identifier: MIT
"""Fig. 3, from real events: what every stream of every GPU did, and when."""

import itertools

import pandas as pd
from matplotlib.patches import Patch

from convstudy.plots import labels
from convstudy.plots.palette import BLUE, ORANGE, SKY
from convstudy.plots.save import Drawn, footer
from convstudy.plots.style import figure, style

NAME = "fig3_timeline"
COLUMNS = (
    *("machine", "gpus", "streams", "chunks", "gpu", "stream", "chunk", "what"),
    *("start_s", "stop_s", "stale"),
)
_COLORS = {"copy in": ORANGE, "compute": SKY, "copy out": BLUE}
# Copies of a batch this small are thinner than a pixel.
_VISIBLE = 0.006


def events(table):
    """Return one row an event of each machine's timelines on most of its GPUs.

    Parameters
    ----------
    table : pandas.DataFrame
        Of suite "chunks", from `records.table`.

    Returns
    -------
    pandas.DataFrame
        Columns `COLUMNS`; times in seconds since the run began.
    """
    rows = []
    for case in _timelines(table).to_dict("records"):
        same = {name: case[name] for name in ("machine", "gpus", "streams", "chunks", "stale")}
        rows += [same | event for event in case["value_events"]]
    return pd.DataFrame(rows, columns=COLUMNS)


def _timelines(table):
    done = labels.finished(table)
    if done.empty:
        return done
    done = done[done["kind"] == "timeline"]
    most = done.groupby("machine")["gpus"].transform("max")
    return done[done["gpus"] == most]


def overlap(plotted):
    """Return how busy the GPUs are in each timeline, and how much of the copying is hidden.

    Returns
    -------
    pandas.DataFrame
        machine, GPUs, streams, chunks; total_s, from the first event to the last; copy_s, the
        time in which anything is copied; hidden: the share of it in which anything is computed.
    """
    keys = ["machine", "gpus", "streams", "chunks"]
    rows = []
    for key, case in plotted.groupby(keys, sort=False):
        copying, hidden = 0.0, 0.0
        # Between two neighbouring instants nothing begins and nothing ends.
        instants = sorted({*case["start_s"], *case["stop_s"]})
        for start, stop in itertools.pairwise(instants):
            active = case[(case["start_s"] <= start) & (case["stop_s"] >= stop)]
            for _, on_gpu in active.groupby("gpu"):
                copies = set(on_gpu["what"]) - {"compute"}
                copying += (stop - start) * bool(copies)
                hidden += (stop - start) * bool(copies and "compute" in set(on_gpu["what"]))
        total = case["stop_s"].max() - case["start_s"].min()
        share = hidden / copying if copying else float("nan")
        rows.append(
            dict(zip(keys, key, strict=True))
            | {"total_s": total, "copy_s": copying, "hidden": share}
        )
    return pd.DataFrame(rows, columns=[*keys, "total_s", "copy_s", "hidden"])


def display(plotted):
    """Return `overlap` as people read it."""
    return labels.shown(
        {
            "machine": row["machine"],
            "GPUs": row["gpus"],
            "streams a GPU": row["streams"],
            "chunks": row["chunks"],
            "from first to last event": labels.quantity(row["total_s"], "s"),
            "GPU time with copies": labels.quantity(row["copy_s"], "s"),
            "of it behind computing": f"{row['hidden']:.0%}",
        }
        for row in overlap(plotted).to_dict("records")
    )


@style()
def draw(table):
    """Draw each timeline: a lane a stream, a bar an event.

    Parameters
    ----------
    table : pandas.DataFrame
        Of suite "chunks", from `records.table`.

    Returns
    -------
    Drawn
        Without a figure where no timeline was recorded.
    """
    plotted = events(table)
    if plotted.empty:
        return Drawn(NAME, plotted)
    cases = list(plotted.groupby(["machine", "gpus", "streams", "chunks"], sort=False))
    lanes = [len(case[["gpu", "stream"]].drop_duplicates()) for _, case in cases]
    heights = [0.5 + 0.24 * lane for lane in lanes]
    drawing, axes = figure(
        *(len(cases), 1), height=0.7 + sum(heights), squeeze=False, height_ratios=heights
    )
    # One scale for all timelines of a machine: a shorter one then looks shorter.
    ends = plotted.groupby("machine")["stop_s"].max()
    for panel, (key, case) in zip(axes[:, 0], cases, strict=True):
        _panel(panel, case, 1.02 * ends[key[0]])
        panel.set_title(_title(*key, bool(case["stale"].any())), loc="left")
        if key[1]:
            copies = overlap(case)["copy_s"].iloc[0]
            panel.set_title(f"copies: {labels.quantity(copies, 's')} of GPU time", loc="right")
    axes[-1, 0].set_xlabel("time since the run began")
    handles = [Patch(color=color, label=what) for what, color in _COLORS.items()]
    drawing.legend(handles=handles, loc="outside upper right", ncols=len(handles))
    used = _timelines(table)
    note = f"copies are drawn at least {_VISIBLE:.1%} of the axis wide"
    footer(drawing, f"{labels.sources(used)}\n{note}")
    return Drawn(NAME, plotted, drawing, labels.record_ids(used))


def _title(machine, gpus, streams, chunks, stale):
    where = f"{labels.many(gpus, 'GPU')}, {labels.many(streams, 'stream')}" if gpus else "CPU"
    each = " each" * (gpus > 1)
    return labels.marked(f"{machine}: {where}{each}, {labels.many(chunks, 'chunk')}", stale)


def _panel(axes, case, end):
    lanes = sorted(case[["gpu", "stream"]].drop_duplicates().itertuples(index=False, name=None))
    for event in case.to_dict("records"):
        lane = lanes.index((event["gpu"], event["stream"]))
        start, length = event["start_s"], event["stop_s"] - event["start_s"]
        drawn = length if event["what"] == "compute" else max(length, _VISIBLE * end)
        # A copy that is widened takes the room from its own chunk's computing.
        left = event["stop_s"] - drawn if event["what"] == "copy out" else start
        axes.barh(lane, drawn, 0.8, left, color=_COLORS[event["what"]], zorder=2 + (drawn > length))
        if event["what"] == "compute" and length > 0.06 * end:
            axes.text(
                start + length / 2,
                lane,
                f"chunk {event['chunk']}",
                ha="center",
                va="center",
                fontsize=6,
            )
    several = len({stream for _, stream in lanes}) > 1
    on_gpu = case["gpus"].iloc[0] > 0
    names = [
        (f"GPU {gpu}" + f", stream {stream}" * several) if on_gpu else "CPU"
        for gpu, stream in lanes
    ]
    axes.set_yticks(range(len(lanes)), names)
    axes.set_ylim(len(lanes) - 0.5, -0.5)
    axes.set_xlim(0, end)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(lambda value, _: labels.quantity(value, "s"))
