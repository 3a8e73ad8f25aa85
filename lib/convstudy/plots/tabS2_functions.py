# SPDX-License-Identifier: MIT
"""Table 1 on a GPU: functions of U-Net layer by layer, and as one program, fused."""

import pandas as pd

from convstudy.plots import labels
from convstudy.plots.palette import FUNCTIONS
from convstudy.plots.save import Drawn
from convstudy.plots.tab1_function_time import WHOLE

NAME = "tabS2_functions"
COLUMNS = (
    *("machine", "what", "precision", "n", "function", "before_ms", "after_ms", "after_share"),
    *("launches", "stale"),
)
_KEYS = ["machine", "what", "precision", "n"]
_ORDER = [*FUNCTIONS, "images", "loss", "optimiser", WHOLE]


def functions(table):
    """Return one row for each function of each program, and one for the whole.

    Parameters
    ----------
    table : pandas.DataFrame
        Of suite "fusion", from `records.table`.

    Returns
    -------
    pandas.DataFrame
        Columns `COLUMNS`. `before_ms`: layer by layer, where the host waits for each function, but
        not within the whole; NaN where that is not measured. `after_ms`: the program's launches
        for that function alone, NaN where none is left of it; `after_share` of their sum.
    """
    done = labels.finished(table)
    rows = []
    for key, group in done.groupby(_KEYS, sort=False) if len(done) else ():
        before, after = (
            group[group["execution"] == way].set_index("function")
            for way in ("resident", "program")
        )
        if after.empty:
            continue
        total = after["median_s"].drop(WHOLE).sum()
        for function in _ORDER:
            if function not in before.index and function not in after.index:
                continue
            seconds = after["median_s"].get(function, float("nan"))
            rows.append(
                dict(zip(_KEYS, key, strict=True))
                | {
                    "function": function,
                    "before_ms": 1e3 * before["median_s"].get(function, float("nan")),
                    "after_ms": 1e3 * seconds,
                    "after_share": float("nan") if function == WHOLE else seconds / total,
                    "launches": after["value_launches"].get(function, 0),
                    "stale": bool(group["stale"].any()),
                }
            )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def display(plotted, n=16):
    """Return the table as people read it, of batches of `n`; what is left out stands at its head.

    Where nothing has a batch of `n`, the largest is shown.
    """
    sizes = sorted(plotted["n"].unique())
    n = n if n in sizes else max(sizes, default=n)

    def time(milliseconds, nothing):
        known = milliseconds == milliseconds
        return labels.quantity(milliseconds / 1e3, "s") if known else nothing

    def share(value):
        return f"{value:.1%}" if value == value else ""

    shown = labels.shown(
        {
            "machine": labels.marked(row["machine"], row["stale"]),
            "what": row["what"],
            "precision": row["precision"],
            "images": row["n"],
            "function": row["function"],
            "layer by layer": time(row["before_ms"], ""),
            "fused": time(row["after_ms"], "in others"),
            "share": share(row["after_share"]),
            "launches": int(row["launches"]),
        }
        for row in plotted[plotted["n"] == n].to_dict("records")
    )
    others = ", ".join(str(size) for size in sizes if size != n)
    return shown.rename_axis(columns=f"left out: batches of {others}" if others else None)


def draw(table):
    """Return the table: there is no figure to it."""
    return Drawn(NAME, functions(table), records=labels.record_ids(labels.finished(table)))
