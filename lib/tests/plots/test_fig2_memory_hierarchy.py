# SPDX-License-Identifier: MIT
"""The memory hierarchy's plotted table is what was measured, and its ratios point the right way."""

import math

import pytest
from rows import nothing, table

from convstudy.plots import fig2_memory_hierarchy as figure

LATENCY = {"registers": 2e-9, "shared": 10e-9, "L1": 16e-9, "L2": 100e-9, "device": 300e-9}
BYTES = {"registers": 6e6, "shared": 800e3, "L1": 700e3, "L2": 200e3, "device": 100e3}


def measured(processor, latency, **more):
    rows = []
    for space, seconds in latency.items():
        same = {"processor": processor, "space": space, "value_working_set_bytes": 4096.0} | more
        cycles = [1e9 * seconds, 2e9 * seconds, 9e9 * seconds]
        rows.append(
            {**same, "quantity": "latency", "median_s": seconds, "value_cycles": cycles}
            if processor == "gpu"
            else {**same, "quantity": "latency", "median_s": seconds}
        )
        amount = {"median_s": 1e-6, "value_bytes": BYTES.get(space, 1e3)}
        rows.append({**same, "quantity": "bandwidth", **amount})
    return rows


def test_the_table_holds_medians_rates_and_ratios():
    plotted = figure.levels(table(measured("gpu", LATENCY))).set_index("space")
    assert list(plotted.index) == list(LATENCY)
    shared = plotted.loc["shared"]
    assert shared["latency_s"] == 10e-9
    assert shared["latency_cycles"] == pytest.approx(20)
    assert shared["bandwidth_bytes_per_s"] == pytest.approx(8e11)
    assert shared["latency_ratio"] == pytest.approx(30)
    assert shared["bandwidth_ratio"] == pytest.approx(8)
    assert plotted["paper_ratio"].dropna().to_dict() == {"shared": 100}
    assert list(plotted.index[plotted["bound"]]) == ["registers"]


def test_ratios_are_to_the_same_processors_main_memory():
    cpu = measured("cpu", {"L1": 1e-9, "DRAM": 50e-9})
    plotted = figure.levels(table(measured("gpu", LATENCY) + cpu))
    near = plotted[(plotted["processor"] == "cpu") & (plotted["space"] == "L1")].iloc[0]
    assert near["latency_ratio"] == pytest.approx(50)
    assert math.isnan(near["latency_cycles"])


def test_without_main_memory_there_is_no_ratio():
    rows = [r for r in measured("gpu", LATENCY) if r["space"] != "device"]
    plotted = figure.levels(table(rows))
    assert plotted["latency_ratio"].isna().all()
    assert figure.draw(table(rows)).figure is not None


def test_the_paper_is_compared_with_both_quantities():
    compared = figure.compared(figure.levels(table(measured("gpu", LATENCY))))
    assert list(compared["ours"]) == ["30×", "8×"]
    assert list(compared["ours / paper"]) == ["0.3", "0.08"]


def test_the_figure_says_what_the_table_says():
    texts = written(figure.draw(table(measured("gpu", LATENCY))))
    assert "10 ns  ·  20 cycles  ·  30×" in texts
    assert "3 ns  ·  100×" in texts
    assert "≤ 2 ns  ·  4 cycles  ·  ≥ 150×" in texts


def test_a_stale_row_is_marked():
    rows = measured("gpu", LATENCY)
    rows[2]["stale"] = True
    drawn = figure.draw(table(rows))
    assert list(drawn.table["stale"]) == [False, True, False, False, False]
    assert "shared memory †" in [t.get_text() for t in drawn.figure.axes[0].get_yticklabels()]
    assert "shared memory †" in list(figure.display(drawn.table)["memory"])


def test_a_machine_without_the_suite_is_left_out():
    skipped = {"status": "skipped", "processor": "gpu", "space": "L1", "quantity": "latency"}
    for empty in (nothing(), table([skipped])):
        drawn = figure.draw(empty)
        assert drawn.figure is None
        assert list(drawn.table.columns) == list(figure.COLUMNS)
        assert figure.compared(drawn.table).empty
        assert figure.display(drawn.table).empty


def written(drawn):
    return [text.get_text() for axes in drawn.figure.axes for text in axes.texts]
