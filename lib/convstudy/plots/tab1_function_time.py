# SPDX-License-Identifier: MIT
"""Table 1: how long each function of U-Net takes, under every way of executing it."""

import pandas as pd

from convstudy.plots import labels
from convstudy.plots.palette import ALGORITHMS, FUNCTIONS, look
from convstudy.plots.save import Drawn

NAME = "tab1_function_time"
WHOLE = "network"
COLUMNS = (
    *("machine", "execution", "algorithm", "rest", "function", "median_s", "share", "stale"),
)
# From the slowest way to the fastest; within one, in the ladder's order.
_EXECUTIONS = ("cpu-plain", "cpu-blas", "pytorch-cpu", "offload", "resident", "program")


def functions(table):
    """Return one row a function, and one for the whole forward pass, of each execution.

    Parameters
    ----------
    table : pandas.DataFrame
        Of suite "functions", from `records.table`.

    Returns
    -------
    pandas.DataFrame
        Columns `COLUMNS`. `share` is of the sum of all functions; the whole pass, which is timed
        without a stop between functions, has none.
    """
    done = labels.finished(table)
    if done.empty:
        return pd.DataFrame(columns=COLUMNS)
    done = done.fillna({"algorithm": "", "rest": ""})
    ways = ["machine", "execution", "algorithm", "rest"]
    pieces = done["function"] != WHOLE
    sums = done[pieces].groupby(ways)["median_s"].sum()
    of = pd.Series([sums.get(tuple(way)) for way in done[ways].to_numpy()], done.index, float)
    done = done.assign(share=(done["median_s"] / of).where(pieces))
    places = {
        "machine": list(done["machine"].drop_duplicates()),
        "execution": _EXECUTIONS,
        "algorithm": ["", *ALGORITHMS],
        "rest": ["", "cpu-plain", "cpu-blas"],
        "function": [*FUNCTIONS, WHOLE],
    }
    return labels.in_order(done, places)[list(COLUMNS)]


def title(row):
    """Return how a row's execution is called in figures: short, with what it runs."""
    kernel = look(row["algorithm"]).label.partition(" (")[0]
    if row["execution"] == "offload":
        rest = {"cpu-plain": "plain loops", "cpu-blas": "BLAS"}[row["rest"]]
        return f"offload: {kernel}, rest in {rest}"
    if row["execution"] == "resident":
        return f"resident: {kernel}"
    if row["execution"] == "program":
        return "one program"
    return look(row["execution"]).label


def display(plotted):
    """Return the plotted table as people read it: a line an execution, a column a function."""
    rows, called = [], set(plotted["function"])
    ways = ["machine", "execution", "algorithm", "rest"]
    for _, group in plotted.groupby(ways, sort=False):
        first = group.iloc[0]
        cells = {row["function"]: _cell(row) for row in group.to_dict("records")}
        named = {name: cells.get(name, "") for name in (*FUNCTIONS, WHOLE) if name in called}
        way = labels.marked(title(first), group["stale"].any())
        rows.append({"machine": first["machine"], "execution": way, **named})
    return labels.shown(rows)


def _cell(row):
    time = labels.quantity(row["median_s"], "s")
    return f"{time} ({row['share']:.1%})" if row["share"] == row["share"] else time


def draw(table):
    """Return Table 1: there is no figure to it."""
    return Drawn(NAME, functions(table), records=labels.record_ids(labels.finished(table)))
