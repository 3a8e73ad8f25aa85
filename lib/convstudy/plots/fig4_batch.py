# SPDX-License-Identifier: MIT
"""Fig. 4, the second GPU: from which batch size on it pays, with all on the GPUs and without."""

import pandas as pd
from matplotlib.ticker import LogLocator, NullLocator

from convstudy.plots import labels
from convstudy.plots.palette import BLACK, look
from convstudy.plots.save import Drawn, footer
from convstudy.plots.style import figure, style
from convstudy.records import statistics

NAME = "fig4_batch"
COLUMNS = (
    *("machine", "execution", "rest", "algorithm", "gpus", "n", "median_s", "p20_s", "p80_s"),
    *("images_per_s", "gain", "stale"),
)
# A second GPU that gains less does not pay: two hardly differ from one.
PAYS = 1.1
_TITLES = {"resident": "resident: all on the GPUs", "offload": "offload: the rest on the CPU"}
_STYLES = {1: ("--", "white"), 2: ("-", None), 4: ("-.", None), 8: (":", None)}


def batches(table):
    """Return one row a batch size.

    Parameters
    ----------
    table : pandas.DataFrame
        Of suite "batch", from `records.table`.

    Returns
    -------
    pandas.DataFrame
        Columns `COLUMNS`. `gain`: how many times as fast as one GPU of the same machine.
    """
    done = labels.finished(table)
    if done.empty:
        return pd.DataFrame(columns=COLUMNS)
    keys = ["machine", "execution", "rest", "algorithm", "n"]
    alone = done[done["gpus"] == 1].set_index(keys)["median_s"]
    one = pd.Series([alone.get(tuple(key)) for key in done[keys].to_numpy()], done.index, float)
    done = done.assign(
        images_per_s=done["n"] / done["median_s"],
        gain=statistics.speedup(done["median_s"], one),
    )
    return done[list(COLUMNS)].reset_index(drop=True)


def first_that_keeps_paying(gains):
    """Return the least batch from which on every gain is at least `PAYS`; NaN for none.

    Parameters
    ----------
    gains : pandas.Series
        By batch size, ascending.
    """
    keeps = (gains >= PAYS)[::-1].cummin()[::-1]
    return float(gains.index[keeps].min()) if keeps.any() else float("nan")


def pays_from(plotted):
    """Return, for each way to run, the least batch from which on more GPUs pay; NaN for never."""
    rows = []
    more = plotted[plotted["gpus"] > 1]
    keys = ["machine", "execution", "algorithm", "gpus"]
    for key, group in more.groupby(keys, sort=False):
        group = group.dropna(subset="gain").sort_values("n")
        first, most = first_that_keeps_paying(group.set_index("n")["gain"]), group["gain"].max()
        rows.append(dict(zip(keys, key, strict=True)) | {"from": first, "most": most})
    return pd.DataFrame(rows, columns=[*keys, "from", "most"])


def display(plotted):
    """Return `pays_from` as people read it."""
    return labels.shown(
        {
            "machine": row["machine"],
            "execution": row["execution"],
            "kernel": look(row["algorithm"]).label,
            "GPUs": row["gpus"],
            "they pay from": f"{row['from']:.0f} images" if row["from"] > 0 else "no size measured",
            "most gained": labels.times(row["most"]),
        }
        for row in pays_from(plotted).to_dict("records")
    )


@style()
def draw(table):
    """Draw images a second against batch size, a line for each kernel and number of GPUs.

    Parameters
    ----------
    table : pandas.DataFrame
        Of suite "batch", from `records.table`.

    Returns
    -------
    Drawn
        Without a figure where nothing was measured.
    """
    plotted = batches(table)
    if plotted.empty:
        return Drawn(NAME, plotted)
    machines = list(plotted.groupby("machine", sort=False))
    drawing, axes = figure(
        *(len(machines), 2), height=0.8 + 2.1 * len(machines), squeeze=False, sharey="row"
    )
    for panels, (machine, rows) in zip(axes, machines, strict=True):
        for panel, (execution, title) in zip(panels, _TITLES.items(), strict=True):
            _panel(panel, rows[rows["execution"] == execution])
            name = labels.marked(machine, rows["stale"].any())
            panel.set_title(f"{name}, {title}", loc="left")
        panels[0].set_ylabel("images a second")
    for panel in axes[-1]:
        panel.set_xlabel("images in the batch")
    if plotted["gpus"].max() > 1:
        ring = _ring(axes[0, 0], plotted[:0])
        drawing.legend(handles=ring, loc="outside upper center")
    footer(drawing, labels.sources(labels.finished(table)))
    return Drawn(NAME, plotted, drawing, labels.record_ids(labels.finished(table)))


def _ring(axes, rows):
    """Mark the least batch from which on more GPUs pay."""
    return axes.plot(
        *(rows["n"], rows["images_per_s"], "o"),
        markersize=10,
        markerfacecolor="none",
        markeredgecolor=BLACK,
        markeredgewidth=0.8,
        label=f"from here on more GPUs are at least {PAYS:g} times as fast as one",
    )


def _panel(axes, rows):
    ends = []
    starts = pays_from(rows).set_index(["algorithm", "gpus"])["from"]
    fastest = rows[rows["n"] == rows["n"].max()].groupby("algorithm")["images_per_s"].max()
    for (algorithm, gpus), line in rows.groupby(["algorithm", "gpus"], sort=False):
        line = line.sort_values("n")
        appearance = look(algorithm)
        dash, face = _STYLES.get(gpus, _STYLES[1])
        axes.plot(
            *(line["n"], line["images_per_s"]),
            color=appearance.color,
            marker=appearance.marker,
            markerfacecolor=face or appearance.color,
            ls=dash,
        )
        kernel = appearance.label.partition(" (")[0]
        text = f"{kernel}, {gpus} GPU{'s' * (gpus > 1)}"
        last = line.iloc[-1]
        # Lines of one kernel lie close where a further GPU gains nothing: write above and below.
        shift = 4 if last["images_per_s"] >= fastest[algorithm] else -4
        ends.append((last["n"], last["images_per_s"], shift, text, appearance.color))
        _ring(axes, line[line["n"] == starts.get((algorithm, gpus))])
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    sizes = sorted(rows["n"].unique())
    axes.set_xticks(sizes, [str(int(each)) for each in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.margins(y=0.12)
    axes.grid(axis="y")
    for n, rate, shift, text, color in ends:
        axes.annotate(
            text,
            *((n, rate), (5, shift)),
            textcoords="offset points",
            va="center",
            fontsize=6.5,
            color=color,
        )
    if sizes:
        axes.set_xlim(sizes[0] / 1.3, sizes[-1] * max(2.6, (sizes[-1] / sizes[0]) ** 0.55))
