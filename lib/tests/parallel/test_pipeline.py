# SPDX-License-Identifier: MIT
"""The schedule, on lanes that keep a GPU's promises and no more: work is done later, in order."""

import dataclasses
import threading

import numpy as np
import pytest
from deferred import DeferredLane

from convstudy import device
from convstudy.device import CPU, EMULATOR
from convstudy.lane import CpuLane
from convstudy.parallel import pipeline
from convstudy.parallel.pipeline import Chunk, Pipeline

TWO = (CPU, dataclasses.replace(CPU, index=1))


@pytest.fixture
def deferred(monkeypatch):
    monkeypatch.setattr(
        pipeline,
        "open_lanes",
        lambda device, streams: [DeferredLane(device, number) for number in range(streams)],
    )


def doubling(n, results):
    """Return `n` chunks; chunk i doubles an array of i."""

    def chunk(i):
        def compute(lane, x):
            y = lane.empty(x.shape)
            lane.defer(np.multiply, x, 2, y) if hasattr(lane, "defer") else np.multiply(x, 2, y)
            return y

        return Chunk((3, 2), lambda staged: staged.fill(i), compute, results[i])

    return [chunk(i) for i in range(n)]


@pytest.mark.parametrize("devices", [TWO[:1], TWO])
@pytest.mark.parametrize("streams", [1, 2, 3])
@pytest.mark.parametrize("chunks", [1, 2, 7])
def test_every_chunk_is_computed_once_and_is_there_at_the_end(deferred, devices, streams, chunks):
    results = np.full((chunks, 3, 2), np.nan, np.float32)
    line = Pipeline("test", devices, streams)
    line.run(doubling(chunks, results))
    np.testing.assert_array_equal(results[:, 0, 0], 2 * np.arange(chunks))
    assert np.ptp(results, axis=(1, 2)).max() == 0


def test_chunks_are_dealt_to_every_device_before_its_second_stream(deferred):
    results = np.empty((5, 3, 2), np.float32)
    line = Pipeline("test", TWO, 2)
    line.run(doubling(5, results), record=True)
    places = {e["chunk"]: (e["gpu"], e["stream"]) for e in line.timeline()}
    assert places == {0: (0, 0), 1: (1, 0), 2: (0, 1), 3: (1, 1), 4: (0, 0)}


def test_a_gpus_clock_is_aligned_once_and_only_to_be_recorded(deferred, monkeypatch):
    aligned, results = [], np.empty((2, 3, 2), np.float32)
    monkeypatch.setattr(
        DeferredLane, "align", lambda lane: aligned.append((lane.device.index, lane.number))
    )
    line = Pipeline("test", TWO, 2)
    line.run(doubling(2, results))
    assert aligned == []
    line.run(doubling(2, results), record=True)
    assert aligned == [(0, 0), (1, 0)]


def test_each_gpu_is_asked_by_a_thread_of_its_own(deferred):
    results = np.empty((8, 3, 2), np.float32)
    line = Pipeline("test", TWO, 2)
    line.run(doubling(8, results))
    asked = {}
    for lane in line.lanes:
        asked.setdefault(lane.device, set()).update(lane.asked_by)
    assert all(len(threads) == 1 for threads in asked.values())
    assert threading.get_ident() not in set.union(*asked.values())


@pytest.mark.parametrize("streams", [1, 2])
def test_the_timeline_is_in_order_and_streams_overlap(deferred, streams):
    results = np.empty((6, 3, 2), np.float32)
    line = Pipeline("test", TWO[:1], streams)
    line.run(doubling(6, results), record=True)
    events = line.timeline()
    assert [e["what"] for e in events] == ["copy in", "compute", "copy out"] * 6
    assert [e["chunk"] for e in events] == sorted(list(range(6)) * 3)
    for stream in range(streams):
        own = [e for e in events if e["stream"] == stream]
        times = [time for e in own for time in (e["start_s"], e["stop_s"])]
        assert times == sorted(times)
        assert times[0] >= 0
    copies = [e for e in events if e["what"] == "copy in"]
    computations = [e for e in events if e["what"] == "compute"]
    overlapping = [
        (a, b)
        for a in copies
        for b in computations
        if a["start_s"] < b["stop_s"] and b["start_s"] < a["stop_s"]
    ]
    assert bool(overlapping) == (streams == 2)
    assert all(a["stream"] != b["stream"] for a, b in overlapping)


def test_prepare_is_called_once_for_each_lane_in_use_before_its_first_chunk(deferred):
    results = np.empty((5, 3, 2), np.float32)
    line = Pipeline("test", TWO, 2)
    prepared = []
    line.run(doubling(5, results), prepared.append)
    assert sorted(prepared, key=line.lanes.index) == line.lanes
    prepared.clear()
    line.run(doubling(1, results), prepared.append)
    assert prepared == line.lanes[:1]


@pytest.mark.parametrize("devices", [TWO[:1], TWO])
def test_a_fault_in_one_chunk_is_raised_when_all_else_has_come_to_rest(deferred, devices):
    results = np.full((6, 3, 2), np.nan, np.float32)
    chunks = doubling(6, results)

    def fail(lane, x):
        raise ArithmeticError("chunk 4 fails")

    chunks[4] = dataclasses.replace(chunks[4], compute=fail)
    line = Pipeline("test", devices, 2)
    with pytest.raises(ArithmeticError, match="chunk 4 fails"):
        line.run(chunks, record=True)
    assert all(not lane._asked for lane in line.lanes)
    with pytest.raises(RuntimeError, match="test: the last run was not recorded"):
        line.timeline()
    # It can be used again.
    line.run(doubling(6, results))
    np.testing.assert_array_equal(results[:, 0, 0], 2 * np.arange(6))


def test_a_run_that_is_not_recorded_has_no_timeline():
    results = np.empty((2, 3, 2), np.float32)
    line = Pipeline("test", [CPU], 1)
    line.run(doubling(2, results), record=True)
    assert len(line.timeline()) == 6
    assert line.uncertainty_s == 0
    line.run(doubling(2, results))
    with pytest.raises(RuntimeError, match="record=True"):
        line.timeline()


BAD = {
    "no devices": (([], 2), ValueError, "devices is empty"),
    "the same twice": (([CPU, CPU], 2), ValueError, "device 0 is named twice"),
    "no streams": (([CPU], 0), ValueError, "streams must be at least 1, got 0"),
    "negative streams": (([CPU], -1), ValueError, "streams must be at least 1, got -1"),
    "half a stream": (([CPU], 0.5), TypeError, "streams must be an integer"),
    "one device bare": ((CPU, 1), TypeError, "devices must be a sequence"),
    "a number bare": ((0, 1), TypeError, r"devices must be a sequence, got 0; pass \[0\]"),
    "a name": ((["gpu"], 1), TypeError, "a device is a Device or a GPU's number, got 'gpu'"),
    "a truth": (([True], 1), TypeError, "got True"),
    "a GPU too many": (([len(device.devices())], 1), RuntimeError, "test( needs a GPU|: no GPU)"),
    "a negative GPU": (([-1], 1), RuntimeError, "test( needs a GPU|: no GPU -1)"),
}


@pytest.mark.parametrize("title", BAD)
def test_bad_pipelines_are_refused_in_words(title):
    arguments, error, message = BAD[title]
    with pytest.raises(error, match=message):
        Pipeline("test", *arguments)


def test_lanes_of_the_cpu_and_the_emulator_work_on_the_calling_thread():
    for where in (CPU, EMULATOR):
        line = Pipeline("test", [where], 2)
        assert [type(lane) for lane in line.lanes] == [CpuLane, CpuLane]
        assert line._threads is None
