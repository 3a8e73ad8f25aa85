# SPDX-License-Identifier: MIT
"""Learning curves: the loss of what is trained on, and the Dice of what never is."""

import numpy as np
import pandas as pd

from convstudy.plots import labels
from convstudy.plots.palette import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILLION
from convstudy.plots.save import Drawn, footer
from convstudy.plots.style import figure, style

NAME = "figS2_learning"
COLUMNS = (
    *("machine", "case", "execution", "precision", "width", "size", "batch", "seed", "step"),
    *("loss", "dice", "seconds", "images_per_s", "stale"),
)
_COLORS = (BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY)
# Where one training sees so many times the images of another, the axis is logarithmic.
_FURTHER = 3
_DASHES = ("solid", "dashed", "dotted", "dashdot")


def curves(table):
    """Return one row for each time that the Dice was taken.

    Parameters
    ----------
    table : pandas.DataFrame
        Of suite "learning", from `records.table`.

    Returns
    -------
    pandas.DataFrame
        Columns `COLUMNS`. `loss`: the mean over the steps since the row before; `seconds`: of the
        whole training.
    """
    done, rows = labels.finished(table), []
    # Before there was a choice, all trainings were of fp32.
    if "precision" not in done:
        done = done.assign(precision="fp32")
    done = done.fillna({"precision": "fp32"})
    for run in done.to_dict("records"):
        since = 0
        steps, scores = run["value_score_steps"], run["value_scores"]
        for step, score in zip(steps, scores, strict=True):
            loss = float(np.mean(run["value_loss"][since:step]))
            seconds = run["median_s"]
            speed = run["value_steps"] * run["batch"] / seconds
            own = {"step": step, "loss": loss, "dice": score}
            own |= {"seconds": seconds, "images_per_s": speed}
            rows.append([(run | own)[name] for name in COLUMNS])
            since = step
    return pd.DataFrame(rows, columns=COLUMNS)


def display(plotted):
    """Return each training and what it reached, as people read it."""
    last = plotted.groupby(["machine", "case"], sort=False).tail(1)
    return labels.shown(
        {
            "machine": labels.marked(row["machine"], row["stale"]),
            "run on": row["execution"],
            "precision": row["precision"],
            "width": row["width"],
            "images": row["size"],
            "seed": row["seed"],
            "steps": row["step"],
            "images a second": labels.significant(row["images_per_s"], 3),
            "time": f"{row['seconds'] / 60:.1f} min",
            "last loss": f"{row['loss']:.3f}",
            "held-out Dice": f"{row['dice']:.3f}",
        }
        for row in last.to_dict("records")
    )


def by_precision(plotted):
    """Return what each precision comes to over its seeds: mean, least and most of the last Dice.

    Trainings of as many steps are compared.

    Where two precisions' ranges overlap, what lies between their means is no more than what
    another seed makes.
    """
    last = plotted.groupby(["machine", "case"], sort=False).tail(1)
    kinds = last.groupby(["machine", "execution", "precision", "step"], sort=False)
    found = kinds["dice"].agg(seeds="count", mean="mean", least="min", most="max").reset_index()
    found = found.rename(columns={"step": "steps"})
    return found[found["seeds"] > 1].reset_index(drop=True)


@style()
def draw(table):
    """Draw loss and held-out Dice against images seen, a line for each training.

    Parameters
    ----------
    table : pandas.DataFrame
        Of suite "learning", from `records.table`.

    Returns
    -------
    Drawn
        Without a figure where nothing was measured.
    """
    plotted = curves(table)
    if plotted.empty:
        return Drawn(NAME, plotted)
    drawing, (left, right) = figure(1, 2, height=2.6)
    way = ["machine", "execution", "precision", "steps"]
    drawn = plotted.assign(steps=plotted.groupby(["machine", "case"])["step"].transform("max"))
    kinds = drawn[way].drop_duplicates().apply(tuple, axis=1).tolist()
    for (*same, _), run in drawn.groupby([*way, "case"], sort=False):
        machine, _, precision, steps = same
        kind = kinds.index(tuple(same))
        among = sorted(plotted[plotted["machine"] == machine]["seed"].unique())
        seed = run["seed"].iloc[0]
        look = {"color": _COLORS[kind % len(_COLORS)], "ls": _DASHES[among.index(seed) % 4]}
        seen = run["step"] * run["batch"]
        name = labels.marked(machine, run["stale"].any())
        label = f"{name}, {precision}, width {run['width'].iloc[0]}"
        if drawn.loc[drawn["machine"] == machine, "steps"].nunique() > 1:
            label += f", {steps} steps"
        # The dashes tell seeds apart; one of each kind is enough of a legend.
        label = label if look["ls"] == _DASHES[0] else None
        left.plot(seen, run["loss"], marker=".", label=label, **look)
        right.plot(seen, run["dice"], marker=".", label=label, **look)
    longest = (plotted["step"] * plotted["batch"]).groupby([plotted["machine"], plotted["case"]])
    if longest.max().max() > _FURTHER * longest.max().min():
        for axes in (left, right):
            axes.set_xscale("log")
    left.set(xlabel="images seen", ylabel="loss: cross-entropy + 1 - Dice", ylim=(0, None))
    right.set(xlabel="images seen", ylabel="Dice of held-out images", ylim=(0, 1))
    right.legend(loc="lower right")
    seeds = plotted.groupby("machine")["seed"].nunique().max()
    note = f"{', '.join(_DASHES[:seeds])}: a seed each"
    footer(drawing, f"{labels.sources(labels.finished(table))}\n{note}")
    return Drawn(NAME, plotted, drawing, labels.record_ids(labels.finished(table)))
