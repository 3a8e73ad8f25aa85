# SPDX-License-Identifier: MIT
"""The timeline's bars are the recorded events, and the overlap is what lies on top of what."""

import pytest
from rows import nothing, table

from convstudy.plots import fig3_timeline as figure


def event(gpu, stream, chunk, what, start, stop):
    return {
        "gpu": gpu,
        "stream": stream,
        "chunk": chunk,
        "what": what,
        "start_s": start,
        "stop_s": stop,
    }


# On GPU 0 the copy of chunk 2 lies half behind the computing of chunk 0.
EVENTS = [
    event(0, 0, 0, "copy in", 0.0, 1.0),
    event(0, 0, 0, "compute", 1.0, 5.0),
    event(0, 0, 0, "copy out", 5.0, 5.5),
    event(0, 1, 2, "copy in", 4.5, 5.5),
    event(1, 0, 1, "copy in", 0.0, 1.0),
    event(1, 0, 1, "compute", 1.0, 4.0),
]


def timeline(events=EVENTS, gpus=2, **more):
    labels = {"kind": "timeline", "gpus": gpus, "streams": 2, "chunks": 3, "median_s": 6.0}
    return {**labels, "value_events": events, **more}


def test_the_table_is_the_events_of_most_gpus():
    sweep = {"kind": "sweep", "gpus": 4, "streams": 1, "chunks": 1, "median_s": 1.0}
    plotted = figure.events(table([timeline(EVENTS[:1], gpus=1), timeline(), sweep]))
    assert list(plotted.columns) == list(figure.COLUMNS)
    assert set(plotted["gpus"]) == {2}
    shown = plotted[list(EVENTS[0])].to_dict("records")
    assert shown == EVENTS


def test_each_machine_shows_its_own_most():
    rows = [timeline(), timeline(EVENTS[:3], gpus=0, machine="there")]
    plotted = figure.events(table(rows))
    assert plotted.groupby("machine")["gpus"].unique().map(list).to_dict() == {
        "here": [2],
        "there": [0],
    }


def test_a_copy_is_hidden_as_long_as_its_own_gpu_computes():
    found = figure.overlap(figure.events(table([timeline()]))).iloc[0]
    assert found["total_s"] == 5.5
    # GPU 0: 1 alone, 0.5 behind computing, 0.5 with another copy. GPU 1: 1 alone.
    assert found["copy_s"] == pytest.approx(3.0)
    assert found["hidden"] == pytest.approx(0.5 / 3.0)


def test_each_event_is_a_bar_at_its_time():
    drawn = figure.draw(table([timeline()]))
    bars = drawn.figure.axes[0].patches
    assert [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in bars] == [
        pytest.approx((each["start_s"], each["stop_s"])) for each in EVENTS
    ]
    names = [text.get_text() for text in drawn.figure.axes[0].get_yticklabels()]
    assert names == ["GPU 0, stream 0", "GPU 0, stream 1", "GPU 1, stream 0"]


def test_a_copy_too_short_to_see_is_widened_towards_its_computing():
    short = [event(0, 0, 0, "copy in", 0.0, 1e-6), event(0, 0, 0, "copy out", 5.0, 5.0 + 1e-6)]
    drawn = figure.draw(table([timeline([*short, EVENTS[1]])]))
    into, out, _ = drawn.figure.axes[0].patches
    assert into.get_x() == 0
    assert out.get_x() + out.get_width() == pytest.approx(5.0 + 1e-6)
    assert into.get_width() == pytest.approx(out.get_width())
    assert into.get_width() > 0.02
    assert drawn.table["stop_s"].iloc[0] == 1e-6


def test_a_stale_timeline_is_marked():
    drawn = figure.draw(table([timeline(stale=True)]))
    assert drawn.table["stale"].all()
    assert drawn.figure.axes[0].get_title("left").endswith("3 chunks †")


def test_a_machine_without_the_suite_is_left_out():
    for empty in (nothing(), table([timeline(status="failed", reason="no GPU 1")])):
        drawn = figure.draw(empty)
        assert drawn.figure is None
        assert list(drawn.table.columns) == list(figure.COLUMNS)
        assert figure.display(drawn.table).empty
