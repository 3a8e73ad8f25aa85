# SPDX-License-Identifier: MIT
"""The convolutions that are matrix products, all three passes, against float64; and their calls."""

import dataclasses
import itertools

import numpy as np
import pytest
from problems import PROBLEMS, UNET_PROBLEMS, random_arrays

from convstudy import compile, device, tolerance
from convstudy.conv import algorithm, gemm, reference
from convstudy.conv.api import conv2d, conv2d_dgrad, conv2d_wgrad, run
from convstudy.device import CPU, EMULATOR
from convstudy.problem import ConvProblem

PASSES = ("fprop", "dgrad", "wgrad")
KERNELS = [row.id for row in algorithm.ALGORITHMS.values() if row.plan and "NHWC" in row.layouts]
MMA = [kernel for kernel in KERNELS if kernel.endswith("_mma")]
# Where TF32 is asked for, those that compute fp32 do what they always do.
CASES = [*((kernel, "fp32") for kernel in KERNELS), *((kernel, "tf32") for kernel in MMA)]
# Vectors of four channels, of one, of four on one side alone; sums that are split.
CHANNELS = {
    "whole vectors": ConvProblem(2, 4, 9, 7, 8, 3, 3, padding=(1, 1)),
    "vectors of x alone": ConvProblem(1, 8, 6, 5, 7, 3, 3, padding=(1, 1)),
    "vectors of y alone, stride 2": ConvProblem(1, 5, 9, 11, 12, 3, 3, (2, 2), (1, 1)),
    "several tiles": ConvProblem(1, 36, 13, 12, 72, 3, 3, padding=(1, 1)),
    "few outputs, long sums": ConvProblem(1, 160, 4, 5, 32, 3, 3, padding=(1, 1)),
    "many pixels": ConvProblem(2, 4, 30, 31, 4, 3, 3, padding=(1, 1)),
}
ALL = {**PROBLEMS, **CHANNELS}


def gradient(problem, rng):
    return rng.standard_normal(problem.y_shape, dtype=np.float32)


def truth(which, problem, x, w, bias, dy):
    """Return the float64 result of a pass, as NCHW."""
    x, w, bias, dy = (a.astype(float) for a in (x, w, bias, dy))
    steps = problem.stride, problem.padding
    if which == "fprop":
        return reference.conv2d(x, w, bias, *steps)
    if which == "dgrad":
        return reference.conv2d_dgrad(dy, w, (problem.h, problem.w), *steps)
    return reference.conv2d_wgrad(x, dy, (problem.r, problem.s), *steps)


def terms(which, problem):
    return gemm.product(which, problem).depth + 1


def last(array):
    """Return an NCHW array as NHWC."""
    return np.ascontiguousarray(np.moveaxis(array, 1, 3))


def operands(which, x, w, bias, dy):
    """Return what a kernel takes before its result, as NHWC."""
    x, w, dy = map(last, (x, w, dy))
    return {"fprop": (x, w, bias), "dgrad": (dy, w), "wgrad": (x, dy)}[which]


def which(kernel):
    return kernel.split("_")[1]


def run_kernel(kernel, problem, arrays, where):
    """Run into a poisoned array, so that an output nobody wrote is NaN; return it as NCHW."""
    xp = device.array_module(where)
    problem = dataclasses.replace(problem, layout="NHWC")
    shapes = {"fprop": problem.y_shape, "dgrad": problem.x_shape, "wgrad": problem.w_shape}
    result = xp.full(shapes[which(kernel)], np.nan, np.float32)
    inputs = [xp.asarray(a) for a in operands(which(kernel), *arrays)]
    run(which(kernel), problem, (*inputs, result), kernel, where)
    return np.moveaxis(result if xp is np else result.get(), 3, 1)


def check(kernel, problem, precision, where, rng):
    arrays = *random_arrays(problem, rng), gradient(problem, rng)
    problem = dataclasses.replace(problem, precision=precision)
    actual = run_kernel(kernel, problem, arrays, where)
    expected = truth(which(kernel), problem, *arrays)
    products = terms(which(kernel), problem)
    tolerance.assert_close(actual, expected, products, precision=precision)
    if precision == "tf32" and products > 30:
        error = tolerance.relative_error(actual, expected)
        assert error > tolerance.tolerance(np.float32, products), "it was not TF32"


@pytest.mark.parametrize(("kernel", "precision"), CASES)
@pytest.mark.parametrize("title", ALL)
def test_kernels_on_the_emulator_agree_with_float64(title, kernel, precision, rng):
    check(kernel, ALL[title], precision, EMULATOR, rng)


@pytest.mark.gpu
@pytest.mark.parametrize(("kernel", "precision"), CASES)
@pytest.mark.parametrize("title", [*ALL, *UNET_PROBLEMS])
def test_kernels_on_the_gpu_agree_with_float64(title, kernel, precision, rng):
    check(kernel, {**ALL, **UNET_PROBLEMS}[title], precision, device.get_device(), rng)


@pytest.mark.parametrize("kernel", MMA)
def test_split_sums_and_single_words_are_among_those_tested(kernel):
    problems = [dataclasses.replace(p, layout="NHWC") for p in ALL.values()]
    launches = [algorithm.plan(kernel, p, EMULATOR) for p in problems]
    assert {isinstance(launch, compile.Sequence) for launch in launches} == {True, False}
    vectors = [[dict(launch.defines)[f"VECTOR_{v}"] for v in "AB"] for launch in launches]
    assert [4, 4] in vectors
    assert [1, 1] in vectors


TILED = [
    (kernel, tile, splits)
    for kernel in KERNELS
    for tile in gemm._family(kernel).tiles
    for splits in ((1, 3, 4) if kernel in MMA else (1,))
]


@pytest.mark.parametrize(("kernel", "tile", "splits"), TILED)
def test_the_result_is_right_with_any_tile_and_any_split(kernel, tile, splits, rng, monkeypatch):
    monkeypatch.setattr(gemm, "best", lambda *_: (tile, splits))
    sizes = {"fprop": (16, 8), "dgrad": (8, 16), "wgrad": (8, 8)}[which(kernel)]
    problem = ConvProblem(1, sizes[0], 12, 13, sizes[1], 3, 3, padding=(1, 1))
    arrays = *random_arrays(problem, rng), gradient(problem, rng)
    algorithm.plan.cache_clear()
    actual = run_kernel(kernel, problem, arrays, EMULATOR)
    algorithm.plan.cache_clear()
    # Three blocks share five steps of DEPTH: the last has one, and of four one has none.
    assert -(-gemm.product(which(kernel), problem).depth // 32) == 5
    expected = truth(which(kernel), problem, *arrays)
    tolerance.assert_close(actual, expected, terms(which(kernel), problem))


def test_fp32_out_of_tensor_cores_errs_no_more_than_fused_multiply_adds(rng):
    problem = ConvProblem(1, 256, 8, 11, 64, 3, 3, padding=(1, 1))
    x, w, _ = random_arrays(problem, rng)
    nothing = np.zeros(problem.k, np.float32)
    expected = truth("fprop", problem, x, w, nothing, gradient(problem, rng))
    fused = conv2d(x, w, None, 1, 1, "conv2d_fprop_4_register_blocked", None, EMULATOR)
    actual = run_kernel(
        "conv2d_fprop_8_mma", problem, (x, w, nothing, gradient(problem, rng)), EMULATOR
    )
    error, other = (tolerance.relative_error(y, expected) for y in (actual, fused))
    assert error < 1.5 * other


@pytest.mark.parametrize("title", PROBLEMS)
def test_gradients_are_the_adjoints_of_the_convolution(title, rng):
    problem = PROBLEMS[title]
    x, w, _ = (a.astype(float) for a in random_arrays(problem, rng))
    dy = gradient(problem, rng).astype(float)
    steps = problem.stride, problem.padding
    inner = np.vdot(reference.conv2d(x, w, None, *steps), dy)
    dx = reference.conv2d_dgrad(dy, w, (problem.h, problem.w), *steps)
    dw = reference.conv2d_wgrad(x, dy, (problem.r, problem.s), *steps)
    assert (dx.shape, dw.shape) == (x.shape, w.shape)
    scale = np.linalg.norm(x) * np.linalg.norm(w) * np.linalg.norm(dy)
    assert abs(np.vdot(x, dx) - inner) < 1e-13 * scale
    assert abs(np.vdot(w, dw) - inner) < 1e-13 * scale


# The kernels of gradients take NHWC alone.
@pytest.mark.parametrize(
    ("layout", "where"),
    [("NCHW", CPU), ("NHWC", CPU), ("NHWC", EMULATOR)],
    ids=["NCHW", "NHWC", "NHWC, kernels"],
)
def test_the_calls_agree_with_float64_in_either_layout(layout, where, rng):
    problem = ConvProblem(2, 5, 9, 11, 12, 3, 2, (2, 1), (1, 0))
    x, w, bias, dy = arrays = *random_arrays(problem, rng), gradient(problem, rng)
    if layout == "NHWC":
        x, w, dy = map(last, (x, w, dy))
    options = {"stride": (2, 1), "padding": (1, 0), "layout": layout, "device": where}
    results = {
        "fprop": conv2d(x, w, bias, **options),
        "dgrad": conv2d_dgrad(dy, w, (9, 11), **options),
        "wgrad": conv2d_wgrad(x, dy, (3, 2), **options),
    }
    for name, actual in results.items():
        actual = np.moveaxis(actual, 3, 1) if layout == "NHWC" else actual
        expected = truth(name, problem, *arrays)
        tolerance.assert_close(actual, expected, terms(name, problem))


X, W, DY = (np.ones(shape, np.float32) for shape in ((1, 3, 8, 8), (4, 3, 3, 3), (1, 4, 6, 6)))
BAD_CALLS = {
    "a size that dy does not have": (
        (conv2d_dgrad, DY, W, (9, 8)),
        {},
        r"conv2d_dgrad: dy has shape \(1, 4, 6, 6\), expected \(1, 4, 7, 6\)",
    ),
    "filters of another size": (
        (conv2d_wgrad, X, DY, (5, 3)),
        {},
        r"conv2d_wgrad: dy has shape .* expected \(1, 4, 4, 6\)",
    ),
    "channels of dy": (
        (conv2d_dgrad, DY[:, :2].copy(), W, (8, 8)),
        {},
        r"dy has shape .* expected",
    ),
    "no size": ((conv2d_dgrad, DY, W, 8), {}, "size must be two integers, got 8"),
    "rank": ((conv2d_wgrad, X[0], DY, (3, 3)), {}, "x must be an array of rank 4"),
    "another pass": (
        (conv2d_dgrad, DY, W, (8, 8)),
        {"algorithm": "conv2d_fprop_3_tiled"},
        "conv2d_dgrad: conv2d_fprop_3_tiled computes fprop",
    ),
    "a layout that is none": (
        (conv2d, X, W),
        {"layout": "CHWN"},
        "layout='CHWN' is not supported; use 'NCHW' or 'NHWC'",
    ),
    "a precision that is none": (
        (conv2d, X, W),
        {"precision": "fp8"},
        "precision='fp8' is not supported; use 'fp32' or 'tf32'",
    ),
    "a kernel of the other layout": (
        (conv2d, X, W),
        {"algorithm": "conv2d_fprop_8_mma", "device": EMULATOR},
        "it takes NHWC; the arrays are NCHW",
    ),
    "out of another shape": (
        (conv2d_wgrad, X, DY, (3, 3)),
        {"out": np.empty((4, 3, 3, 2), np.float32)},
        r"conv2d_wgrad: out has shape \(4, 3, 3, 2\), expected \(4, 3, 3, 3\)",
    ),
}


@pytest.mark.parametrize("title", BAD_CALLS)
def test_bad_calls_are_refused_in_words(title):
    (call, *arguments), options, message = BAD_CALLS[title]
    with pytest.raises(ValueError, match=message):
        call(*arguments, **options)


def test_an_older_gpu_is_refused_in_words():
    old = dataclasses.replace(EMULATOR, compute_capability=(7, 5), name="an old GPU")
    problem = dataclasses.replace(PROBLEMS["unet, odd width"], layout="NHWC")
    ok, reason = algorithm.ALGORITHMS["conv2d_fprop_8_mma"].supports(problem, old)
    assert not ok
    assert "it needs cp.async (sm_80 or later); an old GPU is older" in reason


@pytest.mark.parametrize("arch", compile.ARCHITECTURES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_plan_compiles_without_spills(kernel, arch):
    problems = [
        dataclasses.replace(p, layout="NHWC", precision=precision)
        for p, precision in itertools.product(UNET_PROBLEMS.values(), ("fp32", "tf32"))
    ]
    for defines in {algorithm.plan(kernel, p, EMULATOR).defines for p in problems}:
        cubin = compile.cubin(kernel, arch, defines)
        assert (cubin.spill_bytes, cubin.stack_bytes) == (0, 0)
