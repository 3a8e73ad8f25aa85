# SPDX-License-Identifier: MIT
"""How figures write numbers, where those come from, and what is missing."""

import math
import re

import pandas as pd

DAGGER = "†"
STALE = f"{DAGGER} measured before its kernel was last changed"

_PREFIXES = {-9: "n", -6: "µ", -3: "m", 0: "", 3: "k", 6: "M", 9: "G", 12: "T", 15: "P"}


def quantity(value, unit, digits=3):
    """Return `value` with a unit and its prefix.

    Examples
    --------
    >>> quantity(2.345e-8, "s"), quantity(4.1e12, "B/s"), quantity(0.0123, "s", 2)
    ('23.4 ns', '4.1 TB/s', '12 ms')
    """
    if not math.isfinite(value):
        return ""
    if not value:
        return f"0 {unit}"
    power = min(max(3 * math.floor(math.log10(abs(value)) / 3), -9), 15)
    return f"{significant(value / 10.0**power, digits)} {_PREFIXES[power]}{unit}"


def significant(value, digits=2):
    """Return `value` to so many digits, never as a power of ten.

    Examples
    --------
    >>> significant(27.06), significant(0.0439), significant(1234.5), significant(7.0)
    ('27', '0.044', '1234', '7')
    """
    if not value or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def times(ratio):
    """Return a ratio as text.

    Examples
    --------
    >>> times(28.5), times(7.31), times(0.5)
    ('28×', '7.3×', '0.5×')
    """
    return f"{significant(ratio)}×" if math.isfinite(ratio) else ""


def percent(share):
    """Return a share in percent: only all is 100%, and only nothing 0%.

    Examples
    --------
    >>> percent(0.816), percent(0.99964), percent(1.0), percent(0.002)
    ('82%', '99.96%', '100%', '0.2%')
    """
    if not math.isfinite(share):
        return ""
    left = min(abs(share), abs(1 - share))
    decimals = max(0, -2 - math.floor(math.log10(left))) if 0 < left < 0.005 else 0
    return f"{share:.{decimals}%}"


def known(value, digits=3):
    """Return `value` to so many digits, or nothing where it is not known.

    Examples
    --------
    >>> known(27.064), known(float("nan"))
    ('27.1', '')
    """
    return significant(value, digits) if math.isfinite(value) else ""


def many(count, thing, plural="s"):
    """Return ``1 GPU`` or ``2 GPUs``."""
    return f"{count} {thing}{plural * (count != 1)}"


def marked(text, stale):
    """Return `text` with a dagger where its rows are stale."""
    return f"{text} {DAGGER}" if stale else text


def finished(table):
    """Return those rows of a suite's table that were measured."""
    return table[table["status"] == "ok"]


def in_order(table, places):
    """Return a table's rows in the order in which people read them.

    Parameters
    ----------
    table : pandas.DataFrame
    places : dict of str to iterable
        Of each column, the first before the next, all values in their order.
    """
    order = pd.DataFrame(
        {
            name: table[name].map({value: place for place, value in enumerate(known)})
            for name, known in places.items()
        }
    )
    return table.loc[order.sort_values(list(places)).index].reset_index(drop=True)


def record_ids(table):
    """Return the ids of the records that the rows of `table` come from."""
    return tuple(table["record"].drop_duplicates())


def sources(table):
    """Return the text under a figure: machine, commit and record, and what a dagger means."""
    lines = [
        f"{machine} · commit {commit[:7]} · {record}"
        for machine, commit, record in table[["machine", "commit", "record"]]
        .drop_duplicates()
        .itertuples(index=False)
    ]
    return "\n".join(lines + [STALE] * bool(table["stale"].any()))


def shown(rows, index="machine"):
    """Return dicts as a table to read, without numbers for its rows; an empty one for none."""
    table = pd.DataFrame(list(rows))
    return table.set_index(index) if len(table) else table


def _without_measures(reason):
    """Return a reason without what was measured: reasons of one kind differ in that alone."""
    return re.sub(r"\d+\.\d+(e[+-]?\d+)?|\d+e[+-]?\d+", "#", reason)


def gaps(table, suite, machines):
    """Return a sentence for each machine that lacks a suite, or has not measured all of it.

    Parameters
    ----------
    table : pandas.DataFrame
        From `records.table`.
    suite : str
    machines : sequence of str
    """
    sentences = []
    for machine in machines:
        rows = table[table["machine"] == machine]
        if rows.empty:
            sentences.append(
                f"{machine} has no record of suite {suite!r}: "
                f"`make measure SUITE={suite} MACHINE={machine}`, run there, adds one."
            )
        left_out = rows[rows["status"] != "ok"]
        for _, cases in left_out.groupby(left_out["reason"].map(_without_measures)):
            reasons = sorted(set(cases["reason"]))
            part = f"{len(cases)} of {len(rows)} cases of suite {suite!r} are missing"
            such_as = ", such as" if len(reasons) > 1 else ""
            sentences.append(f"{machine}: {part}{such_as}: {reasons[0]}")
    return "\n".join(sentences) or f"All of suite {suite!r} is measured on each machine."
