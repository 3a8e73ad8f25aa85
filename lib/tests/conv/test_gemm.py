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
from convstudy.problem import BFLOAT16, ConvProblem

PASSES = algorithm.PASSES
# Those that `gemm` plans.
KERNELS = [
    row.id for row in algorithm.ALGORITHMS.values() if row.id.endswith(gemm.RUNGS) and row.plan
]
MMA = [kernel for kernel in KERNELS if kernel.endswith("_mma")]
# Where TF32 is asked for, those that compute fp32 do what they always do.
CASES = [
    *((kernel, "fp32") for kernel in KERNELS),
    *((kernel, precision) for kernel in MMA for precision in ("tf32", "bf16")),
]
DTYPES = {"fp32": "float32", "tf32": "float32", "bf16": "bfloat16"}
# Vectors of four channels or of eight, of one, of more on one side alone; sums that are split.
CHANNELS = {
    "whole vectors": ConvProblem(2, 4, 9, 7, 8, 3, 3, padding=(1, 1)),
    "whole vectors of bf16": ConvProblem(2, 16, 9, 7, 24, 3, 3, padding=(1, 1)),
    "vectors of x alone": ConvProblem(1, 8, 6, 5, 7, 3, 3, padding=(1, 1)),
    "vectors of y alone, stride 2": ConvProblem(1, 5, 9, 11, 12, 3, 3, (2, 2), (1, 1)),
    "several tiles": ConvProblem(1, 36, 13, 12, 72, 3, 3, padding=(1, 1)),
    "few outputs, long sums": ConvProblem(1, 160, 4, 5, 32, 3, 3, padding=(1, 1)),
    "few gradients, long sums": ConvProblem(1, 32, 4, 5, 160, 3, 3, padding=(1, 1)),
    "many pixels": ConvProblem(2, 4, 30, 31, 4, 3, 3, padding=(1, 1)),
}
ALL = {**PROBLEMS, **CHANNELS}


def of(problem, precision):
    """Return a problem as NHWC, in the dtype of a precision."""
    return dataclasses.replace(problem, layout="NHWC", dtype=DTYPES[precision], precision=precision)


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


def own_scale(which, problem, *arrays):
    """Return the root of the sum of each output's squared products, as NCHW."""
    return np.sqrt(truth(which, problem, *(np.square(a.astype(float)) for a in arrays)))


def in_dtype(dtype, x, w, bias, dy):
    return x.astype(dtype), w.astype(dtype), bias, dy.astype(dtype)


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
    problem = of(problem, problem.precision)
    shapes = {"fprop": problem.y_shape, "dgrad": problem.x_shape, "wgrad": problem.w_shape}
    result = xp.full(shapes[which(kernel)], np.nan, np.float32).astype(problem.dtype)
    inputs = [xp.asarray(a) for a in operands(which(kernel), *arrays)]
    run(which(kernel), problem, (*inputs, result), kernel, where)
    return np.moveaxis(result if xp is np else result.get(), 3, 1)


def check(kernel, problem, precision, where, rng):
    arrays = in_dtype(DTYPES[precision], *random_arrays(problem, rng), gradient(problem, rng))
    actual = run_kernel(kernel, of(problem, precision), arrays, where)
    expected = truth(which(kernel), problem, *arrays)
    # In fp32 accuracy a tensor core makes three products of one.
    products = terms(which(kernel), problem) * (3 if precision == "fp32" else 1)
    own = own_scale(which(kernel), problem, *arrays)
    exactness = {"dtype": np.float32, "precision": precision, "own": own}
    tolerance.assert_close(actual, expected, products, **exactness)
    error = tolerance.relative_error(actual, expected)
    if precision == "tf32" and products > 30:
        assert error > tolerance.tolerance(np.float32, products), "it was not TF32"
    if precision == "bf16":
        rounded = tolerance.relative_error(expected.astype(actual.dtype), expected)
        assert error <= rounded + tolerance.tolerance(np.float32, products), "rounded before"


@pytest.mark.parametrize(("kernel", "precision"), CASES)
@pytest.mark.parametrize("title", ALL)
def test_kernels_on_the_emulator_agree_with_float64(title, kernel, precision, rng):
    check(kernel, ALL[title], precision, EMULATOR, rng)


@pytest.mark.gpu
@pytest.mark.parametrize(("kernel", "precision"), CASES)
@pytest.mark.parametrize("title", [*ALL, *UNET_PROBLEMS])
def test_kernels_on_the_gpu_agree_with_float64(title, kernel, precision, rng):
    check(kernel, {**ALL, **UNET_PROBLEMS}[title], precision, device.get_device(), rng)


@pytest.mark.parametrize(("precision", "vector"), [("fp32", 4), ("bf16", 8)])
@pytest.mark.parametrize("kernel", MMA)
def test_split_sums_and_single_numbers_are_among_those_tested(kernel, precision, vector):
    launches = [algorithm.plan(kernel, of(p, precision), EMULATOR) for p in ALL.values()]
    assert {isinstance(launch, compile.Sequence) for launch in launches} == {True, False}
    vectors = [[dict(launch.defines)[f"VECTOR_{v}"] for v in "AB"] for launch in launches]
    assert [vector, vector] in vectors
    assert [1, 1] in vectors


TILED = [
    (kernel, precision, tile, splits)
    for kernel, precision in CASES
    for tile in gemm._family(kernel, precision).tiles
    for splits in ((1,) if kernel not in MMA else (3,) if precision == "tf32" else (1, 3, 4))
]


@pytest.mark.parametrize(("kernel", "precision", "tile", "splits"), TILED)
def test_the_result_is_right_with_any_tile_and_any_split(
    kernel, precision, tile, splits, rng, monkeypatch
):
    monkeypatch.setattr(gemm, "best", lambda *_: (tile, splits))
    wide = 2 if precision == "bf16" else 1
    sizes = {"fprop": (16 * wide, 8), "dgrad": (8, 16 * wide), "wgrad": (8, 8)}[which(kernel)]
    images = wide if which(kernel) == "wgrad" else 1
    problem = ConvProblem(images, sizes[0], 12, 13, sizes[1], 3, 3, padding=(1, 1))
    # Three blocks share five steps of DEPTH: the last has one, and of four one has none.
    assert gemm.product(which(kernel), of(problem, precision)).steps == 5
    algorithm.plan.cache_clear()
    check(kernel, problem, precision, EMULATOR, rng)
    algorithm.plan.cache_clear()


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
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_calls_agree_with_float64_in_either_layout(layout, where, dtype, rng):
    problem = ConvProblem(2, 5, 9, 11, 12, 3, 2, (2, 1), (1, 0))
    x, w, bias, dy = arrays = in_dtype(dtype, *random_arrays(problem, rng), gradient(problem, rng))
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
        assert actual.dtype == dtype
        expected = truth(name, problem, *arrays)
        precision = "bf16" if dtype == "bfloat16" else "fp32"
        products = terms(name, problem)
        tolerance.assert_close(actual, expected, products, dtype=np.float32, precision=precision)


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
        "precision='fp8' of float32 is not supported; use 'fp32' or 'tf32'",
    ),
    "a precision of another dtype": (
        (conv2d, X.astype(BFLOAT16), W.astype(BFLOAT16)),
        {"precision": "tf32"},
        "precision='tf32' of bfloat16 is not supported; use 'bf16'",
    ),
    "a kernel of float32": (
        (conv2d, X.astype(BFLOAT16), W.astype(BFLOAT16)),
        {"algorithm": "conv2d_fprop_3_tiled", "device": EMULATOR},
        r"it does not compute bf16 \(bfloat16 arrays\)",
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


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((X.astype(BFLOAT16), W), {}, "w must be bfloat16, got float32"),
        ((X, W.astype(BFLOAT16)), {}, "w must be float32, got bfloat16"),
        (
            (X.astype(BFLOAT16), W.astype(BFLOAT16), np.ones(4, BFLOAT16)),
            {},
            "bias must be float32, got bfloat16",
        ),
        (
            (X.astype(BFLOAT16), W.astype(BFLOAT16)),
            {"out": np.empty((1, 4, 6, 6), np.float32)},
            "out must be bfloat16, got float32",
        ),
    ],
)
def test_dtypes_are_not_mixed(arguments, options, message):
    with pytest.raises(TypeError, match=message):
        conv2d(*arguments, **options)


def test_an_older_gpu_is_refused_in_words():
    old = dataclasses.replace(EMULATOR, compute_capability=(7, 5), name="an old GPU")
    problem = dataclasses.replace(PROBLEMS["unet, odd width"], layout="NHWC")
    ok, reason = algorithm.ALGORITHMS["conv2d_fprop_8_mma"].supports(problem, old)
    assert not ok
    assert "it needs cp.async (sm_80 or later); an old GPU is older" in reason


# What lies between was measured, and records say the same of it.
@pytest.mark.parametrize("arch", [compile.ARCHITECTURES[0], compile.ARCHITECTURES[-1]])
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_plan_compiles_without_spills(kernel, arch):
    problems = [
        of(p, precision)
        for p, precision in itertools.product(UNET_PROBLEMS.values(), DTYPES)
        if (kernel, precision) in CASES or precision == "tf32"
    ]
    for defines in {algorithm.plan(kernel, p, EMULATOR).defines for p in problems}:
        cubin = compile.cubin(kernel, arch, defines)
        assert (cubin.spill_bytes, cubin.stack_bytes) == (0, 0)
