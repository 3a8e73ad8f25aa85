# SPDX-License-Identifier: MIT
"""The contest with cuDNN: who takes part, what is checked, and that turns are taken."""

import dataclasses
import types

import numpy as np
import pytest

from convstudy import tolerance
from convstudy.conv import reference
from convstudy.device import EMULATOR
from convstudy.measure import graphs, pytorch
from convstudy.measure.suites import convolutions
from convstudy.problem import ConvProblem
from convstudy.records import validate_result

PASSES = ("fprop", "dgrad", "wgrad")
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

    def convolution(which, problem, arrays, channels_last):
        outputs = []
        call = lambda: outputs.append(twin(which, problem, arrays).astype(np.float32))  # noqa: E731
        return call, lambda: outputs[-1]

    replaced = {"truth": twin, "convolution": convolution, "capture": lambda calls: calls[0]}
    for name, function in replaced.items():
        monkeypatch.setattr(pytorch, name, function)
    monkeypatch.setattr(convolutions, "devices", lambda: (EMULATOR,))
    monkeypatch.setattr(convolutions, "capture", lambda device, calls: calls[0])
    monkeypatch.setattr(convolutions, "once", lambda *_: lambda run: (run(), 1e-3)[1])


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
        assert row["samples_s"] == [1e-3 / 12] * 2


def test_a_wrong_result_of_cudnn_is_not_timed(emulated, monkeypatch):
    wrong = lambda *_: (lambda: None, lambda: np.zeros(PROBLEM.y_shape))  # noqa: E731
    monkeypatch.setattr(pytorch, "convolution", wrong)
    with pytest.raises(RuntimeError, match="the result is wrong"):
        convolutions._Contest("name", {}, "fprop", PROBLEM, OPTIONS).run()


def test_sides_take_turns_and_warm_up():
    order, clock = [], iter(range(1, 100))
    replays = {side: lambda side=side: order.append(side) for side in "ab"}

    def stopwatch(run):
        run()
        return 4.0 * next(clock)

    samples = graphs.alternating(stopwatch, replays, calls=4, repeats=2, warmup=1)
    assert order == list("ababab")
    assert samples == {"a": [3.0, 5.0], "b": [4.0, 6.0]}


def test_a_case_for_each_pass_precision_batch_and_layer():
    options = convolutions.SUITE.options | {"n": "1,4", "passes": "wgrad", "size": "32,47"}
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
    exact = pytorch.truth(which, problem, arrays)
    np.testing.assert_allclose(exact, expected, atol=1e-12)
    for channels_last in (False, True):
        run, fetch = pytorch.convolution(which, problem, arrays, channels_last)
        run()
        tolerance.assert_close(fetch(), expected, 100, precision=problem.precision)
