# SPDX-License-Identifier: MIT
"""VGG-16 and ResNet: ours against PyTorch's best, and convolution's share of ours."""

import pandas as pd

from convstudy import records
from convstudy.plots import labels
from convstudy.plots.figS2_unet_vs_pytorch import ratios
from convstudy.plots.save import Drawn, footer
from convstudy.plots.style import figure, named, style
from convstudy.plots.tab1_function_time import WHOLE
from convstudy.program.lowering import PRECISIONS
from convstudy.records import statistics

NAME = "figS4_networks"
# How a network is called in records, and in figures.
NETWORKS = {
    "vgg16": "VGG-16",
    "vgg16_bn": "VGG-16 with norms",
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
}
COLUMNS = (
    *("machine", "network", "what", "precision", "n", "ours_ms", "pytorch_best_ms", "ratio"),
    *("conv_share", "ours", "error", "stale"),
)
CPU = ", CPU"
_KEYS = ["machine", "network", "what", "precision", "n"]
# Plain loops and the paper's way are not what PyTorch is compared with.
_ON_CPU = ("cpu-blas", "pytorch-cpu")
_NO_RIVALS = ("cpu-plain", "offload")


def read(machines, current_sha256=None):
    """Return what two suites measured on `machines`: all, and contests with PyTorch alone.

    Where records have the same contest, the newest one's counts. As `records.table`.
    """
    tables = [
        records.table("networks", machines, current_sha256),
        records.table("networks-contest", machines, current_sha256, older=True),
    ]
    both = pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)
    contest = both[both["clock"] == "event"]
    if contest.empty:
        return both
    newest = contest.groupby(_KEYS)["record"].transform("max")
    return both.drop(index=contest.index[contest["record"] != newest])


def compare(table):
    """Return one row for each network, thing done, processor, precision and batch.

    Parameters
    ----------
    table : pandas.DataFrame
        From `read`.

    Returns
    -------
    pandas.DataFrame
        Columns `COLUMNS`. On a GPU ours and PyTorch's are the fastest of those that took turns
        under its event clock; where PyTorch is not installed, ours is the fastest of all on one
        GPU. On a CPU (`what` says so) they are the fastest by the wall clock, plain loops apart.
        `conv_share` is convolution's part of the time of all functions, each timed by itself.
        `error` is of ours, relative.
    """
    done = labels.finished(table)
    if done.empty:
        return pd.DataFrame(columns=COLUMNS)
    done = done.fillna({"algorithm": "", "rest": ""})
    whole = done[(done["function"] == WHOLE) & ~done["execution"].isin(_NO_RIVALS)]
    whole = whole[whole["gpus"] < 2]
    where = whole["execution"].isin(_ON_CPU).map({True: CPU, False: ""})
    whole = whole.assign(what=whole["what"] + where)
    rows = []
    for key, group in whole.groupby(_KEYS, sort=False):
        if (group["clock"] == "event").any():
            group = group[group["clock"] == "event"]
        group = group.sort_values("median_s")
        vendor = group["execution"].str.startswith("pytorch")
        if vendor.all():
            continue
        ours = group[~vendor].iloc[0]
        best = group[vendor]["median_s"].min()
        rows.append(
            dict(zip(_KEYS, key, strict=True))
            | {
                "ours_ms": 1e3 * ours["median_s"],
                "pytorch_best_ms": 1e3 * best,
                "ratio": statistics.speedup(ours["median_s"], best),
                "conv_share": _share(done, ours),
                "ours": ours["algorithm"] or ours["execution"],
                "error": ours["error"],
                "stale": bool(group["stale"].any()),
            }
        )
    found = pd.DataFrame(rows, columns=list(COLUMNS))
    # Two suites measured them, each in an order of its own.
    places = {name: found[name].drop_duplicates() for name in _KEYS}
    places |= {"network": NETWORKS, "precision": PRECISIONS, "n": sorted(places["n"])}
    return labels.in_order(found, places)


def _share(done, row):
    """Return convolution's share of the functions of what `row` is the whole of; NaN for none."""
    same = ["machine", "network", "precision", "n", "execution", "algorithm", "rest", "gpus"]
    pieces = done[(done["function"] != WHOLE) & (done[same] == row[same]).all(axis="columns")]
    pieces = pieces[pieces["what"] == row["what"].removesuffix(CPU)]
    times = pieces.set_index("function")["median_s"]
    return times.get("convolution", float("nan")) / times.sum()


def display(plotted):
    """Return the comparison as people read it."""
    return labels.shown(
        {
            "machine": row["machine"],
            "network": NETWORKS[row["network"]],
            "what": row["what"],
            "precision": row["precision"],
            "images": row["n"],
            "ours": labels.marked(labels.quantity(row["ours_ms"] / 1e3, "s"), row["stale"]),
            "PyTorch's best": labels.quantity(row["pytorch_best_ms"] / 1e3, "s"),
            "times as fast": labels.times(row["ratio"]),
            "convolution": "" if pd.isna(row["conv_share"]) else f"{row['conv_share']:.1%}",
            "error": "" if pd.isna(row["error"]) else f"{row['error']:.1e}",
        }
        for row in plotted.to_dict("records")
    )


@style()
def draw(table):
    """Draw how many times as fast as PyTorch's best ours is, by batch, for each network.

    Parameters
    ----------
    table : pandas.DataFrame
        From `read`.

    Returns
    -------
    Drawn
        Without a figure where nothing was measured on both sides.
    """
    plotted = compare(table)
    both = plotted.dropna(subset="ratio")
    if both.empty:
        return Drawn(NAME, plotted, records=labels.record_ids(labels.finished(table)))
    parts = list(both.groupby(["machine", "what"], sort=False))
    networks = list(both["network"].drop_duplicates())
    drawing, axes = figure(
        *(len(parts), len(networks)), height=0.8 + 1.7 * len(parts), squeeze=False, sharey="row"
    )
    for panels, ((machine, what), part) in zip(axes, parts, strict=True):
        for panel, network in zip(panels, networks, strict=True):
            ratios(panel, part[part["network"] == network], "ratio")
            whose = f"{machine}: " if panel is panels[0] else ""
            panel.set_title(f"{whose}{NETWORKS[network]}, {what}", loc="left")
        panels[0].set_ylabel("times as fast as PyTorch's best")
        panels[0].set_ylim(0, 1.1 * max(1, part["ratio"].max()))
    lines = named(axes)
    drawing.legend(lines.values(), lines.keys(), loc="outside upper right", ncols=len(lines))
    done = labels.finished(table)
    footer(drawing, labels.sources(done[done["machine"].isin(both["machine"])]))
    return Drawn(NAME, plotted, drawing, labels.record_ids(done))
