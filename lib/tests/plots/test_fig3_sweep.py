# SPDX-License-Identifier: MIT
"""The sweep's points are the recorded medians, and the gain is between the best cuts."""

import pytest
from rows import nothing, table

from convstudy.plots import fig3_sweep as figure


def cut(gpus, streams, chunks, seconds, **more):
    labels = {"kind": "sweep", "gpus": gpus, "streams": streams, "chunks": chunks, "n": 16}
    return {**labels, "median_s": seconds, **more}


ROWS = [
    *(cut(1, 1, 1, 0.10), cut(1, 1, 4, 0.08), cut(1, 2, 4, 0.09)),
    *(cut(2, 1, 2, 0.06), cut(2, 1, 4, 0.05)),
    cut(1, 1, 1, 99.0, kind="timeline"),
]


def test_the_table_is_the_sweep():
    plotted = figure.sweep(table(ROWS))
    assert list(plotted.columns) == list(figure.COLUMNS)
    assert list(plotted["median_s"]) == [0.10, 0.08, 0.09, 0.06, 0.05]
    assert plotted["images_per_s"].iloc[4] == pytest.approx(320)


def test_the_gain_is_between_the_best_cuts():
    found = figure.best(figure.sweep(table(ROWS))).set_index("gpus")
    assert found["gain"].to_dict() == pytest.approx({1: 1.0, 2: 1.6})
    assert list(found["chunks"]) == [4, 4]


def test_a_machine_without_a_gpu_gains_nothing_on_one():
    mixed = [*ROWS, cut(0, 1, 1, 0.9), cut(0, 1, 1, 0.8, machine="there")]
    shown = figure.display(figure.sweep(table(mixed)))
    told = shown.set_index("GPUs", append=True)["against one GPU"].to_dict()
    assert told["there", "none (CPU)"] == ""
    assert told["here", 2] == "1.6×"


def test_the_papers_gain_stands_beside_ours():
    compared = figure.compared(figure.sweep(table(ROWS)))
    assert list(compared["the paper"]) == ["1.22×", "1.05×"]
    assert list(compared["ours: the whole network"]) == ["1.6×", "1.6×"]


def test_a_line_runs_through_its_medians():
    drawn = figure.draw(table(ROWS))
    lines = {bars.get_label(): bars.lines[0] for bars in drawn.figure.axes[0].containers}
    assert list(lines) == ["1 GPU, 1 stream", "1 GPU, 2 streams", "2 GPUs, 1 stream"]
    assert list(lines["2 GPUs, 1 stream"].get_ydata()) == [0.06, 0.05]
    assert list(lines["2 GPUs, 1 stream"].get_xdata()) == [2, 4]


def test_stale_rows_are_marked():
    drawn = figure.draw(table([cut(1, 1, 1, 0.1, stale=True)]))
    assert drawn.figure.axes[0].get_title("left").startswith("here †")
    assert "†" in figure.display(drawn.table)["time"].iloc[0]


def test_a_machine_without_the_suite_is_left_out():
    for empty in (nothing(), table([cut(2, 1, 1, 0.1, status="failed", reason="no GPU 1")])):
        drawn = figure.draw(empty)
        assert drawn.figure is None
        assert list(drawn.table.columns) == list(figure.COLUMNS)
        assert figure.display(drawn.table).empty
        assert figure.compared(drawn.table).empty
