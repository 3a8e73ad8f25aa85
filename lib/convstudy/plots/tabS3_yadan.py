# SPDX-License-Identifier: MIT
"""What 2 and 4 GPUs save in training: Yadan et al., whom the paper cites, and ours (P2)."""

import pandas as pd

from convstudy import paths
from convstudy.parallel.cost import Cut
from convstudy.parallel.grid import CUT_FROM
from convstudy.plots import labels
from convstudy.plots.figS3_scaling import DATA, rates
from convstudy.plots.save import Drawn
from convstudy.plots.tabS3_predicted import models

NAME = "tabS3_yadan"
COLUMNS = (
    *("machine", "precision", "images_per_gpu", "gpus", "parallelism"),
    *("yadan_saved", "saved", "predicted_saved"),
)
_CUTS = {
    (2, "model"): Cut(2, 2, CUT_FROM),
    (2, "data"): Cut(2),
    (4, "model and data"): Cut(4, 2, CUT_FROM),
}


def yadan():
    """Return the share of one GPU's days that Yadan et al. save, by (GPUs, parallelism)."""
    table = pd.read_csv(paths.PAPER / "yadan.csv").set_index(["gpus", "parallelism"])["days"]
    return (1 - table / table[1, "none"]).drop((1, "none")).to_dict()


def saved(table):
    """Return the share of a training's time that more GPUs save, theirs and ours.

    Parameters
    ----------
    table : pandas.DataFrame
        Of suite "scaling", from `records.table`.

    Returns
    -------
    pandas.DataFrame
        Columns `COLUMNS`: ours with the most images on each GPU that were measured, each GPU
        with as many as one has alone.
    """
    measured = rates(table)
    rows = []
    for (machine, what, precision), model in models(table).items():
        if what != "training":
            continue
        own = measured[
            (measured["machine"] == machine)
            & (measured["what"] == what)
            & (measured["precision"] == precision)
        ]
        n = int(own[own["gpus"] == 1]["images_per_gpu"].max())
        scaling = own[own["images_per_gpu"] == n].set_index(["gpus", "cut"])["scaling"].to_dict()
        for (gpus, kind), theirs in yadan().items():
            cut = _CUTS[gpus, kind]
            real = scaling.get((gpus, DATA if cut.model == 1 else str(cut)), float("nan"))
            predicted = gpus * model.seconds(n, Cut()) / model.seconds(n * gpus, cut)
            rows.append(
                (machine, precision, n, gpus, kind, theirs, 1 - 1 / real, 1 - 1 / predicted)
            )
    return pd.DataFrame(rows, columns=COLUMNS)


def display(plotted):
    """Return the shares as people read them."""
    return labels.shown(
        {
            "machine": row["machine"],
            "precision": row["precision"],
            "images each": row["images_per_gpu"],
            "processors": row["gpus"],
            "that share": {"data": "images", "model": "layers"}.get(
                row["parallelism"], "layers and images"
            ),
            "Yadan et al. save": f"{row['yadan_saved']:.0%}",
            "ours": f"{row['saved']:.0%}" if row["saved"] == row["saved"] else "not measured",
            "predicted": f"{row['predicted_saved']:.0%}",
        }
        for row in plotted.to_dict("records")
    )


def draw(table):
    """Return the shares as a table.

    Parameters
    ----------
    table : pandas.DataFrame
        Of suite "scaling", from `records.table`.
    """
    return Drawn(NAME, saved(table), None, labels.record_ids(labels.finished(table)))
