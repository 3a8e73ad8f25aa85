# SPDX-License-Identifier: MIT
"""One GPU to many: images a second in training and at inference, beside PyTorch's."""

import pandas as pd
from matplotlib.ticker import LogLocator, NullLocator

from convstudy import records
from convstudy.parallel.cost import Cut
from convstudy.plots import labels
from convstudy.plots.palette import BLUE, GREEN, ORANGE, PURPLE, VERMILLION
from convstudy.plots.save import Drawn, footer
from convstudy.plots.style import figure, named, style
from convstudy.records import statistics

NAME = "figS3_scaling"
COLUMNS = (
    *("machine", "what", "precision", "gpus", "images_per_gpu", "images_per_s", "scaling"),
    *("ddp_images_per_s", "ratio_to_ddp", "cut", "strong_scaling", "processor"),
)
DATA = "data"
WHATS = ("training", "inference", "inference from the host")
_PARTS = ["machine", "what", "precision"]
_OURS, _THEIRS = BLUE, ORANGE
# Of shared layers, one after the other.
_CUT_COLORS = (GREEN, PURPLE, VERMILLION)
_STYLES = {1: ("--", "o"), 2: ("-", "s"), 4: ("-.", "^"), 8: (":", "D")}


def read(machines, current_sha256=None):
    """Return what suite "scaling" measured on `machines`; as `records.table`.

    It may be measured part by part: of each thing in each precision the newest record counts.
    """
    table = records.table("scaling", machines, current_sha256, older=True)
    if table.empty:
        return table
    done = table["record"].where(table["status"] == "ok", "")
    newest = done.groupby([table[key] for key in _PARTS]).transform("max")
    return table[table["record"] == newest].reset_index(drop=True)


def rates(table):
    """Return one row for each thing done, precision, number of GPUs and of images.

    Parameters
    ----------
    table : pandas.DataFrame
        From `read`.

    Returns
    -------
    pandas.DataFrame
        Columns `COLUMNS`. Without a GPU, `gpus` counts ranks on a core each. `scaling` is against
        one GPU of the same machine with as many images as each has here, `strong_scaling` against
        one with all of them; PyTorch's are its fastest way, of those that were measured. `cut` is
        "data", or says which layers GPUs share.
    """
    done = labels.finished(table)
    if done.empty:
        return pd.DataFrame(columns=COLUMNS)
    done = done[done["what"].isin(WHATS)]
    done = done.assign(
        images_per_gpu=done["n"].astype(int),
        images_per_s=done["n"] * done["gpus"] / done["median_s"],
        cut=[_cut(row) for row in done.to_dict("records")],
    )
    ours = done[done["side"] == "ours"]
    keys = ["machine", "what", "precision", "gpus", "cut", "n"]
    theirs = done[done["side"] != "ours"].groupby(keys)["images_per_s"].max().to_dict()
    alone = ours[ours["gpus"] == 1].set_index(["machine", "what", "precision", "n"])
    alone = alone["images_per_s"].to_dict()
    rows = []
    for row in ours.to_dict("records"):
        thing = row["machine"], row["what"], row["precision"]
        beside = theirs.get(tuple(row[key] for key in keys), float("nan"))
        total = row["n"] * row["gpus"]
        against = {
            "scaling": alone.get((*thing, row["n"]), float("nan")),
            "strong_scaling": alone.get((*thing, total), float("nan")),
        }
        ratios = {k: statistics.speedup(1 / row["images_per_s"], 1 / v) for k, v in against.items()}
        ratio = statistics.speedup(1 / row["images_per_s"], 1 / beside)
        own = row | ratios | {"ddp_images_per_s": beside, "ratio_to_ddp": ratio}
        rows.append([own[name] for name in COLUMNS])
    return pd.DataFrame(rows, columns=COLUMNS)


def _cut(row):
    if row["model"] == 1:
        return DATA
    return str(Cut(row["gpus"], row["model"], row["cut_from"]))


def display(plotted):
    """Return how far more GPUs go, as people read it."""
    return labels.shown(
        {
            "machine": row["machine"],
            "what": row["what"],
            "precision": row["precision"],
            labels_of(row["processor"]): row["gpus"],
            "cut by": row["cut"],
            "images each": row["images_per_gpu"],
            "images a second": labels.significant(row["images_per_s"], 3),
            "as fast as one": f"{row['scaling']:.2f}×",
            "PyTorch": labels.known(row["ddp_images_per_s"]),
            "as fast as PyTorch": labels.times(row["ratio_to_ddp"]),
        }
        for row in plotted[plotted["gpus"] > 1].to_dict("records")
    )


def labels_of(processor):
    """Return what ranks are called that have such a processor each."""
    return "GPUs" if processor == "gpu" else "cores"


@style()
def draw(table):
    """Draw images a second against images on each GPU, a line for each number of GPUs.

    Parameters
    ----------
    table : pandas.DataFrame
        Of suite "scaling", from `records.table`.

    Returns
    -------
    Drawn
        Without a figure where nothing was measured.
    """
    plotted = rates(table)
    if plotted.empty:
        return Drawn(NAME, plotted)
    shown = plotted[plotted["what"].isin(WHATS[:2])]
    machines = [
        (machine, list(rows.groupby(["what", "precision"], sort=False)))
        for machine, rows in shown.groupby("machine", sort=False)
    ]
    drawing, axes = figure(
        *(len(machines), max(len(panels) for _, panels in machines)),
        height=0.9 + 1.9 * len(machines),
        squeeze=False,
    )
    for panels, (machine, things) in zip(axes, machines, strict=True):
        for panel, ((what, precision), rows) in zip(panels, things, strict=False):
            _panel(panel, rows)
            panel.set_title(f"{what}, {precision}", loc="left")
        for panel in panels[len(things) :]:
            panel.set_axis_off()
        panels[0].set_title(f"{machine}\n{panels[0].get_title('left')}", loc="left")
        panels[0].set_ylabel("images a second")
    lines = named(axes)
    drawing.legend(lines.values(), lines.keys(), loc="outside upper center", ncols=4)
    footer(drawing, labels.sources(labels.finished(table)))
    return Drawn(NAME, plotted, drawing, labels.record_ids(labels.finished(table)))


def _panel(axes, rows):
    cuts = [cut for cut in rows["cut"].unique() if cut != DATA]
    for (gpus, cut), line in rows.groupby(["gpus", "cut"], sort=False):
        line = line.sort_values("images_per_gpu")
        dash, marker = _STYLES.get(gpus, _STYLES[8])
        many = labels.many(gpus, labels_of(line["processor"].iloc[0])[:-1])
        is_whole = cut == DATA
        color = _OURS if is_whole else _CUT_COLORS[cuts.index(cut) % len(_CUT_COLORS)]
        name = many if is_whole else f"{many}, {cut}"
        look = {"ls": dash, "marker": marker, "markersize": 3.5}
        axes.plot(line["images_per_gpu"], line["images_per_s"], color=color, label=name, **look)
        beside = line.dropna(subset="ddp_images_per_s")
        if len(beside):
            axes.plot(
                *(beside["images_per_gpu"], beside["ddp_images_per_s"]),
                **look | {"color": _THEIRS, "markerfacecolor": "white", "lw": 0.8},
                label=f"PyTorch, {many}",
            )
    sizes = sorted(rows["images_per_gpu"].unique())
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sizes, [str(int(each)) for each in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(f"images on each {labels_of(rows['processor'].iloc[0])[:-1]}")
    axes.grid(axis="y")
