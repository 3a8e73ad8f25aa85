# SPDX-License-Identifier: MIT
"""Tables as `records.table` returns them, from as little as a test wants to say."""

import pandas as pd

_DEFAULTS = {
    "machine": "here",
    "record": "20260101T000000Z-0123456-test",
    "commit": "0123456789",
    "status": "ok",
    "reason": None,
    "samples": 5,
    "stale": False,
}


def table(rows):
    """Return a table of `rows`; percentiles lie 10% around each median."""
    filled = []
    for number, row in enumerate(rows):
        row = {**_DEFAULTS, "case": str(number), "median_s": float("nan"), **row}
        filled.append({**row, "p20_s": 0.9 * row["median_s"], "p80_s": 1.1 * row["median_s"]})
    return pd.DataFrame(filled)


def nothing():
    """Return the table of a suite that no machine has run."""
    return table([{}]).iloc[:0]
