# SPDX-License-Identifier: MIT
"""Statistics that a convolution takes of what it writes, against those of its result."""

import dataclasses
import subprocess

import numpy as np
import pytest
from chips import ONE_SM

from convstudy import compile as compiler
from convstudy import emulator, paths, tolerance
from convstudy.conv import algorithm, halo, hopper, tuned
from convstudy.conv.algorithm import ALGORITHMS, plan
from convstudy.conv.epilogue import PLAIN, Epilogue, Source
from convstudy.device import EMULATOR, array_module, devices
from convstudy.problem import ConvProblem

STATISTICS = Epilogue(statistics=True)
PINGPONG = halo.Choice(64, pingpong=True)
CHOICES = {
    "conv2d_fprop_10_wgmma": [hopper.Choice(tile) for tile in hopper._TILES_WHOLE],
    "conv2d_fprop_11_halo": [halo.Choice(64), PINGPONG, halo.Choice(128)],
}
SPLIT = [hopper.Choice(tile) for tile in hopper._TILES_SPLIT]
CASES = [
    (kernel, precision, choice)
    for precision in ("fp32", "tf32", "bf16")
    for kernel, choices in CHOICES.items()
    for choice in (choices if precision != "fp32" else SPLIT if "10" in kernel else ())
    if precision == "tf32" or choice != PINGPONG
]
# On the emulator every tile once, and each kernel in each of its precisions.
EMULATED = [*CASES[:4:2], *CASES[4:15:2], *CASES[15::2]]


def name(case):
    kernel, precision, choice = case
    return f"{kernel[13:15]} {precision} {tuned.text(choice)}"


def problem_of(precision, **changes):
    """Tiles and patches that are cut off below and at the right, and columns that are."""
    dtype = "bfloat16" if precision == "bf16" else "float32"
    sizes = 2, 64, 21, 19, 72, 3, 3
    problem = ConvProblem(*sizes, dtype=dtype, layout="NHWC", precision=precision)
    return dataclasses.replace(problem, padding=(1, 1), **changes)


def family(kernel):
    return halo if kernel.endswith("_halo") else hopper


def operands(problem, rng, mean=0.0):
    x, w = (
        rng.standard_normal(s).astype(problem.dtype) for s in (problem.x_shape, problem.w_shape)
    )
    return x, w, (mean + rng.standard_normal(problem.k)).astype(np.float32)


def run(case, problem, device, given, epilogue=STATISTICS):
    """Return y, and counts, means and squared distances of its tiles."""
    kernel, _, choice = case
    tiles = family(kernel).count_tiles(kernel, problem, device, choice)
    y = np.full(problem.y_shape, np.nan, problem.dtype)
    moments = np.full(tiles * (2 * problem.k + 1), np.nan, np.float32)
    xp = array_module(device)
    arrays = [
        xp.asarray(array) for array in (*given, y, moments)[: 5 if epilogue.statistics else 4]
    ]
    ALGORITHMS[kernel].plan(problem, device, choice, epilogue=epilogue).run(device, arrays)
    y, *moments = [array if xp is np else array.get() for array in arrays[3:]]
    y = y.reshape(-1, problem.k)
    if not moments:
        return y
    (moments,) = moments
    counts = moments[tiles * 2 * problem.k :, None]
    return y, counts, *moments[: counts.size * 2 * problem.k].reshape(tiles, 2, -1).swapaxes(0, 1)


def excess(y, counts, means, squares):
    """Return how far all statistics together are from those of y, in tolerances."""
    y, counts, means, squares = (each.astype(np.float64) for each in (y, counts, means, squares))
    assert counts.sum() == len(y)
    mean = (counts * means).sum(0) / len(y)
    var = (squares + counts * (means - mean) ** 2).sum(0) / len(y)
    errors = abs(mean - y.mean(0)) / y.std(0), abs(var / y.var(0) - 1)
    return max(error.max() for error in errors) / tolerance.tolerance("float32", len(y))


@pytest.mark.parametrize("case", EMULATED, ids=name)
def test_statistics_are_those_of_what_is_written(case, rng):
    problem = problem_of(case[1])
    given = operands(problem, rng)
    y, *moments = run(case, problem, ONE_SM, given)
    assert excess(y, *moments) < 1
    np.testing.assert_array_equal(y, run(case, problem, ONE_SM, given, PLAIN))


@pytest.mark.parametrize(
    ("case", "changes"),
    [
        (CASES[0], {"stride": (2, 2), "h": 33, "w": 35}),
        (CASES[6], {"r": 1, "s": 1, "padding": (0, 0), "k": 40}),
        (CASES[-1], {"n": 1, "h": 5, "w": 33, "k": 136}),
        (CASES[-1], {"n": 3, "h": 16, "w": 16, "k": 64}),
    ],
)
def test_other_sizes(case, changes, rng):
    problem = dataclasses.replace(problem_of(case[1]), **changes)
    assert excess(*run(case, problem, EMULATOR, operands(problem, rng))) < 1


@pytest.mark.parametrize("case", [CASES[0], CASES[12], CASES[-1]], ids=name)
def test_a_large_mean_does_not_swallow_the_differences(case, rng):
    problem = problem_of(case[1])
    # What bfloat16 leaves of a number of 200 are wholes: their statistics are what counts.
    given = operands(problem, rng, mean=2e4 if problem.itemsize == 4 else 200)
    y, counts, means, squares = run(case, problem, EMULATOR, given)
    first = y[:1].astype(np.float64)
    assert excess(y - first, counts, means - first, squares) < 10


def test_they_are_of_results_after_relu(rng):
    epilogue = dataclasses.replace(STATISTICS, relu=True)
    problem = problem_of("bf16")
    y, *moments = run(CASES[-1], problem, EMULATOR, operands(problem, rng), epilogue)
    assert (y == 0).any()
    assert excess(y, *moments) < 1


@pytest.mark.parametrize(
    ("case", "right", "wrong"),
    [
        (CASES[0], "i < rows - row ? i : 0", "i"),
        (CASES[0], "min(rows - row, TILE_M)", "TILE_M"),
        (CASES[-1], "? y * width + x : 0", "? y * width + x : width"),
        (CASES[-1], "min(width - w, PATCH_W)", "PATCH_W"),
        (
            CASES[-1],
            "            barrier_wait(written(group), parity);\n            parity ^= 1;\n",
            "",
        ),
        (CASES[-1], "                barrier_wait(written(group), parity);\n", ""),
    ],
)
def test_faults_are_found(case, right, wrong, rng, monkeypatch):
    source, problem = compiler.source, problem_of(case[1])
    assert source(case[0]).count(right) == 1
    given = operands(problem, rng)
    monkeypatch.setattr(compiler, "source", lambda *text: source(*text).replace(right, wrong))
    compiler._on_emulator.cache_clear()
    try:
        with pytest.raises((AssertionError, emulator.EmulatorError)):
            assert excess(*run(case, problem, ONE_SM, given)) < 1
    finally:
        compiler._on_emulator.cache_clear()


def test_refusals_say_why():
    problem = problem_of("bf16", k=64)
    for kernel in ("conv2d_fprop_8_mma", "conv2d_fprop_9_direct", "conv2d_dgrad_10_wgmma"):
        ok, reason = ALGORITHMS[kernel].supports(problem, EMULATOR, STATISTICS)
        assert not ok
        assert "statistics" in reason
    row = ALGORITHMS["conv2d_fprop_11_halo"]
    within = dataclasses.replace(STATISTICS, pitch=128)
    assert "an array of its own" in row.supports(problem, EMULATOR, within)[1]
    part = dataclasses.replace(STATISTICS, source=Source(128, 128 * 30, 128 * 900))
    assert not row.supports(problem, EMULATOR, part)[0]
    assert ALGORITHMS["conv2d_fprop_10_wgmma"].supports(problem, EMULATOR, part)[0]
    choice = hopper.Choice(hopper._TILES_WHOLE[2], 3)
    assert hopper.count_tiles("conv2d_fprop_10_wgmma", problem, EMULATOR, choice) == 0
    with pytest.raises(ValueError, match="3 blocks share a sum"):
        plan("conv2d_fprop_10_wgmma", problem, EMULATOR, choice, STATISTICS)


def test_auto_says_of_how_many_tiles_it_writes_them():
    wide = problem_of("bf16", n=16, h=128, w=191, k=64)
    assert algorithm.choose(wide, EMULATOR) == "conv2d_fprop_11_halo"
    assert algorithm.count_tiles(wide, EMULATOR) == 16 * 8 * 12
    for other in (problem_of("bf16", c=512, h=2, w=2), problem_of("bf16", c=3)):
        assert algorithm.count_tiles(other, EMULATOR) == 0, "sums are split, or rung 9 takes it"
    older = dataclasses.replace(EMULATOR, compute_capability=(8, 0), name="older")
    assert algorithm.count_tiles(wide, older) == 0


@pytest.mark.parametrize("case", EMULATED, ids=name)
def test_they_cost_no_registers_and_nothing_is_spilled(case):
    kernel, precision, choice = case

    def compiled(epilogue):
        planned = ALGORITHMS[kernel].plan(
            problem_of(precision), EMULATOR, choice, epilogue=epilogue
        )
        launch = planned.main_launch
        cubin = compiler.cubin(launch.kernel, "sm_90", launch.defines)
        assert (cubin.spill_bytes, cubin.stack_bytes) == (0, 0)
        return cubin.registers, cubin.shared_bytes, launch.shared_bytes

    assert compiled(STATISTICS) == compiled(PLAIN)


def seen(text):
    """Return what a compiler sees of a text: no comment, no condition."""
    command = ("g++", "-E", "-P", "-x", "c++", "-")
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    "kernel",
    [
        k
        for k in compiler.kernels()
        if any(name in compiler.source(k) for name in compiler._ASKED_FOR)
    ],
)
def test_without_them_a_kernel_is_the_text_that_was_measured(kernel):
    """What the hash leaves out is what no compiler sees."""
    text = compiler.source(kernel)
    asked_for = [name for name in compiler._ASKED_FOR if f"#define {name} " not in text]
    plain = compiler._without({f"#ifdef {name}" for name in asked_for}, text)
    assert not any(name in plain for name in asked_for)
    assert seen(plain) == seen(text)
    hashes = {compiler.source_sha256(kernel, ((name, 1),)) for name in compiler._ASKED_FOR}
    assert compiler.source_sha256(kernel) not in hashes
    for path in paths.KERNELS.glob("*.cuh"):
        text = path.read_text()
        assert not any(f"define {name}" in text for name in compiler._ASKED_FOR), path


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=name)
def test_statistics_on_the_gpu(case, rng):
    gpu, problem = devices()[0], problem_of(case[1], n=16, h=93, w=61)
    ok, reason = ALGORITHMS[case[0]].supports(problem, gpu, STATISTICS)
    if not ok:
        pytest.skip(reason)
    given = operands(problem, rng)
    found = run(case, problem, gpu, given)
    assert excess(*found) < 1
    np.testing.assert_array_equal(found[0], run(case, problem, gpu, given, PLAIN))
    for array, again in zip(found, run(case, problem, gpu, given), strict=True):
        np.testing.assert_array_equal(array, again)
