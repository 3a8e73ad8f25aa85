# SPDX-License-Identifier: MIT
"""How kernels end: ReLU, residual sums, results among other channels, scattered, or wider."""

from dataclasses import replace

import numpy as np
import pytest

from convstudy import tolerance
from convstudy.conv import algorithm, reference
from convstudy.conv.algorithm import ALGORITHMS, plan
from convstudy.conv.epilogue import Epilogue, Scatter, Source
from convstudy.device import EMULATOR, array_module, devices
from convstudy.problem import BFLOAT16, ConvProblem

PRECISIONS = {"fp32": "float32", "tf32": "float32", "bf16": "bfloat16"}
KERNELS = ("8_mma", "9_direct", "10_wgmma", "11_halo")


def problem_of(precision, n=2, c=64, h=5, w=9, k=64, r=3, s=3, padding=(1, 1)):
    options = {"layout": "NHWC", "dtype": PRECISIONS[precision], "precision": precision}
    return ConvProblem(n, c, h, w, k, r, s, padding=padding, **options)


def choices_of(kernel, problem):
    """Return how sums may be split that the kernel is to be tried with: not, and in three."""
    if "8_mma" in kernel:
        tile, _ = algorithm.gemm.best(kernel, problem, EMULATOR)
        return [algorithm.gemm.Choice(tile, 1), algorithm.gemm.Choice(tile, 3)]
    if "10_wgmma" in kernel:
        tile, *_ = algorithm.hopper.best(kernel, problem, EMULATOR)
        return [algorithm.hopper.Choice(tile), algorithm.hopper.Choice(tile, 3)]
    return [None]


def planned(kernel, problem, epilogue, choice, device):
    row = ALGORITHMS[kernel]
    ok, reason = row.supports(problem, device, epilogue)
    if not ok:
        pytest.skip(reason)
    given = {} if choice is None else {"choice": choice}
    return row.plan(problem, device, epilogue=epilogue, **given)


def arrays_of(problem, rng):
    shapes = problem.x_shape, problem.w_shape
    x, w = (rng.standard_normal(s, np.float32).astype(problem.dtype) for s in shapes)
    return x, w, rng.standard_normal(problem.k).astype(np.float32)


def result(problem, x, w, bias, relu):
    x, w = (np.moveaxis(a.astype(np.float64), 3, 1) for a in (x, w))
    y = reference.conv2d(x, w, bias.astype(np.float64), padding=problem.padding)
    return np.moveaxis(np.maximum(y, 0) if relu else y, 1, 3)


def check(actual, expected, problem, terms=None):
    tolerance.assert_close(
        actual.astype(np.float32), expected, terms or problem.terms, precision=problem.precision
    )


def each_kernel(test):
    test = pytest.mark.parametrize("kernel", [f"conv2d_fprop_{name}" for name in KERNELS])(test)
    return pytest.mark.parametrize("precision", PRECISIONS)(test)


def run(device, launch, arrays, poisoned):
    """Run a launch; return its result, NumPy's."""
    to = array_module(device).asarray if device.is_gpu else lambda array: array
    on_device = [array if array is None else to(array) for array in (*arrays, poisoned)]
    launch.run(device, on_device)
    return on_device[-1].get() if device.is_gpu else on_device[-1]


def is_few(kernel):
    return {"c": 3} if "direct" in kernel else {}


@pytest.fixture(params=["emulator", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request):
    return EMULATOR if request.param == "emulator" else devices()[0]


@each_kernel
def test_relu_follows_the_bias(kernel, precision, device, rng):
    problem = problem_of(precision, **is_few(kernel))
    x, w, bias = arrays_of(problem, rng)
    for choice in choices_of(kernel, problem):
        launch = planned(kernel, problem, Epilogue(relu=True), choice, device)
        poisoned = np.full(problem.y_shape, np.nan, problem.dtype)
        y = run(device, launch, (x, w, bias), poisoned)
        assert (y >= 0).all()
        assert (y == 0).any()
        check(y, result(problem, x, w, bias, relu=True), problem)


@each_kernel
def test_a_result_among_other_channels_leaves_them_alone(kernel, precision, device, rng):
    problem = problem_of(precision)
    n, p, q, k = problem.y_shape
    x, w, bias = arrays_of(problem, rng)
    for choice in choices_of(kernel, problem):
        launch = planned(kernel, problem, Epilogue(relu=True, pitch=k + 24), choice, device)
        wide = np.full((n, p, q, k + 24), 7, problem.dtype)
        # It begins behind 16 other channels; what lies behind its last is not passed.
        part = wide.reshape(-1)[16:]
        wide.reshape(-1)[16:] = run(device, launch, (x, w, bias), part.copy())
        check(wide[..., 16 : 16 + k], result(problem, x, w, bias, relu=True), problem)
        assert (wide[..., :16] == 7).all()
        assert (wide[..., 16 + k :] == 7).all()


@each_kernel
def test_a_transposed_convolution_is_a_product_that_scatters(kernel, precision, device, rng):
    n, h, w, c, k = 2, 3, 5, 64, 32
    problem = problem_of(precision, n, c, h, w, 4 * k, 1, 1, (0, 0))
    x = rng.standard_normal((n, h, w, c)).astype(problem.dtype)
    filters = rng.standard_normal((2, 2, k, c)).astype(problem.dtype)
    bias = rng.standard_normal(k).astype(np.float32)
    # Into channels 16 and on of a larger image, one line down and two pixels to the right.
    wide = np.full((n, 2 * h + 2, 2 * w + 3, k + 24), 7, problem.dtype)
    line, image = wide.shape[2] * wide.shape[3], wide[0].size
    start = line + 2 * wide.shape[3] + 16
    epilogue = Epilogue(pitch=k + 24, scatter=Scatter(line, image))
    for choice in choices_of(kernel, problem):
        launch = planned(kernel, problem, epilogue, choice, device)
        given = x, filters.reshape(4 * k, 1, 1, c), bias
        wide[...] = 7
        wide.reshape(-1)[start:] = run(device, launch, given, wide.reshape(-1)[start:].copy())
        spread = np.einsum("nhwc,rskc->nhrwsk", x.astype(float), filters.astype(float)) + bias
        inside = wide[:, 1 : 1 + 2 * h, 2 : 2 + 2 * w, 16 : 16 + k]
        check(inside, spread.reshape(n, 2 * h, 2 * w, k), problem)
        assert np.count_nonzero(wide != 7) <= inside.size


def part_of_wider(problem, rng):
    """Return an x that is channels 8 and on of the middle of a larger array, and where it lies."""
    n, h, w, c = problem.x_shape
    wide = rng.standard_normal((n, h + 2, w + 3, c + 16), np.float32).astype(problem.dtype)
    source = Source(c + 16, (w + 3) * (c + 16), wide[0].size)
    start = source.line + 2 * source.pitch + 8
    return wide.reshape(-1)[start:].copy(), wide[:, 1 : 1 + h, 2 : 2 + w, 8 : 8 + c], source


@pytest.mark.parametrize("which", ["fprop", "wgrad"])
@pytest.mark.parametrize("rung", ["8_mma", "10_wgmma"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_input_may_be_a_part_of_a_wider_array(precision, rung, which, device, rng):
    """As the gradients of a transposed convolution take what joined it."""
    options = {"layout": "NHWC", "dtype": PRECISIONS[precision], "precision": precision}
    problem = ConvProblem(2, 64, 6, 10, 64, 2, 2, stride=(2, 2), **options)
    passed, x, source = part_of_wider(problem, rng)
    other = problem.w_shape if which == "fprop" else problem.y_shape
    other = rng.standard_normal(other, np.float32).astype(problem.dtype)
    kernel = f"conv2d_{which}_{rung}"
    a, b = (np.moveaxis(array.astype(np.float64), 3, 1) for array in (x, other))
    if which == "fprop":
        expected, terms = reference.conv2d(a, b, stride=(2, 2)), problem.terms
        given, shape = (passed, other, None), problem.y_shape
    else:
        expected, terms = reference.conv2d_wgrad(a, b, (2, 2), stride=(2, 2)), 30
        given, shape = (passed, other), problem.w_shape
    for choice in choices_of(kernel, problem):
        launch = planned(kernel, problem, Epilogue(source=source), choice, device)
        y = run(device, launch, given, np.full(shape, np.nan, problem.dtype))
        check(y, np.moveaxis(expected, 1, 3), problem, terms)


@pytest.mark.parametrize("kernel", [f"conv2d_wgrad_{name}" for name in KERNELS[:3]])
def test_gradients_of_filters_stay_wide(kernel, device, rng):
    problem = problem_of("bf16", **is_few(kernel))
    x, _, _ = arrays_of(problem, rng)
    dy = rng.standard_normal(problem.y_shape).astype(BFLOAT16)
    expected = reference.conv2d_wgrad(
        *(np.moveaxis(a.astype(np.float64), 3, 1) for a in (x, dy)), (3, 3), padding=(1, 1)
    )
    for choice in choices_of(kernel, problem):
        launch = planned(kernel, problem, Epilogue(wide=True), choice, device)
        dw = run(device, launch, (x, dy), np.full(problem.w_shape, np.nan, np.float32))
        # Nothing is rounded but the sums: operands are bf16 in the reference, too.
        pixels = problem.n * problem.p * problem.q
        tolerance.assert_close(dw, np.moveaxis(expected, 1, 3), pixels)


def with_residual(kernel, precision, relu, device):
    """Yield a problem with images to add to, and plans that do so: whole, split and shared."""
    exact = {"n": 2, "c": 64, "h": 19, "w": 21, "k": 72}
    problem = problem_of(precision, **exact)
    if kernel.endswith("halo"):
        if precision != "fp32":
            for choice in algorithm.halo.choices(kernel, problem, device):
                yield problem, (choice, device)
        return
    few = device if device.is_gpu else replace(device, sm_count=3, name="a few multiprocessors")
    choices = algorithm.hopper.choices(kernel, problem, few)
    first = list(PRECISIONS).index(precision) + relu
    for choice in choices if device.is_gpu else choices[first % 5 :: 5]:
        yield problem, (choice, few)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("kernel", ["conv2d_fprop_10_wgmma", "conv2d_fprop_11_halo"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_residual_is_added_once_before_the_relu(kernel, precision, relu, device, rng):
    to = array_module(device).asarray if device.is_gpu else lambda array: array
    for problem, (choice, where) in with_residual(kernel, precision, relu, device):
        x, w, bias = arrays_of(problem, rng)
        bias = None if relu else bias
        other = rng.standard_normal(problem.y_shape, np.float32).astype(problem.dtype)
        launch = planned(kernel, problem, Epilogue(relu=relu, residual=True), choice, where)
        y = to(np.full(problem.y_shape, np.nan, problem.dtype))
        given = [array if array is None else to(array) for array in (x, w, bias)]
        launch.run(where, [*given, y, to(other)])
        zeros = np.zeros(problem.k) if bias is None else bias
        expected = result(problem, x, w, zeros, relu=False) + other.astype(np.float64)
        expected = np.maximum(expected, 0) if relu else expected
        check(y.get() if device.is_gpu else y, expected, problem)


def test_what_cannot_end_so_says_why():
    plain = problem_of("fp32")
    refused = [
        (ALGORITHMS["conv2d_fprop_7_warp_tiles"], plain, Epilogue(relu=True), "cannot end"),
        (ALGORITHMS["conv2d_dgrad_8_mma"], plain, Epilogue(relu=True), "only fprop"),
        (ALGORITHMS["conv2d_fprop_8_mma"], plain, Epilogue(residual=True), "cannot end"),
        (ALGORITHMS["conv2d_fprop_9_direct"], plain, Epilogue(residual=True), "cannot end"),
        (ALGORITHMS["conv2d_dgrad_10_wgmma"], plain, Epilogue(residual=True), "what fprop gives"),
        (
            ALGORITHMS["conv2d_fprop_10_wgmma"],
            plain,
            Epilogue(residual=True, pitch=72),
            "an array of its own",
        ),
        (ALGORITHMS["conv2d_wgrad_8_mma"], plain, Epilogue(wide=True), "bfloat16"),
        (ALGORITHMS["conv2d_fprop_8_mma"], plain, Epilogue(pitch=66), "multiples"),
        (ALGORITHMS["conv2d_fprop_8_mma"], plain, Epilogue(source=Source(66, 9, 9)), "multiples"),
        (ALGORITHMS["conv2d_dgrad_8_mma"], plain, Epilogue(source=Source(4, 8, 8)), "whole"),
        (
            ALGORITHMS["conv2d_fprop_8_mma"],
            plain,
            Epilogue(pitch=64, scatter=Scatter(1, 1)),
            "1 x 1",
        ),
    ]
    for row, problem, epilogue, why in refused:
        ok, reason = row.supports(problem, EMULATOR, epilogue)
        assert not ok
        assert why in reason
    with pytest.raises(ValueError, match="cannot end"):
        plan("conv2d_fprop_6_stages", plain, EMULATOR, epilogue=Epilogue(relu=True))


def test_auto_takes_what_can_end_so():
    problem = problem_of("fp32")
    name = algorithm.choose(problem, EMULATOR, "fprop", Epilogue(relu=True, pitch=128))
    assert ALGORITHMS[name].supports(problem, EMULATOR, Epilogue(relu=True, pitch=128))[0]
