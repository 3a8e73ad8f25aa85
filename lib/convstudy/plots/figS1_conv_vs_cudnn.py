# SPDX-License-Identifier: MIT
"""Each pass and precision of U-Net's 18 convolutions: our kernels against cuDNN."""

import pandas as pd
from matplotlib.ticker import NullLocator

from convstudy.plots import figS0_ladder, labels
from convstudy.plots.palette import BLUE, GREEN, ORANGE, look
from convstudy.plots.save import Drawn, footer
from convstudy.plots.style import figure, style
from convstudy.records import statistics

NAME = "figS1_conv_vs_cudnn"
ALL, BEST = "all", "best of each layer"
COLUMNS = (
    *("machine", "pass", "precision", "n", "layer", "algorithm", "ours_ms", "cudnn_ms", "ratio"),
    *("tflops", "peak_share", "max_rel_error", "cudnn_max_rel_error", "badly_scaled_error"),
    *("cudnn_badly_scaled_error", "cudnn_passed", "height", "width", "stale"),
)
# Behind an error that is more than rounded sums of rounded products have.
BEYOND = "‡"
_KEYS = ["machine", "pass", "precision", "n"]
_SIZES = ["height", "width"]
_PEAKS = {"fp32": "peak_flops", "tf32": "peak_tf32_flops", "bf16": "peak_bf16_flops"}
_LINES = ((ORANGE, "o"), (BLUE, "s"), (GREEN, "^"))


def read(machines):
    """Return what suite "convolutions" measured on `machines`; see `figS0_ladder.read`."""
    return figS0_ladder.read(machines, "convolutions")


def compare(table):
    """Return one row a layer and kernel beside cuDNN's faster layout, and the sums over layers.

    Parameters
    ----------
    table : pandas.DataFrame
        From `read`.

    Returns
    -------
    pandas.DataFrame
        Columns `COLUMNS`. The layer `ALL` sums a kernel that has all layers; its algorithm `BEST`
        sums the fastest kernel of each. An error of a sum is the largest of its layers.
        `peak_share` is of the fp32 units' peak for fp32, which tensor cores can exceed, and of the
        tensor cores' for TF32 and for bf16. `cudnn_passed` says whether cuDNN's error is within
        the tolerance that ours is held to. Where numbers differ by twelve powers of ten, errors
        were measured in fp32 for one image alone.
    """
    done = labels.finished(table)
    if done.empty:
        return pd.DataFrame(columns=COLUMNS)
    layers = list(table["layer"].drop_duplicates())
    rows = []
    # Rows as dictionaries: of a data frame, a thousand small selections take seconds.
    for key, group in done.groupby(_KEYS, sort=False):
        found = group.to_dict("records")
        ours = [row for row in found if row["algorithm"] != "cudnn"]
        vendor = _fastest(row for row in found if row["algorithm"] == "cudnn")
        kernels = dict.fromkeys(row["algorithm"] for row in ours)
        for algorithm in (*kernels, BEST):
            chosen = _fastest(row for row in ours if algorithm in (row["algorithm"], BEST))
            pairs = {
                layer: (row, vendor[layer]) for layer, row in chosen.items() if layer in vendor
            }
            for layer, pair in pairs.items() if algorithm != BEST else ():
                rows.append(_row(key, layer, algorithm, [pair]))
            if len(pairs) == len(layers):
                rows.append(_row(key, ALL, algorithm, list(pairs.values())))
    return pd.DataFrame(rows, columns=COLUMNS)


def _fastest(rows):
    """Return the fastest row of each layer, by layer."""
    found = {}
    for row in rows:
        if row["layer"] not in found or row["median_s"] < found[row["layer"]]["median_s"]:
            found[row["layer"]] = row
    return found


def _row(key, layer, algorithm, pairs):
    ours, vendor = zip(*pairs, strict=True)
    seconds, theirs, flops = (
        sum(row[name] for row in rows)
        for rows, name in ((ours, "median_s"), (vendor, "median_s"), (ours, "flops"))
    )
    same = dict(zip(_KEYS, key, strict=True))
    return same | {
        "layer": layer,
        "algorithm": algorithm,
        "ours_ms": 1e3 * seconds,
        "cudnn_ms": 1e3 * theirs,
        "ratio": statistics.speedup(seconds, theirs),
        "tflops": statistics.tflops(flops, seconds),
        "peak_share": statistics.share_of_peak(flops, seconds, ours[0][_PEAKS[same["precision"]]]),
        "max_rel_error": _largest(ours, "error"),
        "cudnn_max_rel_error": _largest(vendor, "error"),
        "badly_scaled_error": _largest(ours, "value_badly_scaled_error"),
        "cudnn_badly_scaled_error": _largest(vendor, "value_badly_scaled_error"),
        "cudnn_passed": all(row["passed"] for row in vendor),
        **{name: int(ours[0][name]) for name in _SIZES},
        "stale": any(row["stale"] for row in ours),
    }


def _largest(rows, name):
    """Return the largest of those numbers that there are; NaN where there is none."""
    found = (row.get(name, float("nan")) for row in rows)
    return max((each for each in found if each == each), default=float("nan"))


def display(plotted):
    """Return the sums over the layers as people read them."""
    sums = plotted[plotted["layer"] == ALL]
    return labels.shown(
        {
            "machine": row["machine"],
            "pass": row["pass"],
            "precision": row["precision"],
            "images": row["n"],
            "algorithm": labels.marked(look(row["algorithm"]).label, row["stale"]),
            "18 layers": labels.quantity(row["ours_ms"] / 1e3, "s"),
            "cuDNN": labels.quantity(row["cudnn_ms"] / 1e3, "s"),
            "times as fast": labels.significant(row["ratio"], 3),
            "TFLOP/s": labels.significant(row["tflops"], 3),
            "share of peak": f"{row['peak_share']:.0%}",
            "largest error": f"{row['max_rel_error']:.1e}",
            "cuDNN's": f"{row['cudnn_max_rel_error']:.1e}{_flag(row)}",
        }
        for row in sums.to_dict("records")
    )


def _flag(row):
    return "" if row["cudnn_passed"] else f" {BEYOND}"


def exactness(plotted):
    """Return how many times cuDNN's error ours is in fp32, where that is most, for each sum."""
    single = plotted[(plotted["layer"] != ALL) & (plotted["precision"] == "fp32")]
    best = fastest(single)
    rows = []
    for key, group in best.groupby(_KEYS, sort=False):
        random = group["max_rel_error"] / group["cudnn_max_rel_error"]
        scaled = group["badly_scaled_error"] / group["cudnn_badly_scaled_error"]
        rows.append(
            {
                **dict(zip(_KEYS, key, strict=True)),
                "error over cuDNN's, at most": labels.significant(random.max()),
                "the same, badly scaled": labels.times(scaled.max()).removesuffix("×"),
            }
        )
    return labels.shown(rows)


def fastest(single):
    """Return, of rows of single layers as `compare` gives them, the fastest kernel of each."""
    places = single.groupby([*_KEYS, "layer"], sort=False)["ours_ms"].idxmin()
    return single.loc[places]


@style()
def draw(table):
    """Draw how many times as fast as cuDNN each layer's fastest kernel is.

    Parameters
    ----------
    table : pandas.DataFrame
        From `read`.

    Returns
    -------
    Drawn
        Without a figure where nothing was measured.
    """
    plotted = compare(table)
    if plotted.empty:
        return Drawn(NAME, plotted)
    parts = list(plotted.groupby(["machine", "precision"], sort=False))
    passes = list(plotted["pass"].drop_duplicates())
    drawing, axes = figure(
        len(parts),
        len(passes),
        height=0.9 + 1.3 * len(parts),
        squeeze=False,
        sharex=True,
        sharey="row",
    )
    names = [*table["layer"].drop_duplicates(), ALL]
    for panels, ((machine, precision), part) in zip(axes, parts, strict=True):
        for panel, which in zip(panels, passes, strict=True):
            _panel(panel, part[part["pass"] == which], names)
            panel.set_title(f"{machine}: {which}, {precision}", loc="left")
        panels[0].set_ylabel("times as fast as cuDNN")
    axes[0, -1].legend(loc="best")
    footer(drawing, labels.sources(labels.finished(table)))
    return Drawn(NAME, plotted, drawing, labels.record_ids(labels.finished(table)))


def _panel(axes, part, names):
    for (n, rows), (color, marker) in zip(part.groupby("n"), _LINES, strict=False):
        best = rows.sort_values("ratio", ascending=False).drop_duplicates("layer")
        places = best["layer"].map(names.index).to_numpy()
        axes.plot(places, best["ratio"], marker, color=color, markersize=3, label=f"N = {n}")
    axes.axhline(1, color="#666666", lw=0.8)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(lambda value, _: labels.times(value))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.grid(axis="y")
