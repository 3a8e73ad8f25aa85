# SPDX-License-Identifier: MIT
"""What tuning brings: the kernels that were found fastest, against those the estimates take."""

import pandas as pd

from convstudy import records
from convstudy.compile import source_sha256
from convstudy.conv import tuned
from convstudy.plots import labels
from convstudy.plots.save import Drawn
from convstudy.records import statistics

NAME = "tabS4_tuning"
_KEYS = ["machine", "pass", "precision", "n"]
COLUMNS = (
    *(*_KEYS, "layers", "tried", "estimated_ms", "tuned_ms", "gain", "changed"),
    "stale",
)


def draw(machines):
    """Return, for each pass, precision and batch, the time of all layers either way.

    Parameters
    ----------
    machines : sequence of str

    Returns
    -------
    Drawn
        Columns `COLUMNS`: `tried` candidates in all, `gain` the estimated kernels' time over the
        tuned ones', `changed` in how many layers they differ.
    """
    done = labels.finished(records.table(tuned.SUITE, machines, source_sha256))
    rows = [_row(key, group) for key, group in done.groupby(_KEYS, sort=False)] if len(done) else []
    ids = labels.record_ids(done)
    return Drawn(NAME, pd.DataFrame(rows, columns=COLUMNS), None, ids)


def _row(key, group):
    # A row stands for all layers that are alike. Of its candidates, the first is the estimates'.
    layers = group["layer"].str.split().map(len)
    first = group["value_candidate_samples_s"].map(lambda samples: statistics.median(samples[0]))
    taken = (group["algorithm"] + " " + group["choice"]).str.strip()
    changed = layers[taken != group["value_candidates"].str[0]].sum()
    estimated, best = (first * layers).sum(), (group["median_s"] * layers).sum()
    return dict(zip(_KEYS, key, strict=True)) | {
        "layers": int(layers.sum()),
        "tried": int(group["value_candidates"].map(len).sum()),
        "estimated_ms": 1e3 * estimated,
        "tuned_ms": 1e3 * best,
        "gain": statistics.speedup(best, estimated),
        "changed": int(changed),
        "stale": bool(group["stale"].any()),
    }


def display(table):
    """Return the table as people read it."""
    return labels.shown(
        {
            **{name: row[name] for name in _KEYS},
            "tried": row["tried"],
            "as estimated": labels.quantity(row["estimated_ms"] / 1e3, "s"),
            "tuned": labels.marked(labels.quantity(row["tuned_ms"] / 1e3, "s"), row["stale"]),
            "gain": f"{labels.significant(row['gain'], 3)}×",
            "other kernels or cuts": f"{row['changed']} of {row['layers']} layers",
        }
        for row in table.to_dict("records")
    )
