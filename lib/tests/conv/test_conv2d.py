# SPDX-License-Identifier: MIT
"""Every convolution against its float64 twin, and every refusal."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from problems import PROBLEMS, UNET_PROBLEMS, random_arrays
from ptx import bound

from convstudy import compile, device, tolerance
from convstudy.conv import algorithm, reference
from convstudy.conv.api import conv2d
from convstudy.device import CPU, EMULATOR
from convstudy.problem import ConvProblem

ROWS = [row for row in algorithm.ALGORITHMS.values() if row.which == "fprop"]
KERNELS = algorithm.kernels_for(PROBLEMS["unet, odd width"])
ON_CPU = tuple(row.id for row in ROWS if row.compute)


def expected(problem, x, w, bias):
    return reference.conv2d(
        x.astype(float), w.astype(float), bias.astype(float), problem.stride, problem.padding
    )


def close(problem, output, truth, arrays):
    own = np.sqrt(expected(problem, *(np.square(array.astype(float)) for array in arrays)))
    tolerance.assert_close(output, truth, problem.terms + 1, own=own)


def run(problem, name, x, w, bias, where=None):
    """Run into a poisoned array, so that an output nobody wrote is NaN."""
    xp = np if where in (None, EMULATOR) else device.array_module(where)
    y = xp.full(problem.y_shape, np.nan, dtype=np.float32)
    arrays = [xp.asarray(a) for a in (x, w, bias)]
    conv2d(*arrays, problem.stride, problem.padding, name, y, where)
    return y if xp is np else y.get()


@pytest.mark.parametrize("title", PROBLEMS)
def test_kernels_on_the_emulator_agree_with_float64_and_with_each_other(title, rng):
    problem = PROBLEMS[title]
    arrays = random_arrays(problem, rng)
    truth = expected(problem, *arrays)
    outputs = [run(problem, name, *arrays, EMULATOR) for name in KERNELS]
    for output in outputs:
        close(problem, output, truth, arrays)
        # One order of summation in all of them: not close, but equal.
        np.testing.assert_array_equal(output, outputs[0])


@pytest.mark.parametrize("name", ON_CPU)
@pytest.mark.parametrize("title", PROBLEMS)
def test_cpu_algorithms_agree_with_float64(title, name, rng):
    problem = PROBLEMS[title]
    arrays = random_arrays(problem, rng)
    truth = expected(problem, *arrays)
    close(problem, run(problem, name, *arrays), truth, arrays)


@pytest.mark.gpu
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("title", [*PROBLEMS, *UNET_PROBLEMS])
def test_kernels_on_the_gpu_agree_with_float64(title, name, rng):
    problem = {**PROBLEMS, **UNET_PROBLEMS}[title]
    arrays = random_arrays(problem, rng)
    output = run(problem, name, *arrays, device.get_device())
    close(problem, output, expected(problem, *arrays), arrays)


@pytest.mark.gpu
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("title", PROBLEMS)
def test_emulator_gives_the_bits_of_the_gpu(title, name, rng):
    problem = PROBLEMS[title]
    arrays = random_arrays(problem, rng)
    # The very launch that the GPU would make, run by the emulator.
    launch = algorithm.plan(name, problem, device.get_device())
    emulated = np.full(problem.y_shape, np.nan, dtype=np.float32)
    launch.run(EMULATOR, (*arrays, emulated))
    np.testing.assert_array_equal(
        emulated, run(problem, name, *arrays, device.get_device()), strict=True
    )


@pytest.mark.gpu
def test_random_problems_on_the_gpu(rng):
    for _ in range(40):
        r, s = rng.integers(1, 6, 2)
        problem = ConvProblem(
            *rng.integers(1, [4, 40, 40, 40, 70]) + [0, 0, 5, 5, 0],
            r,
            s,
            stride=tuple(rng.integers(1, 4, 2)),
            padding=tuple(rng.integers(0, 4, 2)),
        )
        arrays = random_arrays(problem, rng)
        truth = expected(problem, *arrays)
        for name in KERNELS:
            output = run(problem, name, *arrays, device.get_device())
            close(problem, output, truth, arrays)


def test_the_twin_knows_two_convolutions_done_by_hand():
    x = np.arange(12, dtype=float).reshape(1, 1, 3, 4)
    delta = np.zeros((1, 1, 3, 3))
    delta[0, 0, 0, 2] = 1  # takes the pixel above and to the right
    shifted = reference.conv2d(x, delta, padding=(1, 1))[0, 0]
    np.testing.assert_array_equal(shifted, [[0, 0, 0, 0], [1, 2, 3, 0], [5, 6, 7, 0]])
    np.testing.assert_array_equal(reference.conv2d(x, delta), [[[[2, 3]]]])
    ones = reference.conv2d(x, np.ones((1, 1, 3, 3)), np.array([0.5]), padding=(1, 1))[0, 0]
    np.testing.assert_array_equal(ones[1], [27.5, 45.5, 54.5, 39.5])


def test_the_twin_is_linear_and_its_strides_subsample(rng):
    problem = ConvProblem(2, 3, 9, 10, 4, 3, 2, padding=(1, 2))
    x, w, _ = (a.astype(float) for a in random_arrays(problem, rng))
    dense = reference.conv2d(x, w, None, (1, 1), problem.padding)
    strided = reference.conv2d(x, w, None, (2, 3), problem.padding)
    np.testing.assert_allclose(strided, dense[:, :, ::2, ::3], rtol=1e-12)
    doubled = reference.conv2d(2 * x, 3 * w, None, (1, 1), problem.padding)
    np.testing.assert_allclose(doubled, 6 * dense, rtol=1e-12)


def test_tiling_reads_global_memory_less_and_registers_read_shared_memory_less(rng):
    problem = ConvProblem(1, 16, 16, 24, 32, 3, 3, padding=(1, 1))
    counts = {}
    for name in KERNELS:
        y = np.full(problem.y_shape, np.nan, dtype=np.float32)
        launch = algorithm.plan(name, problem, EMULATOR)
        counts[name] = launch.run(EMULATOR, (*random_arrays(problem, rng), y))
    naive, coalesced, tiled, blocked = (counts[name] for name in KERNELS[:4])
    inside = 2 * problem.k * problem.c * (3 * 24 - 2) * (3 * 16 - 2)
    bias = problem.k * problem.p * problem.q
    assert naive.global_loads == coalesced.global_loads == inside + bias
    assert naive.shared_loads == coalesced.shared_loads == 0
    assert coalesced.global_load_sectors < naive.global_load_sectors / 3
    assert tiled.global_loads < naive.global_loads / 10
    assert blocked.shared_loads < tiled.shared_loads / 2


def good():
    return np.ones((1, 3, 8, 8), np.float32), np.ones((4, 3, 3, 3), np.float32)


X, W = good()
BAD_CALLS = {
    "wrong dtype": (
        (X.astype(float), W),
        {},
        TypeError,
        "x must be float32 or bfloat16, got float64",
    ),
    "half-precision weights": ((X, W.astype(np.float16)), {}, TypeError, "w must be float32"),
    "rank of x": ((X[0], W), {}, ValueError, r"x must be an array of rank 4 \(N, C, H, W\)"),
    "rank of w": ((X, W[0]), {}, ValueError, r"w must be an array of rank 4 \(K, C, R, S\)"),
    "channels": ((X, W[:, :2].copy()), {}, ValueError, "x has 3 channels and w expects 2"),
    "a list": ((X.tolist(), W), {}, TypeError, "x must be a NumPy or CuPy array, got list"),
    "empty": ((X[:0], W), {}, ValueError, r"x is empty, of shape \(0, 3, 8, 8\)"),
    "transposed": ((X.T.T[:, :, ::2], W), {}, ValueError, "x must be C-contiguous"),
    "NaN": ((X * np.nan, W), {}, ValueError, "x holds NaN or infinity"),
    "infinite weights": ((X, W * np.inf), {}, ValueError, "w holds NaN or infinity"),
    "bias": ((X, W, np.ones(3, np.float32)), {}, ValueError, r"bias has shape \(3,\), expected"),
    "bias dtype": ((X, W, np.ones(4)), {}, TypeError, "bias must be float32"),
    "zero stride": ((X, W), {"stride": 0}, ValueError, "stride must be at least 1, got 0"),
    "negative padding": ((X, W), {"padding": -1}, ValueError, "padding must be at least 0, got -1"),
    "fractional stride": ((X, W), {"stride": 1.5}, TypeError, "stride must be an integer"),
    "padding by truth": ((X, W), {"padding": True}, TypeError, "padding must be an integer"),
    "a device by name": ((X, W), {"device": "gpu"}, TypeError, "device must be a Device, such as"),
    "three strides": ((X, W), {"stride": (1, 1, 1)}, ValueError, "one integer or two"),
    "filter too large": ((X[:, :, :2].copy(), W), {}, ValueError, "filter is larger than"),
    "unknown": ((X, W), {"algorithm": "magic"}, ValueError, "no algorithm 'magic'; choose 'auto'"),
    "kernel on the CPU": (
        (X, W),
        {"algorithm": "conv2d_fprop_3_tiled"},
        ValueError,
        "refuses .* on this machine's CPU: it is a CUDA kernel",
    ),
    "CPU algorithm on the emulator": (
        (X, W),
        {"algorithm": "cpu-blas", "device": EMULATOR},
        ValueError,
        "refuses .* on the CPU emulator: it runs on the CPU",
    ),
    "another's array": ((Image.new("RGB", (4, 4)), W), {}, TypeError, "x must be .* got Image"),
    "algorithms": ((X, W), {"algorithm": ["auto"]}, ValueError, r"no algorithm \['auto'\]"),
    "channels last": (
        (np.ones((1, 8, 8, 3), np.float32), np.ones((4, 3, 3, 3), np.float32)),
        {"algorithm": "cpu-plain", "layout": "NHWC"},
        ValueError,
        "conv2d: cpu-plain refuses .* it takes NCHW",
    ),
    "where vectors do not begin": (
        (np.ones(1 + X.size, np.float32)[1:].reshape(X.shape), W),
        {"device": EMULATOR},
        ValueError,
        r"of shape \(1, 3, 8, 8\) begins at an address that is no multiple of 16 bytes",
    ),
    "read-only out": (
        (X, W),
        {"out": np.frombuffer(bytes(4 * 144), np.float32).reshape(1, 4, 6, 6)},
        ValueError,
        "out is read-only",
    ),
    "out shape": (
        (X, W),
        {"out": np.empty((1, 4, 8, 8), np.float32)},
        ValueError,
        r"out has shape \(1, 4, 8, 8\), expected \(1, 4, 6, 6\)",
    ),
}


@pytest.mark.parametrize("title", BAD_CALLS)
def test_bad_calls_are_refused_in_words(title):
    arguments, options, error, message = BAD_CALLS[title]
    with pytest.raises(error, match=message):
        conv2d(*arguments, **options)


def test_out_may_not_overlap_an_input():
    x = np.ones((1, 1, 4, 4), np.float32)
    with pytest.raises(ValueError, match="out overlaps an input"):
        conv2d(x, np.ones((1, 1, 1, 1), np.float32), out=x)


@pytest.mark.skipif(bool(device.devices()), reason="says what is missing where there is no GPU")
def test_a_gpu_that_is_not_there_is_refused_in_words():
    with pytest.raises(RuntimeError, match=r"needs a GPU: .*(driver|install)"):
        device.get_device()


def test_tiles_that_do_not_fit_are_refused_with_the_limit_and_the_way_out():
    problem = ConvProblem(1, 1, 200, 200, 1, 90, 90)
    ok, reason = algorithm.ALGORITHMS["conv2d_fprop_3_tiled"].supports(problem, EMULATOR)
    assert not ok
    assert "49152" in reason
    assert "conv2d_fprop_2_coalesced" in reason
    assert algorithm.choose(problem, EMULATOR) == "conv2d_fprop_2_coalesced"


def test_the_cost_of_a_tile_by_hand():
    problem = ConvProblem(1, 64, 128, 191, 64, 3, 3, padding=1)
    tile = algorithm._Tile(8, 4, 8, reg_q=4, reg_k=8)
    words = 6 * (34 + 3) + (9 + 3) * (64 + 4)
    # 3 rows of 96 products, 2 + 3 x 2 loads of vectors; a share of the words, at 6 each.
    instructions = 64 * (3 * (96 + 2 + 6) + 6 * words / 256)
    # 192 blocks of 8 warps.
    for multiprocessors, blocks in ((132, 2), (192, 1)):
        device_like = dataclasses.replace(EMULATOR, sm_count=multiprocessors)
        expected_cycles = instructions * max(blocks * 8 / 3, 4)
        assert tile.cost(problem, device_like) == pytest.approx(expected_cycles)


@pytest.mark.parametrize("name", KERNELS)
def test_channels_beyond_32_bits_are_refused(name):
    supports = algorithm.ALGORITHMS[name].supports
    for sizes, padding in (((2**16, 2**15), 0), ((1, 1), (2**14, 2**15))):
        ok, reason = supports(ConvProblem(1, 1, *sizes, 1, 1, 1, padding=padding), EMULATOR)
        assert not ok
        assert "one channel has 2^31 pixels or more; cut the image" in reason
    assert supports(ConvProblem(1, 1, 2**16, 2**15 - 1, 1, 1, 1), EMULATOR) == (True, "")


@pytest.mark.parametrize("name", KERNELS[:2])
@pytest.mark.parametrize(("outputs", "blocks"), [(256 * 300, 300), (256 * 300 + 1, 301)])
def test_every_output_has_a_thread(name, outputs, blocks):
    launch = algorithm.plan(name, ConvProblem(1, 1, 1, outputs, 1, 1, 1), EMULATOR)
    assert (launch.grid, launch.block) == ((blocks,), (256,))


def test_more_blocks_than_a_grid_has_are_refused():
    most = 2**31 - 1
    # A block covers 256 outputs, and, tiled, pixels of one image.
    for name, pixels in zip(KERNELS[:4], (256, 256, 1, 1), strict=True):
        supports = algorithm.ALGORITHMS[name].supports
        problem = ConvProblem(most, 1, 1, pixels, 1, 1, 1)
        assert supports(problem, EMULATOR) == (True, "")
        ok, reason = supports(problem.with_batch(most + 1), EMULATOR)
        assert not ok
        assert "blocks" in reason
        assert "cut the batch" in reason


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((None,), TypeError, "explain: problem must be a ConvProblem, got None"),
        ((PROBLEMS["unet, odd width"], "gpu"), TypeError, "explain: device must be a Device"),
        ((PROBLEMS["unet, odd width"], CPU, "bprop"), ValueError, "which must be fprop or dgrad"),
    ],
)
def test_what_cannot_be_explained_is_refused_in_words(arguments, error, message):
    with pytest.raises(error, match=message):
        algorithm.explain(*arguments)


def test_explain_has_a_line_for_every_algorithm():
    problem = PROBLEMS["unet, odd width"]
    for where in (CPU, EMULATOR):
        lines = algorithm.explain(problem, where).splitlines()
        assert [line.split(":")[0] for line in lines] == [row.id for row in ROWS]
        assert sum("; chosen" in line for line in lines) == 1
        assert sum("; refused" in line for line in lines) >= 2


@pytest.mark.parametrize("arch", compile.ARCHITECTURES)
@pytest.mark.parametrize("name", KERNELS)
def test_every_plan_of_every_problem_compiles_without_spills(name, arch):
    device_like = dataclasses.replace(EMULATOR, sm_count=108)
    plans = {p: algorithm.plan(name, p, device_like) for p in UNET_PROBLEMS.values()}
    for launch in plans.values():
        cubin = compile.cubin(name, arch, launch.defines)
        assert cubin.spill_bytes == 0
        assert cubin.stack_bytes == 0
        assert bound(launch) == launch.threads
        if name == "conv2d_fprop_3_tiled":  # as many blocks as make up 1,024 threads
            assert 1024 // launch.threads * launch.threads * cubin.registers <= 65536
