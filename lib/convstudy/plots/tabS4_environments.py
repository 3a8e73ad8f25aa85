# SPDX-License-Identifier: MIT
"""VGG-16 and ResNet in the paper's four environments: what its optimisations save there."""

import pandas as pd

from convstudy.plots import labels
from convstudy.plots.figS4_networks import NETWORKS
from convstudy.plots.palette import ENVIRONMENTS
from convstudy.plots.save import Drawn
from convstudy.plots.tab1_function_time import WHOLE
from convstudy.records import statistics

NAME = "tabS4_environments"
COLUMNS = (
    *("machine", "network", "environment", "execution", "convolution_s", "functions_s"),
    *("network_s", "convolution_share", "network_speedup", "stale"),
)
_PLAIN = "CPU, plain loops"
_KEYS = ["machine", "network", "environment", "execution"]


def environments(table):
    """Return one row for each network and environment, for one image.

    Parameters
    ----------
    table : pandas.DataFrame
        Of suite "networks", from `records.table`.

    Returns
    -------
    pandas.DataFrame
        Columns `COLUMNS`. What is left on the CPU runs as plain loops, as the paper's does; the
        speed-up is against plain loops altogether, NaN where they were not measured.
        `functions_s` is the sum of all functions, each waited for by itself; a whole network is
        waited for once, so that on a GPU it may take less than its functions.
    """
    done = labels.finished(table)
    if done.empty:
        return pd.DataFrame(columns=COLUMNS)
    done = done.fillna({"rest": ""})
    known = done["environment"].isin(list(ENVIRONMENTS)) & (done["rest"] != "cpu-blas")
    done = done[(done["n"] == 1) & known & (done["clock"] == "synchronised")]
    rows = []
    for key, group in done.groupby(_KEYS, sort=False):
        times = group.set_index("function")["median_s"]
        functions = times.drop(WHOLE).sum()
        rows.append(
            dict(zip(_KEYS, key, strict=True))
            | {
                "convolution_s": times["convolution"],
                "functions_s": functions,
                "network_s": times[WHOLE],
                "convolution_share": times["convolution"] / functions,
                "stale": bool(group["stale"].any()),
            }
        )
    found = pd.DataFrame(rows, columns=list(COLUMNS))
    plain = found[found["environment"] == _PLAIN].set_index(["machine", "network"])["network_s"]
    keys = found[["machine", "network"]].itertuples(index=False, name=None)
    of = pd.Series([plain.get(key, float("nan")) for key in keys], dtype=float)
    found["network_speedup"] = statistics.speedup(found["network_s"], of)
    orders = {
        "machine": list(found["machine"].drop_duplicates()),
        "network": list(found["network"].drop_duplicates()),
        "environment": list(ENVIRONMENTS),
        "execution": ["cpu-plain", "cpu-blas", "offload", "resident"],
    }
    order = pd.DataFrame({name: found[name].map(each.index) for name, each in orders.items()})
    return found.loc[order.sort_values(list(orders)).index].reset_index(drop=True)


def display(plotted):
    """Return the environments as people read them."""
    return labels.shown(
        {
            "machine": row["machine"],
            "network": NETWORKS[row["network"]],
            "environment": labels.marked(row["environment"], row["stale"]),
            "rest": {"offload": "on the CPU", "resident": "on the GPU"}.get(row["execution"], ""),
            "convolution": labels.quantity(row["convolution_s"], "s"),
            "all functions": labels.quantity(row["functions_s"], "s"),
            "convolution's share": f"{row['convolution_share']:.1%}",
            "the network": labels.quantity(row["network_s"], "s"),
            "times as fast": labels.times(row["network_speedup"]),
        }
        for row in plotted.to_dict("records")
    )


def draw(table):
    """Return the table: there is no figure to it."""
    return Drawn(NAME, environments(table), records=labels.record_ids(labels.finished(table)))
