# SPDX-License-Identifier: MIT
"""Numbers are written once and alike, and what is missing is said."""

import pytest
from rows import nothing, table

from convstudy.plots import labels


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1.1729e-8, "s", "11.7 ns"),
        (999e-9, "s", "999 ns"),
        (0.1, "s", "100 ms"),
        (1e-10, "s", "0.1 ns"),
        (3.2e13, "B/s", "32 TB/s"),
        (5e19, "B/s", "50000 PB/s"),
        (0.0, "s", "0 s"),
        (float("nan"), "s", ""),
    ],
)
def test_a_quantity_has_the_prefix_that_keeps_it_short(value, unit, text):
    assert labels.quantity(value, unit) == text


def test_only_what_is_stale_is_marked():
    assert labels.marked("kernel", False) == "kernel"
    assert labels.marked("kernel", True) == "kernel †"


def test_under_a_figure_stands_each_record_once_and_what_the_dagger_means():
    rows = [{"record": "a"}, {"record": "a"}, {"record": "b", "machine": "there"}]
    text = labels.sources(table(rows))
    assert text.splitlines() == ["here · commit 0123456 · a", "there · commit 0123456 · b"]
    assert labels.record_ids(table(rows)) == ("a", "b")
    rows[1]["stale"] = True
    assert labels.sources(table(rows)).endswith(labels.STALE)


def test_what_is_missing_is_said_with_the_way_to_it():
    skipped = {"status": "skipped", "reason": "it needs a GPU"}
    text = labels.gaps(table([{}, skipped, skipped]), "memory", ("here", "there"))
    assert "here: 2 of 3 cases of suite 'memory' are missing: it needs a GPU" in text
    assert "`make measure SUITE=memory MACHINE=there`" in text
    wrong = [{"status": "failed", "reason": f"error {e}, at most 1e-06"} for e in ("2e-05", "0.3")]
    text = labels.gaps(table([{}, *wrong, skipped]), "memory", ("here",))
    assert "2 of 4 cases of suite 'memory' are missing, such as: error 0.3, at most 1e-06" in text
    assert "1 of 4 cases of suite 'memory' are missing: it needs a GPU" in text
    assert "All of suite" in labels.gaps(table([{}]), "memory", ("here",))
    assert "MACHINE=here" in labels.gaps(nothing(), "memory", ("here",))
