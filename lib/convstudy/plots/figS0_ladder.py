# SPDX-License-Identifier: MIT
"""The ladder: each algorithm at each of U-Net's 18 convolutions, and in all."""

import math

import pandas as pd
from matplotlib.ticker import FixedLocator, NullLocator

from convstudy import paths, records
from convstudy.compile import source_sha256
from convstudy.device import recorded
from convstudy.plots import labels
from convstudy.plots.palette import ALGORITHMS, look
from convstudy.plots.save import Drawn, footer
from convstudy.plots.style import figure, style
from convstudy.problem import ConvProblem
from convstudy.records import statistics

NAME = "figS0_ladder"
ALL = "all 18"
_PEAKS = ["peak_flops", "peak_tf32_flops", "peak_bf16_flops"]
COLUMNS = (
    *("machine", "n", "algorithm", "layer", "median_s", "p20_s", "p80_s", "flops", "tflops"),
    *("peak_share", "stale"),
)


def read(machines, suite="ladder"):
    """Return what a suite of convolutions measured, with each one's FLOPs and its chip's peaks.

    Parameters
    ----------
    machines : sequence of str
    suite : str

    Returns
    -------
    pandas.DataFrame
        As `records.table` returns it, and columns flops (NaN where a case was not measured),
        intensity (FLOPs for each of the fewest bytes), peak_flops, peak_tf32_flops and
        peak_bf16_flops (of the machine's first GPU; NaN for what ran on the CPU).
    """
    table = records.table(suite, machines, source_sha256)
    table[["flops", "intensity", *_PEAKS]] = float("nan")
    for machine in table["machine"].drop_duplicates():
        record = records.newest(machine, suite)
        problems = {
            result["case"]: ConvProblem(**_tuples(result["problem"]))
            for result in record["results"]
            if result["problem"]
        }
        here = table["machine"] == machine
        for name in ("flops", "intensity"):
            values = {case: float(getattr(problem, name)) for case, problem in problems.items()}
            table.loc[here, name] = table.loc[here, "case"].map(values)
        on_gpu = here & ~table["algorithm"].astype(str).str.startswith("cpu")
        table.loc[on_gpu, _PEAKS] = _peaks(record["machine"]["gpus"])
    return table


def _tuples(problem):
    return {name: tuple(v) if isinstance(v, list) else v for name, v in problem.items()}


def _peaks(gpus):
    """Return the chip's `_PEAKS` as recorded: FLOP/s at its highest clock."""
    if not gpus or not gpus[0]["clocks_mhz"]["sm_max"]:
        return (float("nan"),) * len(_PEAKS)
    chip = recorded(gpus[0])
    tensor_cores = chip.peak_tf32_flops or float("nan"), chip.peak_bf16_flops or float("nan")
    return chip.peak_fp32_flops, *tensor_cores


def rungs(table):
    """Return one row a layer and algorithm, and one for all layers together.

    Of cuDNN's layouts each layer has its faster one. Algorithms that have not measured every layer
    have no row for all of them.

    Parameters
    ----------
    table : pandas.DataFrame
        From `read`.

    Returns
    -------
    pandas.DataFrame
        Columns `COLUMNS`, sorted by machine, n and the ladder's order; layer is `ALL` for the
        sums. `peak_share` is NaN on a CPU.
    """
    done = labels.finished(table)
    keys = ["machine", "n", "algorithm", "layer"]
    done = done.sort_values("median_s").drop_duplicates(keys)
    rows = []
    for machine in table["machine"].drop_duplicates():
        here = done[done["machine"] == machine]
        for n in sorted(here["n"].unique()):
            for algorithm in _in_order(here["algorithm"].unique()):
                chosen = here[(here["n"] == n) & (here["algorithm"] == algorithm)]
                rows += _of_algorithm(chosen, table)
    return pd.DataFrame(rows, columns=COLUMNS)


def _in_order(algorithms):
    return [a for a in ALGORITHMS if a in algorithms] + sorted(set(algorithms) - set(ALGORITHMS))


def _of_algorithm(chosen, table):
    layers = list(table["layer"].drop_duplicates())
    chosen = chosen.sort_values("layer", key=lambda names: names.map(layers.index))
    rows = [_derived(row) for row in chosen.to_dict("records")]
    if len(rows) == len(layers):
        sums = chosen[["median_s", "p20_s", "p80_s", "flops"]].sum().to_dict()
        first = chosen.iloc[0]
        same = {name: first[name] for name in ("machine", "n", "algorithm", "peak_flops")}
        rows.append(_derived({**same, **sums, "layer": ALL, "stale": chosen["stale"].any()}))
    return rows


def _derived(row):
    work = row["flops"], row["median_s"]
    derived = {
        "tflops": statistics.tflops(*work),
        "peak_share": statistics.share_of_peak(*work, row["peak_flops"]),
    }
    return {name: (row | derived)[name] for name in COLUMNS}


def display(plotted):
    """Return the sums over the layers as people read them, with each rung's gain."""
    totals = plotted[plotted["layer"] == ALL]
    rows = []
    for _, group in totals.groupby(["machine", "n"], sort=False):
        slowest = group[~group["peak_share"].isna()]["median_s"].max()
        for row in group.to_dict("records"):
            on_gpu = row["peak_share"] == row["peak_share"]
            rows.append(
                {
                    "machine": row["machine"],
                    "images": row["n"],
                    "algorithm": labels.marked(look(row["algorithm"]).label, row["stale"]),
                    "18 layers": labels.quantity(row["median_s"], "s"),
                    "TFLOP/s": labels.significant(row["tflops"], 3),
                    "share of peak": f"{row['peak_share']:.0%}" if on_gpu else "",
                    "against naive": labels.times(slowest / row["median_s"]) if on_gpu else "",
                }
            )
    return labels.shown(rows)


_PAPERS = {"GPU, not optimised": "conv2d_fprop_1_naive", "1 GPU, tiled": "conv2d_fprop_3_tiled"}


def compared(plotted):
    """Return the 18 layers' times for one image beside those that the paper prints."""
    printed = pd.read_csv(paths.PAPER / "execution_time.csv")
    printed = printed[printed["what"] == "convolution"].set_index("environment")["seconds"]
    totals = plotted[(plotted["layer"] == ALL) & (plotted["n"] == 1)]
    rows = []
    for environment, algorithm in _PAPERS.items():
        for ours in totals[totals["algorithm"] == algorithm].to_dict("records"):
            ratio = ours["median_s"] / printed[environment]
            tflops = statistics.tflops(ours["flops"], printed[environment])
            rows.append(
                {
                    "machine": ours["machine"],
                    "convolutions of one image": environment,
                    "ours": labels.quantity(ours["median_s"], "s"),
                    "the paper": labels.quantity(printed[environment], "s"),
                    "ours / paper": labels.significant(ratio),
                    "the paper's time as TFLOP/s": labels.significant(tflops),
                }
            )
    return labels.shown(rows)


@style()
def draw(table):
    """Draw the time of each layer, and of all together, for each machine and batch size.

    Parameters
    ----------
    table : pandas.DataFrame
        From `read`.

    Returns
    -------
    Drawn
        Without a figure where nothing was measured.
    """
    plotted = rungs(table)
    if plotted.empty:
        return Drawn(NAME, plotted)
    parts = list(plotted.groupby(["machine", "n"], sort=False))
    heights = [0.65 + 0.2 * max(4, part["algorithm"].nunique()) for _, part in parts]
    drawing, axes = figure(
        *(len(parts), 2),
        height=0.6 + sum(heights),
        squeeze=False,
        width_ratios=(5, 3),
        height_ratios=heights,
    )
    for (left, right), ((machine, n), part) in zip(axes, parts, strict=True):
        _layers(left, part[part["layer"] != ALL])
        _totals(right, part[part["layer"] == ALL])
        left.set_title(f"{machine}, {labels.many(n, 'image')}: each layer", loc="left")
        right.set_title("the 18 layers together", loc="left")
    footer(drawing, labels.sources(labels.finished(table)))
    return Drawn(NAME, plotted, drawing, labels.record_ids(labels.finished(table)))


def _layers(axes, part):
    names = list(part["layer"].drop_duplicates())
    for algorithm, rows in part.groupby("algorithm", sort=False):
        places = rows["layer"].map(names.index)
        axes.plot(places, rows["median_s"], **look(algorithm).line, markersize=3, lw=0.8)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: labels.quantity(value, "s"))
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.grid(axis="y")


def _totals(axes, part):
    part = part.iloc[::-1]
    low, high = part["median_s"].min() / 3, part["median_s"].max()
    for place, row in enumerate(part.to_dict("records")):
        appearance = look(row["algorithm"])
        axes.plot([low, row["median_s"]], [place, place], color=appearance.color, lw=0.8)
        axes.plot(row["median_s"], place, appearance.marker, color=appearance.color, markersize=5)
        text = f"{labels.quantity(row['median_s'], 's')}, "
        text += f"{labels.significant(row['tflops'])} TFLOP/s"
        if row["peak_share"] == row["peak_share"]:
            text += f" ({row['peak_share']:.0%} of peak)"
        axes.annotate(
            text,
            *((row["median_s"], place), (6, -0.5)),
            textcoords="offset points",
            va="center",
            fontsize=6.5,
        )
    names = [
        labels.marked(look(name).label, stale)
        for name, stale in part[["algorithm", "stale"]].to_numpy()
    ]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.7, max(4, len(names)) - 0.3)
    axes.set_xscale("log")
    # Room for what is written to the right of the last point.
    axes.set_xlim(low, high * (high / low) ** 1.25)
    axes.xaxis.set_major_locator(FixedLocator(_decades(low, high)[::2]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: labels.quantity(value, "s"))
    axes.tick_params(axis="x", length=0, labelcolor="#666666")
    axes.grid(axis="x")
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _decades(low, high):
    """Return the powers of ten from `low` to `high`."""
    return [10.0**power for power in range(math.ceil(math.log10(low)), math.ceil(math.log10(high)))]
