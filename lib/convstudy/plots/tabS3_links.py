# SPDX-License-Identifier: MIT
"""What moves between ranks, and how fast: our all-reduce, its carrier's own, and a single link."""

import pandas as pd

from convstudy.plots import labels
from convstudy.plots.figS3_scaling import labels_of
from convstudy.plots.save import Drawn

NAME = "tabS3_links"
COLUMNS = (
    *("machine", "processor", "gpus", "bytes", "all_reduce_bytes_per_s"),
    *("library_bytes_per_s", "ratio", "link_bytes_per_s", "link_s"),
)


def bandwidths(table):
    """Return one row for each machine, number of GPUs and size.

    Parameters
    ----------
    table : pandas.DataFrame
        Of suite "scaling", from `records.table`.

    Returns
    -------
    pandas.DataFrame
        Columns `COLUMNS`. Of all-reduces it is the bandwidth of the bus, as NCCL's tests count it:
        what a ring moves over each link in a direction. `library` is MPI or NCCL called again and
        again by itself, `link` an array from one rank to another, which takes `link_s`.
    """
    done = labels.finished(table)
    if done.empty:
        return pd.DataFrame(columns=COLUMNS)
    done = done[done["what"].isin(("all-reduce", "link"))]
    rows = []
    keys = ["machine", "processor", "gpus", "bytes"]
    for (machine, processor, gpus, size), own in done.groupby(keys, sort=False):
        seconds = own.set_index(["what", "side"])["median_s"].to_dict()
        moved = 2 * (gpus - 1) / gpus * size
        ours, library = (seconds["all-reduce", side] for side in ("ours", "library"))
        link = seconds["link", "ours"]
        rows.append(
            (machine, processor, gpus, int(size), moved / ours, moved / library)
            + (library / ours, size / link, link)
        )
    return pd.DataFrame(rows, columns=COLUMNS)


def display(plotted):
    """Return the bandwidths as people read them."""
    return labels.shown(
        {
            "machine": row["machine"],
            labels_of(row["processor"]): row["gpus"],
            "each has": labels.quantity(row["bytes"], "B"),
            "all-reduce": labels.quantity(row["all_reduce_bytes_per_s"], "B/s"),
            "MPI's or NCCL's own": labels.quantity(row["library_bytes_per_s"], "B/s"),
            "ours of it": f"{row['ratio']:.0%}",
            "one link": labels.quantity(row["link_bytes_per_s"], "B/s"),
            "one message": labels.quantity(row["link_s"], "s"),
        }
        for row in plotted.to_dict("records")
    )


def draw(table):
    """Return the bandwidths as a table.

    Parameters
    ----------
    table : pandas.DataFrame
        Of suite "scaling", from `records.table`.
    """
    return Drawn(NAME, bandwidths(table), None, labels.record_ids(labels.finished(table)))
