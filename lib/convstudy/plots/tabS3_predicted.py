# SPDX-License-Identifier: MIT
"""What the cost model says of more GPUs than one, and how far off it is where they were timed."""

import functools
from dataclasses import dataclass

import numpy as np
import pandas as pd

from convstudy.models.unet import LEVELS, UNet
from convstudy.parallel import cost
from convstudy.parallel.cost import Cluster, Cut, Link, Processor
from convstudy.plots import labels
from convstudy.plots.figS3_scaling import DATA, rates
from convstudy.plots.save import Drawn
from convstudy.records.statistics import speedup

NAME = "tabS3_predicted"
COLUMNS = (
    *("machine", "what", "precision", "gpus", "images_per_gpu", "cut", "links"),
    *("predicted_images_per_s", "predicted_scaling", "images_per_s", "error"),
)
COUNTS = (1, 2, 4, 8, 64)
MEASURED, ASSUMED = "measured", "assumed"
# Arithmetic and memory as data sheets have them; of a core, what is usual. The rates that are
# fitted are one share of both.
_PEAKS = {
    "fp32": Processor(67e12, 4.8e12),
    "tf32": Processor(494e12, 4.8e12),
    "bf16": Processor(989e12, 4.8e12),
    "cpu": Processor(5e10, 1e10),
}
_ITEM = {"bf16": 2}


@dataclass(frozen=True)
class Model:
    """The cost model of one thing done on one machine.

    Attributes
    ----------
    layers : list of cost.Layer
    processor : Processor
        Fitted to one GPU's times.
    cluster : Cluster
    links : {"measured", "assumed"}
    training : bool
    item : int
        Bytes of an activation.
    """

    layers: list
    processor: Processor
    cluster: Cluster
    links: str
    training: bool
    item: int

    @property
    def _options(self):
        # In which precision parameters are changed apart, `parallel.gpu` says.
        is_shared = self.item == _ITEM["bf16"]
        return {"training": self.training, "item": self.item, "shared_update": is_shared}

    def seconds(self, batch, cut):
        """Return what a step on `batch` images is predicted to take."""
        given = self.layers, batch, cut, self.processor, self.cluster
        return cost.predict(*given, **self._options).seconds

    def choice(self, batch, gpus):
        """Return the fastest `Cut` for so many GPUs."""
        given = self.layers, batch, gpus, self.processor, self.cluster
        return cost.choose(*given, **self._options)[0]

    def staged(self, batch):
        """Return (seconds, name) of the fastest way to cut the network into two stages."""
        micro = [2**power for power in range(batch.bit_length()) if batch % 2**power == 0]
        given = self.processor, self.cluster, self.item
        return min(
            (
                cost.pipeline_s(self.layers, batch, (0, first), count, *given),
                f"2 stages (from level {first}), {labels.many(count, 'micro-batch', 'es')}",
            )
            for first in range(1, LEVELS)
            for count in micro
        )


def models(table):
    """Return {(machine, what, precision): Model} of all that one GPU was timed at, twice or more.

    Parameters
    ----------
    table : pandas.DataFrame
        Of suite "scaling", from `records.table`.
    """
    done = labels.finished(table)
    if done.empty:
        return {}
    alone = done[
        (done["gpus"] == 1)
        & (done["side"] == "ours")
        & done["what"].isin(("training", "inference"))
    ]
    found = {}
    for (machine, what, precision), rows in alone.groupby(
        ["machine", "what", "precision"], sort=False
    ):
        points = [(int(n), float(s)) for n, s in zip(rows["n"], rows["median_s"], strict=True)]
        if len(points) < 2:
            continue
        first, training = rows.iloc[0], what == "training"
        layers = _layers(int(first["width"]), first["size"])
        peak = _PEAKS["cpu" if first["processor"] == "cpu" else precision]
        item = _ITEM.get(precision, 4)
        processor = Processor.fitted(peak, layers, points, training, item)
        link = fitted_link(done[done["machine"] == machine])
        found[machine, what, precision] = Model(
            *(layers, processor, _cluster(link, first["processor"])),
            *(MEASURED if link else ASSUMED, training, item),
        )
    return found


@functools.cache
def _layers(width, size):
    return cost.layers(UNet(width=width), *map(int, size.split("x")))


def fitted_link(rows):
    """Return the `Link` by which all-reduces take as long as one machine's did, or None.

    Parameters
    ----------
    rows : pandas.DataFrame
        Of suite "scaling": all-reduces of several sizes count.
    """
    sums = rows[(rows["what"] == "all-reduce") & (rows["side"] == "ours")]
    if sums.empty:
        return None
    sums = sums[sums["gpus"] == sums["gpus"].max()]
    ranks = int(sums["gpus"].iloc[0])
    # Of a link of one byte a second, or of a second's latency: a time is so much of each.
    terms = np.array(
        [
            [
                Link(1.0, 0.0).all_reduce_s(size, ranks),
                Link(float("inf"), 1.0).all_reduce_s(0, ranks),
            ]
            for size in sums["bytes"]
        ]
    )
    seconds = sums["median_s"].to_numpy()
    (byte_s, latency_s), *_ = np.linalg.lstsq(terms / seconds[:, None], np.ones(len(terms)))
    return Link(1 / byte_s, max(0.0, float(latency_s)))


def _cluster(link, processor):
    if processor == "cpu":
        # As if all cores were of one machine, which memory joins.
        link = link or Link(5e9, 1e-5)
        return Cluster(link, link, gpus=max(COUNTS))
    return Cluster(link or cost.H200.inside, cost.H200.across, cost.H200.gpus)


def predictions(table):
    """Return what the model says, beside what was measured.

    Parameters
    ----------
    table : pandas.DataFrame
        Of suite "scaling", from `records.table`.

    Returns
    -------
    pandas.DataFrame
        Columns `COLUMNS`: for each number of `COUNTS`, images shared; where another cut is faster
        in training, that too, and of two the fastest stages; and each cut that was measured.
        `error` is of the predicted images a
        second, of those measured.
    """
    known = models(table)
    measured = rates(table)
    keys = ["machine", "what", "precision", "gpus", "images_per_gpu", "cut"]
    speeds = measured.set_index(keys)["images_per_s"].to_dict()
    rows = []
    for (machine, what, precision), model in known.items():
        own = measured[
            (measured["machine"] == machine)
            & (measured["what"] == what)
            & (measured["precision"] == precision)
        ]
        for n in sorted(own["images_per_gpu"].unique().tolist()):
            alone = n / model.seconds(n, Cut())
            for gpus in sorted({*COUNTS, *own["gpus"].tolist()}):
                for name, seconds in _ways(model, own, n, gpus):
                    rate = n * gpus / seconds
                    real = speeds.get((machine, what, precision, gpus, n, name), float("nan"))
                    rows.append(
                        (machine, what, precision, gpus, n, name, model.links, rate, rate / alone)
                        + (real, speedup(1 / rate, 1 / real) - 1)
                    )
    return pd.DataFrame(rows, columns=COLUMNS)


def _ways(model, own, n, gpus):
    """Yield (name, seconds) of the cuts: of images, the fastest, those measured, and stages."""
    found = {DATA: Cut(gpus)}
    if model.training and gpus > 1:
        best = model.choice(n * gpus, gpus)
        if best.model > 1:
            found[str(best)] = best
        timed = set(own[(own["gpus"] == gpus) & (own["images_per_gpu"] == n)]["cut"])
        found |= {str(cut): cut for cut in cost.cuts(gpus) if str(cut) in timed}
    for name, cut in found.items():
        yield name, model.seconds(n * gpus, cut)
    if model.training and gpus == 2:
        yield model.staged(n * gpus)[::-1]


def display(plotted):
    """Return the predictions as people read them."""
    return labels.shown(
        {
            "machine": row["machine"],
            "what": row["what"],
            "precision": row["precision"],
            "processors": row["gpus"],
            "images each": row["images_per_gpu"],
            "cut by": row["cut"],
            "links": row["links"],
            "predicted images a second": labels.significant(row["predicted_images_per_s"], 3),
            "as fast as one": f"{row['predicted_scaling']:.2f}×",
            "measured": labels.known(row["images_per_s"]),
            "error": f"{round(row['error'], 2) + 0.0:+.0%}" if row["error"] == row["error"] else "",
        }
        for row in plotted[plotted["gpus"] > 1].to_dict("records")
    )


def draw(table):
    """Return the predictions as a table.

    Parameters
    ----------
    table : pandas.DataFrame
        Of suite "scaling", from `records.table`.
    """
    return Drawn(NAME, predictions(table), None, labels.record_ids(labels.finished(table)))
