# SPDX-License-Identifier: MIT
"""What was to be reached against cuDNN, what was, and what is in the way where it was not."""

import pandas as pd

from convstudy import paths
from convstudy.plots import figS1_conv_vs_cudnn, figS1_roofline, labels
from convstudy.plots.save import Drawn

NAME = "tabS3_goals"
COLUMNS = ("machine", "pass", "precision", "n", "ratio", "goal", "roof_ratio", "reason", "stale")
_CELL = ["pass", "precision", "n"]
_KEYS = ["machine", *_CELL]
MISSING = "not all 18 layers are measured"
# Of what is shorter, launching a kernel and filling its pipeline are a good part.
_SHORT_S = 10e-6
# How many layers are named, of those that lose most.
_NAMED = 3


def goals():
    """Return the goals, from ``data/goals.csv``: cuDNN's time over ours, summed over the layers."""
    return pd.read_csv(paths.DATA / "goals.csv")


def draw(table, widths):
    """Return each goal beside what was reached.

    Parameters
    ----------
    table, widths
        As `figS1_roofline.draw` takes them.

    Returns
    -------
    Drawn
        Columns `COLUMNS`. `roof_ratio` is what the roofline allows: cuDNN's time over that of 18
        kernels at their roofs. `reason` is empty where a goal is met.
    """
    plotted = figS1_conv_vs_cudnn.compare(table)
    if plotted.empty:
        return Drawn(NAME, pd.DataFrame(columns=COLUMNS))
    sums = plotted[plotted["algorithm"] == figS1_conv_vs_cudnn.BEST].set_index(_KEYS)
    single = plotted[plotted["layer"] != figS1_conv_vs_cudnn.ALL]
    roofs = figS1_roofline.layers(table, widths)
    every = figS1_conv_vs_cudnn.fastest(single).merge(
        roofs[[*_KEYS, "layer", "roof_share", "bound"]], on=[*_KEYS, "layer"]
    )
    rows = [
        _row(machine, goal, sums, every)
        for machine in plotted["machine"].drop_duplicates()
        for goal in goals().to_dict("records")
    ]
    done = labels.finished(table)
    return Drawn(NAME, pd.DataFrame(rows, columns=COLUMNS), None, labels.record_ids(done))


def _row(machine, goal, sums, every):
    key = (machine, *(goal[name] for name in _CELL))
    row = {"machine": machine, **goal}
    if key not in sums.index:
        return row | {"reason": MISSING, "stale": False}
    found = sums.loc[key]
    here = every[(every[_KEYS] == list(key)).all(axis=1)]
    roof_ms = (here["ours_ms"] * here["roof_share"]).sum()
    row |= {
        "ratio": found["ratio"],
        "roof_ratio": found["cudnn_ms"] / roof_ms,
        "stale": found["stale"],
    }
    return row | {"reason": "" if row["ratio"] >= row["goal"] else _reason(row, here)}


def _reason(row, here):
    """Return what keeps 18 layers from their goal, as far as times and roofs tell."""
    if row["roof_ratio"] < row["goal"]:
        return f"the roofline allows {labels.times(row['roof_ratio'])}"
    wanted_ms = here["cudnn_ms"] / row["goal"]
    lost = (here["ours_ms"] - wanted_ms).sort_values(ascending=False)
    named = [
        f"{each['layer']} ({labels.times(each['ratio'])}, {each['roof_share']:.0%} of what "
        f"{each['bound']} allows)"
        for each in here.loc[lost.index[:_NAMED]].to_dict("records")
    ]
    short = int((here["ours_ms"] < 1e3 * _SHORT_S).sum())
    text = f"most is lost at {', '.join(named)}"
    return f"{text}; shorter than 10 µs: {short} of {len(here)} layers" if short else text


def display(table):
    """Return the goals as people read them; those that are met have a tick."""
    return labels.shown(
        {
            **{name: row[name] for name in _KEYS},
            "goal": _times(row["goal"]),
            "reached": labels.marked(_times(row["ratio"]), row["stale"]),
            "met": "✓" if row["ratio"] >= row["goal"] else "",
            "the roof allows": labels.times(row["roof_ratio"]),
        }
        for row in table.to_dict("records")
    )


def in_the_way(table):
    """Return a line for each goal that is missed: by how much, and where time is lost."""
    return "\n".join(
        f"{row['machine']}: {row['pass']}, {row['precision']}, N = {row['n']}: "
        f"{_times(row['ratio']) or '?'} of {_times(row['goal'])}: {row['reason']}"
        for row in table.to_dict("records")
        if row["reason"]
    )


def _times(ratio):
    return f"{labels.significant(ratio, 3)}×" if ratio == ratio else ""
