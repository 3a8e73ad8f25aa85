# SPDX-License-Identifier: MIT
"""The second GPU, for one batch of any size: what it gains, predicted and measured (P11)."""

import pandas as pd
from matplotlib.ticker import NullLocator

from convstudy.parallel.cost import Cut
from convstudy.plots import labels
from convstudy.plots.fig4_batch import PAYS, first_that_keeps_paying
from convstudy.plots.fig4_execution_time import paper
from convstudy.plots.figS3_scaling import DATA, rates
from convstudy.plots.palette import BLACK, BLUE, GREEN, ORANGE, SKY, VERMILLION
from convstudy.plots.save import Drawn, footer
from convstudy.plots.style import figure, style
from convstudy.plots.tabS3_predicted import models

NAME = "figS3_second_gpu"
COLUMNS = ("machine", "what", "precision", "images", "predicted_gain", "gain")
_BATCHES = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
_PAPERS = ("1 GPU, tiled", "2 GPUs, tiled + data parallel")
_COLORS = (ORANGE, BLUE, GREEN, SKY, VERMILLION)


def gains(table):
    """Return how many times as fast two GPUs are as one on the same images, by batch.

    Parameters
    ----------
    table : pandas.DataFrame
        Of suite "scaling", from `records.table`.

    Returns
    -------
    pandas.DataFrame
        Columns `COLUMNS`; images shared. `gain` is what was measured, NaN where nothing was.
    """
    timed = rates(table)
    timed = timed[(timed["gpus"] == 2) & (timed["cut"] == DATA)]
    rows = []
    for (machine, what, precision), model in models(table).items():
        own = timed[
            (timed["machine"] == machine)
            & (timed["what"] == what)
            & (timed["precision"] == precision)
        ]
        real = own.assign(images=2 * own["images_per_gpu"]).set_index("images")["strong_scaling"]
        for images in sorted({*_BATCHES, *real.index}):
            predicted = model.seconds(images, Cut()) / model.seconds(images, Cut(2))
            gain = float(real.get(images, float("nan")))
            rows.append((machine, what, precision, images, predicted, gain))
    return pd.DataFrame(rows, columns=COLUMNS)


def pays_from(plotted):
    """Return, for each thing done, the least batch from which on a second GPU pays.

    Returns
    -------
    pandas.DataFrame
        machine, what, precision; predicted_from and measured_from, NaN for never; and the largest
        gain of each kind.
    """
    rows = []
    for key, own in plotted.groupby(["machine", "what", "precision"], sort=False):
        by_batch = own.set_index("images").sort_index()
        real = by_batch["gain"].dropna()
        rows.append(
            (*key, first_that_keeps_paying(by_batch["predicted_gain"]))
            + (first_that_keeps_paying(real) if len(real) else float("nan"),)
            + (by_batch["predicted_gain"].max(), real.max())
        )
    columns = ["machine", "what", "precision", "predicted_from", "measured_from"]
    return pd.DataFrame(rows, columns=[*columns, "predicted_most", "measured_most"])


def display(plotted):
    """Return `pays_from` as people read it, with the paper's second GPU beside."""
    one, two = (paper()[where, "network"] for where in _PAPERS)
    return labels.shown(
        [
            {
                "machine": "the paper",
                "what": "inference",
                "precision": "fp32",
                "predicted to pay from": "",
                "pays from": "",
                "predicted at most": "",
                "measured at most": f"{one / two:.2f}×",
            },
            *(
                {
                    "machine": row["machine"],
                    "what": row["what"],
                    "precision": row["precision"],
                    "predicted to pay from": _images(row["predicted_from"]),
                    "pays from": _images(row["measured_from"]),
                    "predicted at most": f"{row['predicted_most']:.2f}×",
                    "measured at most": f"{row['measured_most']:.2f}×"
                    if row["measured_most"] == row["measured_most"]
                    else "",
                }
                for row in pays_from(plotted).to_dict("records")
            ),
        ]
    )


def _images(count):
    return labels.many(int(count), "image") if count == count else ""


@style()
def draw(table):
    """Draw the gain against images in the batch: lines are predicted, points measured.

    Parameters
    ----------
    table : pandas.DataFrame
        Of suite "scaling", from `records.table`.

    Returns
    -------
    Drawn
        Without a figure where nothing was measured.
    """
    plotted = gains(table)
    if plotted.empty:
        return Drawn(NAME, plotted)
    machines = list(plotted.groupby("machine", sort=False))
    drawing, axes = figure(1, len(machines), height=2.8, squeeze=False, sharey=True)
    for panel, (machine, own) in zip(axes[0], machines, strict=True):
        for color, ((what, precision), line) in zip(
            _COLORS, own.groupby(["what", "precision"], sort=False), strict=False
        ):
            panel.plot(
                *(line["images"], line["predicted_gain"]), color=color, label=f"{what}, {precision}"
            )
            panel.plot(line["images"], line["gain"], "o", color=color)
        panel.axhline(2, color=BLACK, lw=0.6, ls=":")
        panel.axhline(PAYS, color=BLACK, lw=0.6, ls="--")
        panel.text(128, PAYS, f"pays above {PAYS}", fontsize=6, ha="right", va="bottom")
        panel.set_title(machine, loc="left")
        panel.set_xscale("log", base=2)
        panel.set_xticks([2, 8, 32, 128], ["2", "8", "32", "128"])
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_xlabel("images in the batch, shared by two")
        panel.set_ylim(0, 2.2)
        panel.legend(loc="lower right", fontsize=6.5)
    axes[0, 0].set_ylabel("times as fast as one")
    note = "lines are predicted, points measured"
    footer(drawing, f"{labels.sources(labels.finished(table))}\n{note}")
    return Drawn(NAME, plotted, drawing, labels.record_ids(labels.finished(table)))
