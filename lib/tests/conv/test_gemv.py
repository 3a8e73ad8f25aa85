# SPDX-License-Identifier: MIT
"""Convolutions of few pixels, which read each weight once: against float64, and their refusals."""

import dataclasses

import numpy as np
import pytest
from chips import H200
from problems import random_arrays
from test_gemm import check, gradient, of, run_kernel

from convstudy import device
from convstudy.conv import algorithm, gemv
from convstudy.conv.epilogue import Epilogue, Source
from convstudy.device import EMULATOR
from convstudy.problem import ConvProblem

KERNEL = "conv2d_fprop_12_gemv"
# Channels of no whole vector, fewer than lanes, more than a round of them; filters left over.
PROBLEMS = {
    "one of each": ConvProblem(1, 1, 1, 1, 1, 1, 1),
    "an image": ConvProblem(1, 64, 1, 1, 40, 1, 1),
    "images in a row": ConvProblem(1, 96, 1, 5, 7, 1, 1),
    "pixels of two images": ConvProblem(2, 33, 2, 2, 6, 1, 1),
    "long sums": ConvProblem(1, 9224, 1, 2, 5, 1, 1),
    "more filters than a block's": ConvProblem(1, 264, 1, 8, 131, 1, 1),
}
PRECISIONS = ("fp32", "bf16")


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("title", PROBLEMS)
def test_kernel_on_the_emulator_agrees_with_float64(title, precision, rng):
    check(KERNEL, PROBLEMS[title], precision, EMULATOR, rng)


def check_choice(problem, precision, where, choice, rng, monkeypatch):
    planned = gemv.plan(KERNEL, of(problem, precision), where, choice)
    monkeypatch.setattr("convstudy.conv.api.plan", lambda *_: planned)
    check(KERNEL, problem, precision, where, rng)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("choice", gemv.choices(KERNEL, None, None), ids=str)
def test_choices_give_the_right_result(choice, precision, rng, monkeypatch):
    problem = PROBLEMS["more filters than a block's"]
    check_choice(problem, precision, EMULATOR, choice, rng, monkeypatch)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("choice", gemv.choices(KERNEL, None, None), ids=str)
@pytest.mark.parametrize("title", [*PROBLEMS, "VGG-16's second linear layer"])
def test_kernel_on_the_gpu_agrees_with_float64(title, choice, precision, rng, monkeypatch):
    problem = PROBLEMS.get(title) or ConvProblem(1, 4096, 1, 3, 4096, 1, 1)
    check_choice(problem, precision, device.get_device(), choice, rng, monkeypatch)


@pytest.mark.gpu
def test_emulator_gives_the_bits_of_the_gpu(rng):
    problem = PROBLEMS["more filters than a block's"]
    arrays = *random_arrays(problem, rng), gradient(problem, rng)
    gpu = device.get_device()
    like_gpu = dataclasses.replace(EMULATOR, sm_count=gpu.sm_count)
    emulated, real = (
        run_kernel(KERNEL, of(problem, "fp32"), arrays, where) for where in (like_gpu, gpu)
    )
    np.testing.assert_array_equal(emulated, real, strict=True)


def test_each_weight_is_read_once(rng):
    problem = of(PROBLEMS["an image"], "fp32")
    x, w, bias = random_arrays(problem, rng)
    y = np.empty(problem.k, np.float32)
    counts = algorithm.plan(KERNEL, problem, EMULATOR).run(EMULATOR, (x, w, bias, y))
    # A block reads all pixels anew, and a bias for each sum.
    choice = gemv.best(KERNEL, problem, EMULATOR)
    blocks = problem.k // choice.filters
    assert counts.global_load_bytes == 4 * (w.size + blocks * x.size + problem.k)


def test_its_result_ends_with_a_relu_where_it_is_asked_for(rng):
    problem = of(PROBLEMS["images in a row"], "fp32")
    x, w, bias = random_arrays(problem, rng)
    plain, activated = (np.empty((5, 7), np.float32) for _ in range(2))
    for result, epilogue in ((plain, Epilogue()), (activated, Epilogue(relu=True))):
        launch = algorithm.plan(KERNEL, problem, EMULATOR, None, epilogue)
        launch.run(EMULATOR, (np.moveaxis(x, 1, 3).copy(), w, bias, result))
    assert (plain < 0).any()
    np.testing.assert_array_equal(activated, np.maximum(plain, 0), strict=True)


REFUSED = {
    "a filter of more than a pixel": ({"r": 3, "padding": (1, 0)}, "filters of 1 x 1"),
    "a stride": ({"stride": (1, 2)}, "at a stride of 1"),
    "nine pixels": ({"w": 9}, "at most 8 pixels; N P Q=9"),
    "too many channels": ({"c": 2**31}, "2\\^31 or more; cut the layer"),
    "too many filters": ({"k": 2**31}, "2\\^31 or more; cut the layer"),
}


@pytest.mark.parametrize("title", REFUSED)
def test_refusals_say_the_limit(title):
    changes, reason = REFUSED[title]
    problem = dataclasses.replace(of(PROBLEMS["images in a row"], "fp32"), **changes)
    with pytest.raises(ValueError, match=reason):
        algorithm.plan(KERNEL, problem, EMULATOR)


def test_an_old_gpu_is_refused_bf16_alone():
    old = dataclasses.replace(H200, compute_capability=(7, 5), name="an old GPU")
    row = algorithm.ALGORITHMS[KERNEL]
    assert row.supports(of(PROBLEMS["an image"], "fp32"), old) == (True, "")
    ok, reason = row.supports(of(PROBLEMS["an image"], "bf16"), old)
    assert not ok
    assert "sm_80 or later for bfloat16; an old GPU is older" in reason


def test_it_ends_in_no_other_way():
    row, problem = algorithm.ALGORITHMS[KERNEL], of(PROBLEMS["an image"], "fp32")
    for epilogue in (Epilogue(pitch=64), Epilogue(residual=True), Epilogue(source=Source(4, 4, 4))):
        ok, reason = row.supports(problem, EMULATOR, epilogue)
        assert not ok
        assert "cannot end" in reason


def test_tuning_tries_it_and_nothing_else_takes_it_untuned_on_hopper():
    linear = of(ConvProblem(1, 4096, 1, 1, 4096, 1, 1), "bf16")
    assert algorithm.choose(linear, H200) == "conv2d_fprop_10_wgmma"
    tried = [each.choice for each in algorithm.candidates(linear, H200) if each.id == KERNEL]
    assert gemv.best(KERNEL, linear, H200) in tried
    ampere = dataclasses.replace(H200, compute_capability=(8, 0), name="an A100")
    assert algorithm.choose(linear, ampere) == KERNEL
