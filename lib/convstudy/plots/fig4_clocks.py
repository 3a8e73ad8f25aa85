# SPDX-License-Identifier: MIT
"""Fig. 4, the clocks: the same launches under three clocks, and the speed each would mean."""

import pandas as pd

from convstudy import paths, records
from convstudy.compile import source_sha256
from convstudy.models.unet import UNet
from convstudy.plots import labels
from convstudy.plots.fig4_execution_time import paper
from convstudy.plots.palette import BLACK, GREY, look
from convstudy.plots.save import Drawn, footer
from convstudy.plots.style import figure, style
from convstudy.records import statistics

NAME = "fig4_clocks"
PAPER, PAPER_GPU = "the paper", "NVIDIA A30"
HEIGHT, WIDTH = 128, 191  # of the paper's images
COLUMNS = ("machine", "gpu", "algorithm", "n", "clock", "median_s", "tflops", "of_peak", "stale")
_MARKERS = {"host": "<", "synchronised": "o", "event": "|"}
_PRINTED = {"1 GPU, tiled": "1 GPU", "2 GPUs, tiled + data parallel": "2 GPUs"}


def convolution_flops(n):
    """Return the floating-point operations of U-Net's 18 convolutions for `n` of the images."""
    return sum(problem.flops for _, problem in UNet().layers(HEIGHT, WIDTH, n))


def sheets():
    """Return the data sheets: fp32 and TF32 peaks in TFLOP/s, by the processor's name."""
    return pd.read_csv(paths.PAPER / "hardware.csv").set_index("name")


def read(machines):
    """Return what suite "launch" measured, and the name of the first GPU of each machine."""
    table = records.table("launch", machines, source_sha256)
    gpus = {}
    for machine in table["machine"].drop_duplicates():
        there = records.newest(machine, "launch")["machine"]["gpus"]
        gpus[machine] = there[0]["name"] if there else ""
    return table.assign(gpu=table["machine"].map(gpus))


def clocks(table):
    """Return one row a clock: its time, and the speed that this time would mean.

    Parameters
    ----------
    table : pandas.DataFrame
        From `read`.

    Returns
    -------
    pandas.DataFrame
        Columns `COLUMNS`; last the paper's two, whose clock is not stated. `of_peak` is the share
        of the fp32 peak of the data sheet; NaN for a GPU without one.
    """
    done = labels.finished(table)
    peaks = 1e12 * sheets()["fp32_tflops"]
    rows = [_derived(row, peaks.get(row["gpu"], float("nan"))) for row in done.to_dict("records")]
    for environment, gpus in _PRINTED.items():
        printed = {
            "machine": PAPER,
            "gpu": f"{PAPER_GPU}, {gpus}",
            "algorithm": "conv2d_fprop_3_tiled",
            "n": 1,
            "clock": "",
            "median_s": float(paper()[environment, "convolution"]),
            "stale": False,
        }
        # Two cards have twice the peak.
        rows.append(_derived(printed, peaks[PAPER_GPU] * int(gpus[0])))
    return pd.DataFrame(rows, columns=COLUMNS)


def _derived(row, peak):
    work = convolution_flops(int(row["n"])), row["median_s"]
    rates = {
        "tflops": statistics.tflops(*work),
        "of_peak": statistics.share_of_peak(*work, peak),
    }
    return {name: (row | rates)[name] for name in COLUMNS}


def display(plotted):
    """Return the plotted table as people read it: a line a kernel, a column a clock."""
    rows = []
    ways = ["machine", "gpu", "algorithm", "n"]
    for (machine, gpu, algorithm, n), group in plotted.groupby(ways, sort=False):
        by = {row["clock"]: row for row in group.to_dict("records")}
        name = labels.marked(look(algorithm).label, group["stale"].any())
        cells = {clock: _cell(by.get(clock)) for clock in _MARKERS}
        cells["clock not stated"] = _cell(by.get(""))
        rows.append({"machine": machine, "GPU": gpu, "kernel": name, "images": n, **cells})
    return labels.shown(rows)


def _cell(row):
    if row is None:
        return ""
    text = f"{labels.quantity(row['median_s'], 's')}: {labels.significant(row['tflops'])} TFLOP/s"
    return f"{text}, {row['of_peak']:.0%} of peak" if row["of_peak"] == row["of_peak"] else text


@style()
def draw(table):
    """Draw the speed that each clock's time would mean, beside what the chips can do.

    Parameters
    ----------
    table : pandas.DataFrame
        From `read`.

    Returns
    -------
    Drawn
        Without a figure where nothing was measured.
    """
    plotted = clocks(table)
    ours = plotted[plotted["machine"] != PAPER]
    if ours.empty:
        return Drawn(NAME, plotted)
    parts = [*ours.groupby(["machine", "n"], sort=False), ((PAPER, 1), plotted.iloc[len(ours) :])]
    counts = [part.groupby(["algorithm", "gpu"]).ngroups for _, part in parts]
    drawing, axes = figure(
        *(len(parts), 1),
        height=0.7 + 0.34 * len(parts) + 0.2 * sum(counts),
        sharex=True,
        squeeze=False,
        height_ratios=[0.7 + count for count in counts],
    )
    for panel, ((machine, n), part) in zip(axes[:, 0], parts, strict=True):
        _panel(panel, part, machine)
        images = f"{n} image{'s' * (n > 1)}"
        panel.set_title(f"{machine}, {images}", loc="left")
        panel.tick_params(axis="x", labelbottom=panel is axes[-1, 0])
    axes[-1, 0].set_xlabel(
        "TFLOP/s that the time of the 18 convolutions would mean; lines are the chips' peaks"
    )
    axes[-1, 0].set_xlim(plotted["tflops"].min() / 4, plotted["tflops"].max() * 4)
    _legend(drawing, axes[0, 0])
    footer(drawing, labels.sources(labels.finished(table)))
    return Drawn(NAME, plotted, drawing, labels.record_ids(labels.finished(table)))


def _panel(axes, part, machine):
    groups = list(part.groupby(["algorithm", "gpu"], sort=False))
    _peaks(axes, PAPER_GPU if machine == PAPER else part["gpu"].iloc[0], machine == PAPER)
    names = []
    for place, ((algorithm, gpu), rows) in enumerate(groups):
        name = gpu if machine == PAPER else look(algorithm).label
        names.append(labels.marked(name, rows["stale"].any()))
        _row(axes, place, look(algorithm).color, rows)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: labels.significant(value))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")


def _row(axes, place, color, rows):
    rates = rows["tflops"]
    axes.plot([rates.min(), rates.max()], [place, place], color=color, lw=0.8)
    for row in rows.to_dict("records"):
        fill = "white" if row["clock"] == "host" else color
        marker = _MARKERS.get(row["clock"], "D")
        edge = color if row["clock"] else BLACK
        marks = {"markeredgecolor": edge, "markerfacecolor": fill if row["clock"] else BLACK}
        size = 8 if marker == "|" else 5
        axes.plot(row["tflops"], place, marker, markersize=size, **marks)
    for row, side in ((rows.loc[rates.idxmax()], 1), (rows.loc[rates.idxmin()], -1)):
        if side < 0 and len(rows) == 1:
            break
        axes.annotate(
            labels.quantity(row["median_s"], "s"),
            *((row["tflops"], place), (6 * side, 0)),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            va="center",
            fontsize=6.5,
        )


def _peaks(axes, gpu, both):
    known = sheets()
    if gpu not in known.index:
        return
    kinds = {"fp32_tflops": "fp32", "tf32_tflops": "TF32"} if both else {"fp32_tflops": "fp32"}
    across = axes.get_xaxis_transform()
    for column, kind in kinds.items():
        peak = known.loc[gpu, column]
        axes.axvline(peak, color=GREY, lw=1, ls="-" if kind == "fp32" else ":")
        text = f"{gpu.removeprefix('NVIDIA ')}, {kind}: {peak:g}"
        axes.text(peak, 1.03, text, transform=across, ha="center", fontsize=6.5, color="#666666")


def _legend(drawing, axes):
    shown = {
        "host": "host clock that does not wait",
        "synchronised": "synchronised clock",
        "event": "event clock",
    }
    handles = [
        axes.plot(
            *([], [], _MARKERS[clock]),
            markeredgecolor=BLACK,
            markerfacecolor="white" if clock == "host" else BLACK,
            label=label,
        )[0]
        for clock, label in shown.items()
    ]
    handles += axes.plot([], [], "D", color=BLACK, label="the paper, clock not stated")
    drawing.legend(handles=handles, loc="outside upper center", ncols=4)
