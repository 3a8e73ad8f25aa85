# SPDX-License-Identifier: MIT
"""Networks and convolutions in chunks: the result does not depend on the cut."""

import dataclasses
import itertools
import time

import deferred
import numpy as np
import pytest

from convstudy import device, lane, tolerance
from convstudy.conv import reference
from convstudy.device import CPU, EMULATOR
from convstudy.models.unet import UNet
from convstudy.nn.blas import BlasOps
from convstudy.nn.cuda import ResidentOps
from convstudy.nn.plain import PlainOps
from convstudy.nn.reference import ReferenceOps
from convstudy.parallel import offload, pipeline
from convstudy.parallel.chunks import ChunkedForward
from convstudy.parallel.offload import DataParallelOps, ParallelConv

TWIN = ReferenceOps()
CPUS = (CPU, dataclasses.replace(CPU, index=1))
EMULATORS = (EMULATOR, dataclasses.replace(EMULATOR, index=1))

# devices, streams, chunks: one of each, more chunks than images, numbers that do not divide.
CUTS = [(1, 1, 1), (1, 1, 2), (1, 2, 3), (2, 1, 2), (2, 2, None), (2, 3, 5), (1, 2, 40)]


@pytest.fixture(scope="module")
def small():
    """A real U-Net, its filters cut to few channels: the emulator runs it in seconds."""
    network = UNet.initialised(7, width=2)
    network.randomise_statistics(8)
    return network


@pytest.fixture
def poisoned(monkeypatch):
    """Every buffer begins as NaN, on the host and on the device."""
    for kind in (lane.CpuLane, lane.GpuLane):
        for name in ("host_empty", "empty"):
            monkeypatch.setattr(kind, name, _filled(getattr(kind, name)))


def _filled(make):
    def filled(self, shape):
        array = make(self, shape)
        array.fill(np.nan)
        return array

    return filled


def images(rng, n, h=16, w=19):
    return rng.standard_normal((n, 3, h, w), dtype=np.float32)


def test_two_streams_and_a_chunk_for_each_unless_told_otherwise(small):
    forward = ChunkedForward(small, CPUS, ops=lambda device: BlasOps())
    for each in (forward, ParallelConv(CPUS), DataParallelOps(CPUS).convolution):
        assert each.chunks == 4


# ---- whole networks ------------------------------------------------------------------------------
@pytest.mark.parametrize("n", [1, 3, 5])
def test_a_networks_result_does_not_depend_on_the_cut(small, n, poisoned, rng):
    x = images(rng, n)
    truth = small.forward(x, TWIN)
    whole = small.forward(x, PlainOps())
    for devices, streams, chunks in CUTS:
        forward = ChunkedForward(
            small, CPUS[:devices], streams, chunks, ops=lambda device: PlainOps()
        )
        result = forward.run(x)
        np.testing.assert_array_equal(result, whole)
        tolerance.assert_close(result, truth, *small.terms())


def test_a_networks_result_on_emulated_kernels_does_not_depend_on_the_cut(small, poisoned, rng):
    x = images(rng, 3)
    whole = small.forward(x, ResidentOps(device=EMULATOR))
    for devices, streams, chunks in ((1, 1, 2), (2, 2, 3)):
        forward = ChunkedForward(small, EMULATORS[:devices], streams, chunks)
        np.testing.assert_array_equal(forward.run(x), whole)


def test_runs_of_several_shapes_follow_each_other_and_earlier_results_stay(small, rng):
    forward = ChunkedForward(small, [CPU], 2, ops=lambda device: BlasOps())
    batches = [images(rng, n, h, w) for n, h, w in ((3, 16, 19), (1, 20, 16), (4, 16, 19))]
    results = [forward.run(batch) for batch in batches]
    for batch, result in zip(batches, results, strict=True):
        tolerance.assert_close(result, small.forward(batch, TWIN), *small.terms())


def test_parameters_go_to_each_device_once(small, monkeypatch, rng):
    sent = []
    monkeypatch.setattr(PlainOps, "to_device", lambda ops, array: sent.append(ops) or array)
    forward = ChunkedForward(small, CPUS, 3, ops=lambda device: PlainOps())
    parameters = len(sent)
    assert len(set(sent)) == 2
    for _ in range(2):
        forward.run(images(rng, 7))
    assert len(sent) == parameters


def test_the_timeline_of_a_network(small, rng):
    forward = ChunkedForward(small, CPUS, 2, 5, ops=lambda device: BlasOps())
    begin = time.perf_counter()
    forward.run(images(rng, 5), record=True)
    check_timeline(forward, 5, time.perf_counter() - begin)


def check_timeline(forward, chunks, wall_s):
    events = forward.timeline()
    assert [e["chunk"] for e in events] == sorted(list(range(chunks)) * 3)
    assert [e["what"] for e in events] == ["copy in", "compute", "copy out"] * chunks
    slack = forward.uncertainty_s
    assert 0 <= slack < 1e-3
    assert min(e["start_s"] for e in events) >= -slack
    assert max(e["stop_s"] for e in events) <= wall_s + slack
    by_stream = {}
    for event in events:
        by_stream.setdefault((event["gpu"], event["stream"]), []).append(event)
    for own in by_stream.values():
        times = [time for e in own for time in (e["start_s"], e["stop_s"])]
        assert times == sorted(times)
    assert all(e["stop_s"] > e["start_s"] for e in events)
    return events


def test_bad_networks_calls_are_refused_in_words(small, rng):
    with pytest.raises(ValueError, match="ChunkedForward: chunks must be at least 1, got 0"):
        ChunkedForward(small, [CPU], 1, 0, ops=lambda device: BlasOps())
    with pytest.raises(ValueError, match="ChunkedForward: streams must be at least 1, got -3"):
        ChunkedForward(small, [CPU], -3)
    with pytest.raises(ValueError, match="ChunkedForward: devices is empty"):
        ChunkedForward(small, [])
    with pytest.raises(ValueError, match="runs no kernels; pass a GPU or device.EMULATOR"):
        ChunkedForward(small, [CPU])
    with pytest.raises(ValueError, match="no algorithm 'magic'"):
        ChunkedForward(small, [EMULATOR], algorithm="magic")
    forward = ChunkedForward(small, [CPU], ops=lambda device: BlasOps())
    with pytest.raises(ValueError, match="holds no image"):
        forward.run(images(rng, 0))
    with pytest.raises(TypeError, match="x must be float32, got float64"):
        forward.run(images(rng, 1).astype(float))
    with pytest.raises(RuntimeError, match="ChunkedForward: the last run was not recorded"):
        forward.timeline()


# ---- single convolutions -------------------------------------------------------------------------
def operands(rng, n, taps=(3, 3)):
    x = rng.standard_normal((n, 3, 9, 14), dtype=np.float32)
    return x, rng.standard_normal((5, 3, *taps), dtype=np.float32)


@pytest.mark.parametrize("cut", ["auto", "images", "rows"])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize(("taps", "padding"), [((3, 3), (1, 1)), ((2, 5), (3, 0)), ((1, 1), 0)])
def test_a_convolutions_result_does_not_depend_on_the_cut(cut, n, taps, padding, poisoned, rng):
    x, w = operands(rng, n, taps)
    both = padding if isinstance(padding, tuple) else (padding, padding)
    truth = reference.conv2d(x.astype(float), w.astype(float), padding=both)
    results = []
    for (devices, streams, chunks), weights in itertools.product(CUTS, ("each call", "once")):
        where = EMULATORS[:devices] if chunks != 40 else CPUS[:devices]
        name = "conv2d_fprop_3_tiled" if chunks != 40 else "cpu-plain"
        conv = ParallelConv(where, streams, chunks, name, cut, weights)
        for _ in range(2):
            results.append((name, conv.run(x, w, padding)))
    for name, result in results:
        tolerance.assert_close(result, truth, 3 * taps[0] * taps[1])
        if name.startswith("conv2d"):
            np.testing.assert_array_equal(result, results[0][1])


@pytest.mark.parametrize("cut", ["images", "rows"])
@pytest.mark.parametrize(("taps", "padding", "stride"), [((7, 7), (3, 3), 2), ((1, 2), 0, (3, 1))])
def test_strides_and_a_bias_are_cut_too(cut, taps, padding, stride, poisoned, rng):
    (x, w), bias = operands(rng, 3, taps), rng.standard_normal(5, dtype=np.float32)
    p, s = (v if isinstance(v, tuple) else (v, v) for v in (padding, stride))
    truth = reference.conv2d(*(a.astype(float) for a in (x, w, bias)), s, p)
    for weights in ("each call", "once"):
        conv = ParallelConv(EMULATORS, 2, 4, "conv2d_fprop_3_tiled", cut, weights)
        for _ in range(2):
            result = conv.run(x, w, padding, stride=stride, bias=bias)
            tolerance.assert_close(result, truth, 3 * taps[0] * taps[1] + 16)


def test_every_rung_gives_the_bits_of_the_whole_by_rows(rng):
    x, w = operands(rng, 1)
    whole = ParallelConv([EMULATOR], 1, 1, "conv2d_fprop_1_naive").run(x, w, 1)
    for name in ("conv2d_fprop_1_naive", "conv2d_fprop_4_register_blocked", "auto"):
        conv = ParallelConv(EMULATORS, 1, 3, name)
        np.testing.assert_array_equal(conv.run(x, w, 1), whole)


@pytest.mark.parametrize("cut", ["images", "rows"])
@pytest.mark.parametrize("weights", ["each call", "once"])
def test_no_lane_computes_before_the_filters_are_there(cut, weights, monkeypatch, rng):
    def convolve_later(*arguments):
        deferred.current.lane.defer(offload_convolve, *arguments)
        return arguments[4]

    class SlowFilters(deferred.DeferredLane):
        def copy(self, destination, source):
            if source.shape == w.shape:
                self.defer(time.sleep, 0.05)
            super().copy(destination, source)

    offload_convolve = offload.convolve
    monkeypatch.setattr(offload, "convolve", convolve_later)
    monkeypatch.setattr(
        pipeline, "open_lanes", lambda device, streams: [SlowFilters(device, i) for i in range(2)]
    )
    x, w = operands(rng, 6)
    truth = reference.conv2d(x.astype(float), w.astype(float), padding=(1, 1))
    conv = ParallelConv(CPUS, 2, 6, "cpu-plain", cut, weights)
    for _ in range(2):
        tolerance.assert_close(conv.run(x, w, 1), truth, 27)


@pytest.mark.parametrize(("cut", "chunks"), [("images", 3), ("rows", 5), ("auto", 5)])
def test_a_cut_makes_as_many_chunks_as_asked(cut, chunks, rng):
    conv = ParallelConv([EMULATOR], 2, 5, cut=cut)
    conv.run(*operands(rng, 3), padding=1, record=True)
    assert {e["chunk"] for e in conv.timeline()} == set(range(chunks))


def test_filters_go_to_each_device_once_a_call_or_once(monkeypatch, rng):
    sent = []
    copy = lane.CpuLane.copy

    def spy(self, destination, source):
        sent.append((self.device, source.shape))
        copy(self, destination, source)

    monkeypatch.setattr(lane.CpuLane, "copy", spy)
    x, w = operands(rng, 4)
    for weights, times in (("each call", 3), ("once", 1)):
        sent.clear()
        conv = ParallelConv(EMULATORS, 2, 4, weights=weights)
        for _ in range(3):
            conv.run(x, w)
        filters = [where for where, shape in sent if shape == w.shape]
        assert sorted(filters, key=lambda d: d.index) == [
            d for d in EMULATORS for _ in range(times)
        ]
        assert len(sent) == len(filters) + 3 * 2 * 4


def test_a_network_with_convolutions_in_chunks_agrees_with_the_twin(small, poisoned, rng):
    for n, devices in ((1, 1), (1, 2), (3, 2)):
        x = images(rng, n)
        ops = DataParallelOps(EMULATORS[:devices], 1, cpu=BlasOps())
        assert ops.name == "offload"
        tolerance.assert_close(small.forward(x, ops), small.forward(x, TWIN), *small.terms())


BAD = {
    "no chunks": ({"chunks": 0}, ValueError, "ParallelConv: chunks must be at least 1, got 0"),
    "cut": ({"cut": "columns"}, ValueError, "ParallelConv: cut is 'columns'; choose 'auto' or"),
    "weights": ({"weights": "never"}, ValueError, "ParallelConv: weights is 'never'"),
    "algorithm": ({"algorithm": "magic"}, ValueError, "no algorithm 'magic'"),
    "no devices": ({"devices": ()}, ValueError, "ParallelConv: devices is empty"),
    "float64": ({"x": np.ones((1, 3, 9, 9))}, TypeError, "x is float64 and w is float32"),
    "rank": ({"x": np.ones((3, 9, 9), np.float32)}, ValueError, "x must be an array of rank 4"),
    "a list": ({"x": [[1.0]]}, TypeError, "ParallelConv: x must be a NumPy array, got list"),
    "bias": ({"bias": np.ones(2, np.float32)}, ValueError, r"bias is float32 of shape \(2,\), exp"),
    "no image": ({"x": np.ones((0, 3, 9, 9), np.float32)}, ValueError, "n must be at least 1"),
    "channels": ({"x": np.ones((1, 2, 9, 9), np.float32)}, ValueError, "w expects 3"),
    "NaN": ({"x": np.full((1, 3, 9, 9), np.nan, np.float32)}, ValueError, "x holds NaN"),
    "padding": ({"padding": -1}, ValueError, "padding must be at least 0"),
    "kernel on the CPU": (
        {"devices": [CPU], "algorithm": "conv2d_fprop_3_tiled"},
        ValueError,
        "refuses .* it is a CUDA kernel",
    ),
}


@pytest.mark.parametrize("title", BAD)
def test_bad_convolutions_are_refused_in_words(title, rng):
    options, error, message = BAD[title]
    x, w = operands(rng, 1)
    options = {"devices": [EMULATOR], "x": x, "padding": 1, "bias": None, **options}
    x, padding, bias = (options.pop(name) for name in ("x", "padding", "bias"))
    with pytest.raises(error, match=message):
        ParallelConv(**options).run(x, w, padding, bias=bias)


def test_columns_need_not_lie_side_by_side(rng):
    x, w = operands(rng, 2)
    expected = ParallelConv([EMULATOR]).run(np.ascontiguousarray(x[..., ::2]), w, 1)
    np.testing.assert_array_equal(ParallelConv([EMULATOR]).run(x[..., ::2], w, 1), expected)


# ---- on GPUs -------------------------------------------------------------------------------------
def gpus(count):
    if len(device.devices()) < count:
        pytest.skip(f"needs {count} GPUs and this machine has {len(device.devices())}")
    return device.devices()[:count]


@pytest.fixture(scope="module")
def network():
    network = UNet.initialised(3)
    network.randomise_statistics(4)
    return network


GPU_CUTS = [(1, 1, 1), (1, 1, 3), (1, 2, 2), (1, 4, 40), (2, 1, 2), (2, 2, None), (2, 2, 5)]


@pytest.mark.gpu
@pytest.mark.parametrize(("count", "streams", "chunks"), GPU_CUTS)
@pytest.mark.parametrize("n", [1, 5])
def test_a_networks_result_on_gpus_does_not_depend_on_the_cut(
    network, n, count, streams, chunks, poisoned, rng
):
    devices = gpus(count)
    batches = [images(rng, n, 64, 95) for _ in range(2)]
    forward = ChunkedForward(network, devices, streams, chunks)
    # Three runs: the first allocates, the others find freed memory, full of older values.
    results = [forward.run(batch) for batch in (*batches, batches[0])]
    np.testing.assert_array_equal(results[2], results[0])
    for batch, result in zip(batches, results, strict=False):
        np.testing.assert_array_equal(result, network.forward(batch, ResidentOps()))
        tolerance.assert_close(result, network.forward(batch, TWIN), *network.terms())


@pytest.mark.gpu
@pytest.mark.parametrize("count", [1, 2])
def test_many_runs_on_gpus_give_the_same_bits(network, count, rng):
    """A race between streams, or memory reused too early, would show now and then."""
    forward = ChunkedForward(network, gpus(count), streams=3, chunks=7)
    x = images(rng, 13, 48, 61)
    expected = network.forward(x, ResidentOps())
    for _ in range(30):
        np.testing.assert_array_equal(forward.run(x), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("count", [1, 2])
def test_the_timeline_on_gpus(network, count, rng):
    """Naive kernels compute so long that the overlap does not hang on the host's speed."""
    chunks = 4 * count
    forward = ChunkedForward(network, gpus(count), 2, chunks, "conv2d_fprop_1_naive")
    x = images(rng, 4 * chunks, 128, 191)
    forward.run(x)
    begin = time.perf_counter()
    forward.run(x, record=True)
    events = check_timeline(forward, chunks, time.perf_counter() - begin)
    assert forward.uncertainty_s < 1e-4

    def overlap(a, b):
        return a["start_s"] < b["stop_s"] and b["start_s"] < a["stop_s"]

    copies = [e for e in events if e["what"] != "compute"]
    computations = [e for e in events if e["what"] == "compute"]
    assert any(
        overlap(a, b)
        for a in copies
        for b in computations
        if a["gpu"] == b["gpu"] and a["stream"] != b["stream"]
    )
    if count == 2:
        assert any(
            overlap(a, b)
            for a, b in itertools.combinations(computations, 2)
            if a["gpu"] != b["gpu"]
        )


@pytest.mark.gpu
def test_one_stream_does_not_overlap_with_itself(network, rng):
    forward = ChunkedForward(network, gpus(1), 1, 3)
    x = images(rng, 6, 64, 95)
    forward.run(x)
    forward.run(x, record=True)
    times = [time for e in forward.timeline() for time in (e["start_s"], e["stop_s"])]
    assert times == sorted(times)


@pytest.mark.gpu
@pytest.mark.parametrize(("count", "streams", "chunks"), GPU_CUTS)
@pytest.mark.parametrize("cut", ["images", "rows"])
@pytest.mark.parametrize("weights", ["each call", "once"])
def test_a_convolutions_result_on_gpus_does_not_depend_on_the_cut(
    count, streams, chunks, cut, weights, poisoned, rng
):
    devices = gpus(count)
    x = rng.standard_normal((3, 64, 32, 47), dtype=np.float32)
    w = rng.standard_normal((96, 64, 3, 3), dtype=np.float32)
    truth = reference.conv2d(x.astype(float), w.astype(float), padding=(1, 1))
    whole = ParallelConv([0], 1, 1).run(x, w, 1)
    tolerance.assert_close(whole, truth, 9 * 64)
    conv = ParallelConv(devices, streams, chunks, cut=cut, weights=weights)
    for _ in range(3):
        np.testing.assert_array_equal(conv.run(x, w, 1), whole)


@pytest.mark.gpu
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("n", [1, 3])
def test_a_network_with_convolutions_in_chunks_on_gpus(network, count, n, poisoned, rng):
    x = images(rng, n, 64, 95)
    ops = DataParallelOps(gpus(count), streams=2, cpu=BlasOps())
    truth = network.forward(x, TWIN)
    for _ in range(2):
        tolerance.assert_close(network.forward(x, ops), truth, *network.terms())


@pytest.mark.gpu
def test_what_runs_elsewhere_on_the_gpu_is_not_waited_for_nor_disturbed(network, rng):
    """The default stream and another device as the current one make no difference."""
    import cupy

    x = images(rng, 3, 64, 95)
    forward = ChunkedForward(network, gpus(1), 2)
    expected = forward.run(x)
    with cupy.cuda.Device(device.devices()[-1].index), cupy.cuda.Stream(non_blocking=True):
        np.testing.assert_array_equal(forward.run(x), expected)
        assert cupy.cuda.Device().id == device.devices()[-1].index


@pytest.mark.gpu
def test_more_gpus_than_there_are_is_refused_in_words(network):
    present = len(device.devices())
    with pytest.raises(RuntimeError, match=f"ChunkedForward: no GPU {present}"):
        ChunkedForward(network, range(present + 1))
