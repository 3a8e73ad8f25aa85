# SPDX-License-Identifier: MIT
"""The contest with cuDNN: who takes part, what is checked, and that turns are taken."""

import dataclasses
import itertools
import types

import numpy as np
import pytest

from convstudy import tolerance
from convstudy.conv import algorithm, reference
from convstudy.device import EMULATOR
from convstudy.measure import graphs, pytorch
from convstudy.measure.suites import convolutions, passes
from convstudy.problem import ConvProblem
from convstudy.records import validate_result

PASSES = algorithm.PASSES
OPTIONS = convolutions.SUITE.options | {"rungs": "all", "repeats": 2}
PROBLEM = ConvProblem(1, 3, 6, 7, 8, 3, 3, padding=1, layout="NHWC")
HALVED = dataclasses.replace(PROBLEM, dtype="bfloat16", precision="bf16")


def twin(which, problem, arrays):
    """Return the float64 result, by the NumPy twin."""
    x, w, dy = (np.moveaxis(a, 3, 1).astype(float) for a in (arrays.x, arrays.w, arrays.dy))
    steps = problem.stride, problem.padding
    y = {
        "fprop": lambda: reference.conv2d(x, w, None, *steps),
        "dgrad": lambda: reference.conv2d_dgrad(dy, w, (problem.h, problem.w), *steps),
        "wgrad": lambda: reference.conv2d_wgrad(x, dy, (problem.r, problem.s), *steps),
    }[which]()
    return np.moveaxis(y, 1, 3)


@pytest.fixture
def emulated(monkeypatch):
    """Let the contest take place on the emulator, the NumPy twin in cuDNN's place."""

    def convolution(which, problem, arrays, channels_last, plans):
        outputs = []
        call = lambda: outputs.append(twin(which, problem, arrays).astype(np.float32))  # noqa: E731
        return call, lambda: outputs[-1]

    replaced = {"convolution": convolution, "capture": lambda calls: calls[0]}
    for name, function in (replaced | {"release": lambda: None}).items():
        monkeypatch.setattr(pytorch, name, function)
    monkeypatch.setattr(convolutions, "devices", lambda: (EMULATOR,))
    monkeypatch.setattr(convolutions, "capture", lambda device, calls: calls[0])
    monkeypatch.setattr(graphs, "laps", lambda runs, device: [(run(), 1e-3)[1] for run in runs])


@pytest.mark.parametrize("problem", [PROBLEM, HALVED], ids=["fp32", "bf16"])
@pytest.mark.parametrize("which", PASSES)
def test_every_kernel_of_the_pass_and_both_layouts_of_cudnn_take_part(which, problem, emulated):
    contest = convolutions._Contest("name", {"pass": which}, which, problem, OPTIONS)
    rows = contest.run()
    sides = [f"{row['labels']['algorithm']}/{row['labels']['layout']}" for row in rows]
    assert sides[-2:] == ["cudnn/NCHW", "cudnn/NHWC"]
    assert f"conv2d_{which}_8_mma/NHWC" in sides
    fp32 = problem.precision == "fp32"
    assert ("conv2d_fprop_3_tiled/NCHW" in sides) == (which == "fprop" and fp32)
    for row in rows:
        validate_result(row, row["case"])
        assert row["check"]["passed"]
        assert row["samples_s"] == pytest.approx([1e-3 / 12] * 2)
        assert row["cache"] == "warm"
        assert ("badly_scaled_error" in row["values"]) == fp32


def cudnn_errs(monkeypatch, factor):
    """Let cuDNN's results be wrong by a share of themselves."""

    def convolution(which, problem, arrays, *_):
        return lambda: None, lambda: factor * twin(which, problem, arrays).astype(np.float32)

    monkeypatch.setattr(pytorch, "convolution", convolution)


def test_a_result_of_cudnn_that_no_rounding_explains_is_not_timed(emulated, monkeypatch):
    cudnn_errs(monkeypatch, 0)
    with pytest.raises(RuntimeError, match=r"cuDNN's result is wrong: its relative error is \d"):
        convolutions._Contest("name", {}, "fprop", PROBLEM, OPTIONS).run()


def test_a_result_of_cudnn_beyond_tolerance_is_timed_and_flagged(emulated, monkeypatch):
    cudnn_errs(monkeypatch, 1.001)
    rows = convolutions._Contest("name", {}, "fprop", PROBLEM, OPTIONS).run()
    assert {row["check"]["passed"] for row in rows if row["labels"]["algorithm"] == "cudnn"} == {
        False
    }
    assert all(row["check"]["passed"] for row in rows if row["labels"]["algorithm"] != "cudnn")
    for row in rows:
        assert row["samples_s"]
        validate_result(row, row["case"])


def test_a_wrong_result_of_ours_is_not_timed(emulated, monkeypatch):
    monkeypatch.setattr(passes, "truth", lambda which, problem, a: 1.001 * twin(which, problem, a))
    with pytest.raises(RuntimeError, match="^the result is wrong"):
        convolutions._Contest("name", {}, "fprop", PROBLEM, OPTIONS).run()


@pytest.fixture
def clock(monkeypatch):
    """A stopwatch that notes who ran, and shows 4 s, 8 s, 12 s ..."""
    order, seconds = [], itertools.count(4.0, 4.0)

    def laps(runs, device):
        for run in runs:
            run()
        return [next(seconds) for _ in runs]

    monkeypatch.setattr(graphs, "laps", laps)
    return order, {side: lambda side=side: order.append(side) for side in "ab"}


def test_sides_take_turns_and_warm_up(clock):
    order, replays = clock
    samples = graphs.alternating(replays, 4, EMULATOR, repeats=2, warmup=1)
    assert order == list("ababab")
    assert samples == {"a": [3.0, 5.0], "b": [4.0, 6.0]}


def test_rounds_end_when_their_time_is_spent_but_not_before_five(clock):
    _, replays = clock
    samples = graphs.alternating(replays, 4, EMULATOR, repeats=50, most_s=1.0)
    assert [len(each) for each in samples.values()] == [5, 5]
    samples = graphs.alternating(replays, 4, EMULATOR, repeats=3, most_s=1.0)
    assert [len(each) for each in samples.values()] == [3, 3]


@pytest.mark.parametrize(("n", "calls"), [(1, 12), (2, 6), (3, 6), (4, 3), (64, 3)])
def test_a_replay_goes_round_all_sets_equally_often(n, calls):
    assert passes.calls(PROBLEM.with_batch(n)) == calls


def test_what_l2_holds_is_called_warm():
    large = ConvProblem(64, 64, 128, 191, 64, 3, 3, padding=1, layout="NHWC")
    assert [passes.cache(p, EMULATOR) for p in (PROBLEM, large)] == ["warm", "flushed"]


@pytest.mark.parametrize("which", PASSES)
def test_truth_is_the_twins_where_the_arrays_lie(which):
    arrays = passes.Arrays(HALVED, EMULATOR, 1)
    np.testing.assert_array_equal(
        passes.truth(which, HALVED, arrays), twin(which, HALVED, arrays), strict=True
    )


def test_badly_scaled_numbers_lie_twelve_powers_of_ten_apart():
    arrays = passes.Arrays(PROBLEM, EMULATOR, 1, 6.0)
    logs = np.log10(np.abs(arrays.dy))
    assert logs.min() < -3
    assert logs.max() > 3
    assert arrays.x.min() == 0


def test_a_case_for_each_pass_precision_batch_and_layer():
    options = convolutions.SUITE.options | {
        "n": "1,4",
        "passes": "wgrad",
        "height": 32,
        "width": 47,
    }
    cases = list(convolutions.cases(options))
    assert len(cases) == 3 * 2 * 18
    assert cases[0].name == "wgrad/fp32/n1/enc0a"
    assert {case.labels["width"] for case in cases} == {47}


@pytest.mark.skipif(pytorch.why_not() is not None, reason='run "make setup EXTRAS=torch"')
@pytest.mark.parametrize("problem", [PROBLEM, HALVED], ids=["fp32", "bf16"])
@pytest.mark.parametrize("which", PASSES)
def test_pytorchs_passes_are_the_twins(which, problem, rng):
    shapes = problem.x_shape, problem.w_shape, problem.y_shape
    x, w, dy = (rng.standard_normal(shape).astype(problem.dtype) for shape in shapes)
    arrays = types.SimpleNamespace(x=x, w=w, dy=dy)
    expected = twin(which, problem, arrays)
    for channels_last in (False, True):
        run, fetch = pytorch.convolution(which, problem, arrays, channels_last)
        run()
        tolerance.assert_close(fetch(), expected, 100, precision=problem.precision)
