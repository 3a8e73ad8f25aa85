# SPDX-License-Identifier: MIT
"""One step of training on every rank: what is computed, and what is on its way beside it."""

import pandas as pd
from matplotlib.patches import Patch

from convstudy.plots import labels
from convstudy.plots.figS3_scaling import labels_of
from convstudy.plots.palette import BLUE, GREEN, ORANGE, SKY, VERMILLION
from convstudy.plots.save import Drawn, footer
from convstudy.plots.style import figure, style

NAME = "figS3_step"
COLUMNS = (
    *("machine", "precision", "gpus", "images_per_gpu", "gpu", "what", "start_s", "stop_s"),
    "processor",
)
_COLORS = {
    "forward": SKY,
    "backward": BLUE,
    "wait": VERMILLION,
    "update": GREEN,
    "all-reduce": ORANGE,
}
# As records call it; ranks may also get a part of a sum each.
BESIDE = "all-reduce"
_SHOWN = {BESIDE: "sum of gradients"}


def events(table):
    """Return one row an event, of each machine's steps on most of its GPUs.

    Parameters
    ----------
    table : pandas.DataFrame
        Of suite "scaling", from `records.table`.

    Returns
    -------
    pandas.DataFrame
        Columns `COLUMNS`; seconds since each rank began. "wait" is for gradients that are still on
        their way when the backward pass is done.
    """
    rows = []
    for case in _timelines(table).to_dict("records"):
        same = {name: case[name] for name in ("machine", "precision", "gpus", "processor")}
        same["images_per_gpu"] = int(case["n"])
        rows += [same | event for event in case["value_events"]]
    return pd.DataFrame(rows, columns=COLUMNS)


def _timelines(table):
    done = labels.finished(table)
    if done.empty:
        return done
    done = done[done["what"] == "timeline"]
    return done[done["gpus"] == done.groupby("machine")["gpus"].transform("max")]


def hidden(plotted):
    """Return, for each timeline, how long its slowest rank's step is and what waiting adds.

    Returns
    -------
    pandas.DataFrame
        machine, precision, gpus, images_per_gpu; step_s, wait_s; reduce_s, the time from the first
        all-reduce to the last one's end, and backward_s.
    """
    keys = ["machine", "precision", "gpus", "images_per_gpu"]
    rows = []
    for key, case in plotted.groupby(keys, sort=False):
        own = case[case["gpu"] == case.loc[case["stop_s"].idxmax(), "gpu"]]
        lasts = own.assign(s=own["stop_s"] - own["start_s"]).groupby("what")["s"].sum()
        sent = own[own["what"] == BESIDE]
        reduce = sent["stop_s"].max() - sent["start_s"].min() if len(sent) else 0.0
        rows.append(
            dict(zip(keys, key, strict=True))
            | {"step_s": own["stop_s"].max(), "wait_s": lasts.get("wait", 0.0)}
            | {"reduce_s": reduce, "backward_s": lasts.get("backward", 0.0)}
        )
    return pd.DataFrame(rows, columns=[*keys, "step_s", "wait_s", "reduce_s", "backward_s"])


def display(plotted):
    """Return `hidden` as people read it."""
    return labels.shown(
        {
            "machine": row["machine"],
            "precision": row["precision"],
            "ranks": row["gpus"],
            "images each": row["images_per_gpu"],
            "step": labels.quantity(row["step_s"], "s"),
            "backward": labels.quantity(row["backward_s"], "s"),
            "from first to last sum": labels.quantity(row["reduce_s"], "s"),
            "waited for it": labels.quantity(row["wait_s"], "s"),
        }
        for row in hidden(plotted).to_dict("records")
    )


@style()
def draw(table):
    """Draw each step: two lanes a rank, of what it computes and of what is beside.

    Parameters
    ----------
    table : pandas.DataFrame
        Of suite "scaling", from `records.table`.

    Returns
    -------
    Drawn
        Without a figure where no step was recorded.
    """
    plotted = events(table)
    if plotted.empty:
        return Drawn(NAME, plotted)
    cases = list(plotted.groupby(["machine", "precision", "gpus", "images_per_gpu"], sort=False))
    heights = [0.5 + 0.4 * key[2] for key, _ in cases]
    drawing, axes = figure(
        *(len(cases), 1), height=0.8 + sum(heights), squeeze=False, height_ratios=heights
    )
    for panel, ((machine, precision, gpus, n), case) in zip(axes[:, 0], cases, strict=True):
        many = labels.many(gpus, labels_of(case["processor"].iloc[0])[:-1])
        _panel(panel, case)
        panel.set_title(
            f"{machine}: {precision}, {many}, {labels.many(n, 'image')} each", loc="left"
        )
    axes[-1, 0].set_xlabel("time since the step began")
    handles = [Patch(color=color, label=_SHOWN.get(what, what)) for what, color in _COLORS.items()]
    drawing.legend(handles=handles, loc="outside upper right", ncols=len(handles))
    used = _timelines(table)
    footer(drawing, labels.sources(used))
    return Drawn(NAME, plotted, drawing, labels.record_ids(used))


def _panel(axes, case):
    ranks = sorted(case["gpu"].unique())
    for event in case.to_dict("records"):
        lane = 2 * ranks.index(event["gpu"]) + (event["what"] == BESIDE)
        length = event["stop_s"] - event["start_s"]
        axes.barh(lane, length, 0.8, event["start_s"], color=_COLORS[event["what"]])
    names = [f"rank {rank}{what}" for rank in ranks for what in ("", ", beside")]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, 1.02 * case["stop_s"].max())
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(lambda value, _: labels.quantity(value, "s"))
